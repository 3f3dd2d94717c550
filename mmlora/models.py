"""Models by name: `load_vlm` gives a model with its processor, `smolbridge` puts SmolBridge together once."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedModel,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    ViTImageProcessor,
)

from mmlora import catalog, hub, weights
from mmlora.errors import MMLoraError
from mmlora.memory import reuse_blocks
from mmlora.paths import WEIGHTS, cache_home
from mmlora.precision import device, nf4, weights_dtype
from mmlora.resolution import set_side, visual_tokens
from mmlora.smolbridge import (
    IMAGE_TOKEN,
    SmolBridgeConfig,
    SmolBridgeForConditionalGeneration,
    SmolBridgeProcessor,
    plain_tower,
    without_norms,
)

#: SmolLM2's own template, without its system prompt (every prompt token costs time) and with pictures.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRIDGE = WEIGHTS / "smolbridge" / "bridge.safetensors"


class UnknownModel(MMLoraError):
    """No model has this name; the message lists the nearest ones."""


@dataclass(frozen=True)
class VLM:
    """A vision-language model and the processor that feeds it."""

    name: str
    model: PreTrainedModel
    processor: object
    revision: str | None = None  # the commit on the hub that it came from


class TextProcessor:
    """A language model's tokenizer in a processor's place: the baseline that sees no picture."""

    image_token = image_token_id = None

    def __init__(self, tokenizer):
        self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict], **options) -> str:
        flat = [{**m, "content": "".join(part.get("text", "") for part in m["content"])} for m in messages]
        return self.tokenizer.apply_chat_template(flat, tokenize=False, **options)

    def __call__(self, images=None, text=None, return_tensors: str = "pt"):
        return BatchFeature(dict(self.tokenizer(text, return_tensors=return_tensors)))


def base_model(model):
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model) -> nn.ModuleList:
    """The decoder's layers, wherever the architecture keeps them."""
    return base_model(model).get_decoder().layers


def load_vlm(
    name: str = "smolbridge", *, side: int | None = None, revision: str | None = None, four_bit: bool = False
) -> VLM:
    """Load a model by its short name (`mmlora.catalog`), its hub id, or from a folder that `save_pretrained` wrote.

    It comes in evaluation mode, on the best device here, in the precision that suits it. `side` bounds the size of
    pictures in pixels (`mmlora.resolution`), `revision` is a commit or tag on the hub, `four_bit` keeps frozen weights
    in NF4 (QLoRA, arXiv 2305.14314).
    Raises `UnknownModel` (with the nearest names), `HubError`, `ResolutionError`, `PrecisionError` and
    `weights.WeightsError`.
    """
    entry, folder, commit = catalog.find(name), Path(name), None
    if (folder / "config.json").is_file():
        pass
    elif entry and entry.repo is None:
        folder = smolbridge()
    elif entry or (catalog.HUB_ID.fullmatch(name) and not folder.exists()):
        snapshot = hub.download(entry.repo if entry else name, revision)
        folder, commit = snapshot.path, snapshot.revision
    else:
        near = " or ".join(repr(n) for n in catalog.nearest(name))
        raise UnknownModel(f"no model is called {name!r}" + (f" (did you mean {near}?)" if near else "") + "; give a short name "
                           "from the README's table, a hub id (owner/name) or a folder that save_pretrained wrote")
    reuse_blocks()
    sees = type(AutoConfig.from_pretrained(folder)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    placed = {"quantization_config": nf4(), "device_map": {"": device()}} if four_bit else {}
    model = kind.from_pretrained(folder, dtype=weights_dtype(), use_safetensors=True, **placed)
    if not four_bit:
        model = model.to(device())
    processor = AutoProcessor.from_pretrained(folder) if sees else TextProcessor(AutoTokenizer.from_pretrained(folder))
    if side is not None:
        set_side(processor, side)
        print(f"a picture of 512 x 384 pixels takes {visual_tokens(processor)} tokens")
    elif entry and entry.size:
        processor.image_processor.size = type(processor.image_processor.size)(**entry.size)
    return VLM(name, model.eval(), processor, commit)


def smolbridge(bridge: Path | None = BRIDGE, **config) -> Path:
    """The folder of the assembled SmolBridge, made at the first call (tens of seconds) and kept in the user cache.

    `bridge` holds the aligned connector and says its sizes (None: a fresh, unaligned one); `config` overrides sizes of
    `SmolBridgeConfig`. Raises `weights.WeightsError` when a part is missing or cannot be kept.
    """
    if bridge and not Path(bridge).is_file():
        raise weights.WeightsError(f"the aligned bridge is not at {bridge}; restore it with `git checkout weights`, install "
                                   "mmlora again, or make one with `python -m mmlora.align`")
    settings = {"config": config, "bridge": weights.sha256(bridge) if bridge else None,
                "language": weights.LANGUAGE.sha256, "vision": weights.VISION.sha256,
                "code": weights.sha256(Path(sys.modules[SmolBridgeConfig.__module__].__file__))}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    target = cache_home() / "models" / f"smolbridge-{key}"
    if (target / "config.json").is_file():
        return target
    gguf, vision = weights.fetch(weights.LANGUAGE), weights.fetch(weights.VISION)
    model, processor = _assemble(gguf, vision, bridge, config)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
        try:
            model.half().save_pretrained(aside)  # half of the space; the source is 4 bits a weight
            processor.save_pretrained(aside)
            if not (target / "config.json").is_file():  # another process may have been faster
                aside.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise weights.WeightsError(
            f"could not save the assembled SmolBridge under {target.parent}: {error.strerror or error}; free about "
            "300 MB or set MMLORA_HOME to another folder, then run again"
        ) from error
    return target


def _assemble(gguf: Path, vision: Path, bridge: Path | None, config: dict):
    language = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    text_config = AutoConfig.for_model("llama", **{
        name: getattr(language.config, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "rope_parameters",
                     "bos_token_id", "eos_token_id", "tie_word_embeddings")
    }, pad_token_id=0)
    connector = _connector(bridge) if bridge else {}
    torch.manual_seed(0)
    model = SmolBridgeForConditionalGeneration(SmolBridgeConfig(text_config=text_config, **_sizes(connector), **config)).float()
    model.model.language_model.load_state_dict(language.model.state_dict())
    _load_vision(model.model.vision_tower, vision)
    if connector:
        model.model.connector.load_state_dict(connector)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    return model, _processor(gguf, model.config)


def _load_vision(tower: nn.Module, file: Path) -> None:
    """The published tensors have other names but the same order as timm's model; the classifier is left out."""
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [tuple(t.shape) for t in tensors.values()] != [tuple(t.shape) for t in whole.values()]:
        raise weights.WeightsError(f"{file.name} does not fit timm's tf_efficientnet_lite0; fetch it anew")
    named = dict(zip(whole, tensors.values()))
    plain = plain_tower("tf_efficientnet_lite0")
    plain.load_state_dict({name: named[name] for name in plain.state_dict()})
    tower.load_state_dict(without_norms(plain).state_dict())


def _connector(bridge: Path) -> dict[str, torch.Tensor]:
    """The connector's tensors as `mmlora.align` wrote them."""
    return {name.removeprefix("connector."): t for name, t in load_file(bridge).items()}


def _sizes(connector: dict[str, torch.Tensor]) -> dict[str, int]:
    """What the tensors say about the sizes in `SmolBridgeConfig`; nothing for a fresh connector."""
    if not connector:
        return {}
    words = len(connector["word_ids"])
    return {"cell_width": len(connector["describe.weight"]), "bridge_width": len(connector["read.weight"]),
            "dictionary": words, "visual_tokens": len(connector["write.weight"]) // words}


def _processor(gguf: Path, config: SmolBridgeConfig) -> SmolBridgeProcessor:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.pad_token = "<|endoftext|>"
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == config.image_token_id
    size = {"height": config.image_size, "width": config.image_size}
    pictures = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return SmolBridgeProcessor(pictures, tokenizer, CHAT_TEMPLATE, visual_tokens=config.visual_tokens)
