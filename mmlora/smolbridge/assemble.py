"""SmolBridge put together from its published parts and this project's connector: once, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ViTImageProcessor

from mmlora.files import sha256, sha256_of_all
from mmlora.models import base as bases
from mmlora.models.base import Base
from mmlora.paths import WEIGHTS, cache_home
from mmlora.smolbridge.config import SmolBridgeConfig
from mmlora.smolbridge.model import (
    SmolBridgeForConditionalGeneration,
    SmolBridgeModel,
    plain_tower,
    without_norms,
)
from mmlora.smolbridge.processor import CHAT_TEMPLATE, IMAGE_TOKEN, SmolBridgeProcessor
from mmlora.smolbridge.wheels import LANGUAGE, VISION, WeightsError, fetch

CONNECTOR = WEIGHTS / "smolbridge" / "connector.safetensors"
LARGE = 2_000_000  # numbers of a matrix from which on it is shipped in eight bits: so many megabytes less in git
SCALE = ".scale"  # the end of the name of its rows' scales


def assembled(connector: Path | None = CONNECTOR, name: str = "smolbridge", **config) -> Path:
    """The folder of the assembled SmolBridge, made at the first call (tens of seconds) and kept in the user cache.

    `connector` holds the aligned connector and says its sizes (None: a fresh, unaligned one), `name` is what adapters call
    this base; `config` overrides sizes of `SmolBridgeConfig`. Raises `WeightsError` when a part is missing or cannot be kept.
    """
    if connector and not Path(connector).is_file():
        raise WeightsError(
            f"the aligned connector is not at {connector}; restore it with `git checkout weights`, install mmlora again, "
            "or make one with `python tools/align_smolbridge.py`"
        )
    parts = {
        "config": config,
        "connector": sha256(connector) if connector else None,
        "language": LANGUAGE.sha256,
        "vision": VISION.sha256,
    }
    base = Base(name, None, "apache-2.0", _hash(parts))
    target = cache_home() / "models" / f"smolbridge-{_hash({**parts, 'code': _code()})[:12]}"
    if (target / "config.json").is_file():
        return target
    gguf, vision = fetch(LANGUAGE), fetch(VISION)
    model, processor = _assemble(gguf, vision, connector, config)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
        try:
            model.half().save_pretrained(aside)  # half of the space; the source is 4 bits a weight
            processor.save_pretrained(aside)
            bases.write(base, aside)
            if not (target / "config.json").is_file():  # another process may have been faster
                aside.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise WeightsError(
            f"could not save the assembled SmolBridge under {target.parent}: {error.strerror or error}; free about "
            "300 MB or set MMLORA_HOME to another folder, then run again"
        ) from error
    return target


def _hash(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _code() -> str:
    """A hash of the code that decides what is kept: architecture, chat template, normalisation, assembly."""
    return sha256_of_all(
        Path(__file__).with_name(f"{name}.py") for name in ("config", "connector", "model", "processor", "assemble")
    )


def _assemble(
    gguf: Path, vision: Path, connector: Path | None, config: dict
) -> tuple[SmolBridgeForConditionalGeneration, SmolBridgeProcessor]:
    language = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    text_config = AutoConfig.for_model(
        "llama",
        **{
            name: getattr(language.config, name)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "rms_norm_eps",
                "max_position_embeddings",
                "rope_parameters",
                "bos_token_id",
                "eos_token_id",
                "tie_word_embeddings",
            )
        },
        pad_token_id=0,
    )
    tensors = _connector(connector) if connector else {}
    torch.manual_seed(0)
    model = SmolBridgeForConditionalGeneration(
        SmolBridgeConfig(text_config=text_config, **sizes(tensors), **config)
    ).float()
    model.model.language_model.load_state_dict(language.model.state_dict())
    _load_vision(model.model, vision)
    if tensors:
        model.model.connector.load_state_dict(tensors)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    return model, _processor(gguf, model.config)


def vision_tensors(file: Path) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0's published tensors, which have other names but the same order as timm's model, under its names.

    Raises `WeightsError` where they do not fit.
    """
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [tuple(t.shape) for t in tensors.values()] != [tuple(t.shape) for t in whole.values()]:
        raise WeightsError(f"{file.name} does not fit timm's tf_efficientnet_lite0; fetch it anew")
    return dict(zip(whole, tensors.values()))


def _load_vision(core: SmolBridgeModel, file: Path) -> None:
    """The published numbers; what is above the maps only where the model takes a glance."""
    named, plain = vision_tensors(file), plain_tower("tf_efficientnet_lite0")
    plain.load_state_dict({name: named[name] for name in plain.state_dict()})
    core.vision_tower.load_state_dict(without_norms(plain).state_dict())
    if core.namer is not None:
        whole = timm.create_model("tf_efficientnet_lite0")
        whole.load_state_dict(named)
        above = {n: p for n, p in without_norms(whole).state_dict().items() if n in core.namer.state_dict()}
        core.namer.load_state_dict(above)


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A connector as it is shipped: half precision, and a large matrix in eight bits with a scale for each row."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.is_floating_point() and tensor.numel() > LARGE:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            found[f"connector.{name}"] = (tensor / scale).round().to(torch.int8)
            found[f"connector.{name}{SCALE}"] = scale
        else:
            found[f"connector.{name}"] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
    return found


def unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `packed` made, as a connector's own tensors; half precision where nothing was in eight bits."""
    plain = {name.removeprefix("connector."): t for name, t in tensors.items()}
    scales = {name.removesuffix(SCALE): plain.pop(name) for name in list(plain) if name.endswith(SCALE)}
    return {name: t.float() * scales[name] if name in scales else t for name, t in plain.items()}


def _connector(file: Path) -> dict[str, torch.Tensor]:
    """The connector's tensors as `smolbridge.align` wrote them."""
    return unpacked(load_file(file))


def sizes(connector: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the tensors say about the sizes in `SmolBridgeConfig`; nothing for a fresh connector."""
    if not connector:
        return {}
    words, naming = len(connector["word_ids"]), connector["names"].shape[1] if "names" in connector else 0
    spelling = connector["spell.weight"].shape[1] if "spell.weight" in connector else 0
    return {
        "cell_width": len(connector["describe.weight"]),
        "connector_width": len(connector["read.weight"]),
        "dictionary": words,
        "visual_tokens": len(connector["write.weight"]) // (spelling or words) + naming,
        "spelling": spelling,
        "glance_width": len(connector["glimpse.weight"]) if "usual" in connector else 0,
        "naming_tokens": naming,
    }


def _processor(gguf: Path, config: SmolBridgeConfig) -> SmolBridgeProcessor:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.pad_token = "<|endoftext|>"
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == config.image_token_id
    size = {"height": config.image_size, "width": config.image_size}
    pictures = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return SmolBridgeProcessor(pictures, tokenizer, CHAT_TEMPLATE, visual_tokens=config.visual_tokens)
