"""A vision-language model with its processor, loaded by name: `load_base`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mmlora import guests
from mmlora.errors import MMLoraError, on_one_line
from mmlora.files import refusals
from mmlora.models import base as bases
from mmlora.models import catalog, hub, processes
from mmlora.models.base import Base
from mmlora.models.memory import out_of_memory, reuse_blocks
from mmlora.models.precision import device, nf4, weights_dtype
from mmlora.models.resolution import see_all, set_side, visual_tokens
from mmlora.models.words import refuse_unfit
from mmlora.paths import expanded

SHOWN = 300  # characters of a library's message


class UnknownModel(MMLoraError):
    """No model has this name, and the message lists the nearest ones; or it writes no words."""


@dataclass(frozen=True)
class VLM:
    """A vision-language model, adapted or not, and the processor that feeds it."""

    name: str
    model: PreTrainedModel
    processor: Any  # transformers' own, of whatever class the architecture has

    @property
    def base(self) -> Base:
        """Which published weights these are."""
        return bases.base_of(self.model)

    def with_model(self, model: nn.Module) -> VLM:
        """The same name and processor with another model: the adapted one, the merged one."""
        return replace(self, model=model)


class TextProcessor:
    """A language model's tokenizer in a processor's place: the baseline that sees no picture."""

    image_token = image_token_id = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict], **options: Any) -> str:
        flat = [{**m, "content": "".join(part.get("text", "") for part in m["content"])} for m in messages]
        return self.tokenizer.apply_chat_template(flat, tokenize=False, **options)

    def __call__(self, images: None = None, text: list[str] | None = None, return_tensors: str = "pt") -> BatchFeature:
        return BatchFeature(dict(self.tokenizer(text, return_tensors=return_tensors)))

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> TextProcessor:
        return cls(AutoTokenizer.from_pretrained(folder, **options))


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each one's training flag is what it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, wherever the architecture keeps them."""
    return base_model(model).get_decoder().layers


def load_base(name: str | Path, *, side: int | None = None, revision: str | None = None, four_bit: bool = False) -> VLM:
    """Load a model by its short name (`models.catalog`), its hub id, or from a folder that `save_pretrained` wrote.

    It comes in evaluation mode, on the best device here, in the precision that suits it. `side` bounds the size of
    pictures in pixels (`models.resolution`), `revision` is a commit or tag on the hub, `four_bit` keeps frozen weights
    in NF4 (QLoRA, arXiv 2305.14314).
    Where the processes share the weights (`models.processes.sharded`), each gets its part of the decoder's layers.
    Raises `UnknownModel` (with the nearest names), `HubError`, `ResolutionError`, `PrecisionError`, `ShardingError`,
    `TokenizerError`, and what a guest raises whose weights cannot be had.
    """
    name = str(name)
    if four_bit and processes.sharded():
        raise processes.ShardingError(
            "weights in four bits cannot be sharded; leave four_bit out, or launch without FSDP"
        )
    entry = catalog.find(name)
    with refusals(name):
        folder, base = _locate(name, revision)
    reuse_blocks()
    with explained(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    refuse_speechless(name, config)
    hub.refuse_pickles(name, [path.name for path in folder.iterdir()])
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    on_card = four_bit or (device().type == "cuda" and not processes.sharded())  # not through main memory first
    card = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else device()
    placed: dict[str, Any] = {"device_map": {"": card}} if on_card else {}
    if four_bit:
        placed["quantization_config"] = nf4()
    with explained(name):
        model, found = kind.from_pretrained(
            folder,
            dtype=weights_dtype(),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placed,
        )
    _refuse_missing(name, found["missing_keys"])
    if processes.sharded():
        processes.shard(decoder_layers(model))
    if not on_card:
        model = model.to(device())
    bases.mark(model, base)
    with explained(name):
        processor: Any = (AutoProcessor if sees else TextProcessor).from_pretrained(folder, trust_remote_code=False)
    refuse_unfit(name, model, processor)
    see_all(processor)
    if side is not None:
        set_side(processor, side)
        print(f"a picture of 512 x 384 pixels takes {visual_tokens(processor)} tokens")
    elif entry and entry.size:
        processor.image_processor.size = type(processor.image_processor.size)(**entry.size)
    return VLM(name, model.eval(), processor)


def _refuse_missing(name: str, missing: Collection[str]) -> None:
    """Raise `HubError` where the files lack some of the weights: transformers would fill them with random numbers."""
    if missing:
        raise hub.HubError(
            f"the weights of {name} lack {len(missing)} tensors of the model, such as {min(missing)}; fetch them again, or choose another model"
        )


def refuse_speechless(name: str, config: PretrainedConfig) -> None:
    """Raise `UnknownModel` for an architecture that is neither a vision-language model nor a causal language model."""
    kinds = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    if not any(type(config) in kind for kind in kinds):
        raise UnknownModel(
            f"{name} writes no words (it is a {config.model_type}); give a vision-language model, or a language model"
        )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what transformers raises for a model's files into a `HubError` of one sentence, except running out of memory."""
    try:
        yield
    except MMLoraError:
        raise
    except Exception as error:  # a damaged file may end in any of them
        if out_of_memory(error):
            raise
        reason = on_one_line(error, SHOWN)
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = "one of its files asks for code of its own, which mmlora never runs"
        raise hub.HubError(
            f"{name} cannot be loaded: {reason}; copy or fetch it again, or choose another model"
        ) from error


def _locate(name: str, revision: str | None) -> tuple[Path, Base]:
    """Where the model's files are, fetched if need be, and which base they are."""
    folder = expanded(name)
    if os.path.isfile(folder / "config.json"):  # Path.is_file raises where a name is too long
        hub.known_config(folder / "config.json", name)
        return folder, bases.of_folder(folder)
    if guest := guests.guest("models", name.lower()):
        folder = guest.folder()
        guest.register()
        return folder, bases.of_folder(folder)
    entry = catalog.find(name)
    if entry or (guests.HUB_ID.fullmatch(name) and not os.path.exists(folder)):
        snapshot = hub.download(entry.repo if entry and entry.repo else name, revision)
        return snapshot.path, Base(snapshot.repo, snapshot.revision, snapshot.licence, snapshot.weights)
    near = " or ".join(map(repr, catalog.nearest(name)))
    raise UnknownModel(
        f"no model is called {name!r:.300}{f' (did you mean {near}?)' if near else ''}; give a short name from the README's "
        "table, a hub id (owner/name) or a folder that save_pretrained wrote"
    )
