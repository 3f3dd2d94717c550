"""LoRA adapters through peft: attach one, see where it went, save it, load it.

A multimodal model has three towers (vision, connector, language). Every function here tells them apart, because the
usual silent mistake is an adapter in the wrong one. Source of the method: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from mmlora.errors import MMLoraError

Tower = Literal["vision", "connector", "language"]
TOWERS: tuple[Tower, ...] = ("vision", "connector", "language")

_CONNECTOR = re.compile(r"connector|bridge|projector|merger|aligner|resampler|qformer|(image|vision|language)_proj")
_VISION = re.compile(r"vision|visual|image_(encoder|tower)|vit")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


class AdapterError(MMLoraError):
    """An adapter that cannot be attached, trained, saved or loaded; the message says what to do."""


def tower_of(name: str) -> Tower:
    """The tower that a module or parameter belongs to, told from its dotted name as transformers writes it."""
    parts = name.split(".")
    if any(_CONNECTOR.search(part) for part in parts):
        return "connector"
    return "vision" if any(_VISION.match(part) for part in parts) else "language"


@dataclass(frozen=True)
class TowerRow:
    tower: Tower
    modules: int
    trainable: int
    parameters: int


@dataclass(frozen=True)
class TowerReport:
    """What will train, tower by tower; printing it gives a table."""

    rows: tuple[TowerRow, ...]

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    def __str__(self):
        lines = [f"{'tower':<10} {'modules':>8} {'trainable':>12} {'of all':>8}"]
        sums = ("total", sum(r.modules for r in self.rows), self.trainable)
        for tower, modules, trainable in [*((r.tower, r.modules, r.trainable) for r in self.rows), sums]:
            lines.append(f"{tower:<10} {modules:>8} {trainable:>12,} {trainable / max(1, self.parameters):>8.2%}")
        return "\n".join(lines)


def towers(model: nn.Module) -> TowerReport:
    """Modules with something to train, trainable and all parameters of `model`, by tower."""
    modules = {tower: set() for tower in TOWERS}
    trainable, everything = dict.fromkeys(TOWERS, 0), dict.fromkeys(TOWERS, 0)
    for name, parameter in model.named_parameters():
        tower = tower_of(name)
        everything[tower] += parameter.numel()
        if parameter.requires_grad:
            trainable[tower] += parameter.numel()
            modules[tower].add(re.sub(r"\.(lora_.*|[^.]*)$", "", name))
    return TowerReport(tuple(TowerRow(t, len(modules[t]), trainable[t], everything[t]) for t in TOWERS))


def gradient_norms(model: nn.Module) -> dict[Tower, float]:
    """The gradient's L2 norm in every tower that trains, after a backward pass; 0 where none arrived."""
    squares: dict[Tower, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tower = tower_of(name)
            gradient = 0.0 if parameter.grad is None else parameter.grad.float().norm().item()
            squares[tower] = squares.get(tower, 0.0) + gradient**2
    return {tower: math.sqrt(square) for tower, square in squares.items()}


def attach(
    model: nn.Module,
    rank: int = 16,
    alpha: int | None = None,
    layers: Iterable[int] | None = None,
    targets: Iterable[str] | Literal["all-linear"] = "all-linear",
    *,
    within: Iterable[Tower] = ("language",),
    dropout: float = 0.0,
    seed: int = 0,
) -> PeftModel:
    """Wrap `model` with a fresh LoRA adapter, freeze all else, print the table by tower.

    `alpha` is 2 x `rank` unless given. `layers` are decoder layers; None means the upper third. `targets` are the last parts of
    module names ("q_proj"), or every linear projection of those layers (and of the other towers in `within`).
    Raises `AdapterError` for a second attach, a target or tower that matches nothing, a layer out of range, and inside
    `torch.inference_mode`, whose tensors can never train.
    """
    if torch.is_inference_mode_enabled():
        raise AdapterError("an adapter attached inside torch.inference_mode could never train; attach it outside")
    if _is_wrapped(model):
        raise AdapterError("this model carries an adapter already; call .unload() on it or load the base model again")
    names = _target_names(model, layers, targets, tuple(within))
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout, target_modules=names
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = _wrapped(model, config)
    print(towers(wrapped))
    return wrapped


def _wrapped(model: nn.Module, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():  # peft asks transformers by a name that it will drop: nothing a user can mend
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def _is_wrapped(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) or any(isinstance(m, BaseTunerLayer) for m in model.modules())


def _target_names(model, layers, targets, within) -> list[str]:
    """Full names of the linear modules to adapt, in the model's order."""
    linear = {t: [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and tower_of(n) == t] for t in within}
    if "language" in linear:
        chosen = _chosen_layers(model, linear["language"], layers)
        linear["language"] = [n for n in linear["language"] if (m := _LAYER.search(n)) and int(m[1]) in chosen]
    for tower, names in linear.items():
        if not names:
            raise AdapterError(f"the {tower} tower has no linear module to adapt; leave it out of `within`")
    found = [name for names in linear.values() for name in names]
    if targets == "all-linear":
        return found
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    endings = sorted({name.rsplit(".", 1)[-1] for name in found})
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in found):
            near = difflib.get_close_matches(target, endings, 3, 0.3) or endings[:8]
            raise AdapterError(f"the target {target!r} matches no linear module there; choose among {', '.join(near)}")
    return [name for name in found if any(f".{name}".endswith(f".{target}") for target in wanted)]


def _chosen_layers(model, names: list[str], layers: Iterable[int] | None) -> set[int]:
    count = 1 + max((int(m[1]) for n in names if (m := _LAYER.search(n))), default=-1)
    if layers is None:
        return set(range(count - max(1, count // 3), count))
    chosen = set(layers)
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        asked = f"layers {min(chosen)} to {max(chosen)}" if chosen else "no layers"
        raise AdapterError(f"{asked} of the decoder were asked for, but it has 0 to {count - 1}; choose among these")
    return chosen


def fingerprint(model: nn.Module) -> str:
    """A hash of the base weights under any adapter: all names and shapes, 64 values of each tensor as bfloat16.

    Sampling keeps it under a second for any size; bfloat16 makes it the same for a model loaded in that dtype.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted((_base_name(n), p) for n, p in model.named_parameters() if ".lora_" not in n):
        values = parameter.detach().flatten()
        values = values[:: max(1, values.numel() // 64)][:64].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _model_name(model: nn.Module) -> str:
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return Path(name).name if Path(name).is_dir() else name


def save_adapter(model: PeftModel, folder: str | Path, card_fields: Mapping[str, object]) -> Path:
    """Write `adapter_model.safetensors`, `adapter_config.json` and a filled `README.md` into `folder`.

    `card_fields` become rows of the card's table, in order; `title`, `summary` and `license` have places of their own.
    Raises `AdapterError` when something outside the adapter was trained, which such files cannot hold.
    """
    extra = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    if extra:
        raise AdapterError(f"{extra[0]} was trained beside the adapter and would be lost; save that module on its own")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = model.get_base_model()
    tensors = {n: t.detach().cpu().contiguous() for n, t in get_peft_model_state_dict(model).items()}
    marks = {"format": "pt", "base_model": _model_name(base), "base_fingerprint": fingerprint(model)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata=marks)
    config = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    config["base_model_name_or_path"] = _model_name(base)
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "README.md").write_text(_card(model, marks, dict(card_fields)), encoding="utf-8")
    return folder


def _card(model: PeftModel, marks: Mapping[str, str], fields: dict[str, object]) -> str:
    title = fields.pop("title", f"LoRA adapter for {marks['base_model']}")
    summary = fields.pop("summary", "A low-rank adapter for a vision-language model, trained with mmlora.")
    config = model.peft_config["default"]
    size = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    facts = {
        "base model": marks["base_model"], "base fingerprint": f"`{marks['base_fingerprint'][:16]}`",
        "rank, alpha, dropout": f"{config.r}, {config.lora_alpha}, {config.lora_dropout}",
        "parameters": f"{size:,}", **fields,
    }
    front = {"base_model": marks["base_model"], "library_name": "peft", "license": fields.pop("license", "other")}
    facts["license"] = front["license"]
    head = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    rows = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in facts.items()]
    use = ["```python", "from mmlora.lora import load_adapter", "model = load_adapter(base_model, folder)", "```"]
    lines = ["---", *head, "tags: [lora, image-text-to-text]", "---", f"# {title}", "", summary, "", "## Facts", ""]
    return "\n".join([*lines, "| | |", "|---|---|", *rows, "", "## Use", "", *use, ""])


def load_adapter(model: nn.Module, folder: str | Path) -> PeftModel:
    """Wrap `model` with the adapter in `folder`, frozen and in evaluation mode.

    Reads safetensors only. Raises `AdapterError` when the base is another one, when keys or shapes do not fit exactly,
    or when the model is wrapped already; the model is then as it was.
    """
    folder = Path(folder)
    if _is_wrapped(model):
        raise AdapterError("this model carries an adapter already; call .unload() on it or load the base model again")
    tensors, marks = _read_adapter(folder)
    config = LoraConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"{folder} holds a {config.peft_type} adapter; only LoRA can be loaded here")
    named = config.base_model_name_or_path
    if marks.get("base_fingerprint", "") not in ("", fingerprint(model)) or (
        "base_fingerprint" not in marks and named and Path(named).name != Path(_model_name(model)).name
    ):
        raise AdapterError(
            f"the adapter in {folder} was trained on other weights ({named}) than this model's ({_model_name(model)}); "
            f"load it onto the base it was trained on"
        )
    config.base_model_name_or_path = None  # peft would warn about a name that is merely spelled otherwise
    try:
        wrapped = _wrapped(model, config)
    except ValueError as error:
        raise AdapterError(f"the adapter in {folder} does not fit this model: {error}") from error
    problem = _mismatch(tensors, get_peft_model_state_dict(wrapped))
    if problem:
        wrapped.unload()
        raise AdapterError(f"the adapter in {folder} is not what its configuration says: {problem}; fetch it again")
    set_peft_model_state_dict(wrapped, tensors)
    return wrapped.eval()


def _read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} has no {name}; give a folder that save_adapter wrote (pickles are not read)")
    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise AdapterError(f"{folder / 'adapter_model.safetensors'} is damaged ({error}); fetch it again") from error


def _mismatch(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What is missing, unexpected or of another shape, in words; empty when all fits."""
    for what, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            return f"{len(names)} tensors are {what}, such as {min(names)}"
    wrong = [name for name in sorted(found) if found[name].shape != expected[name].shape]
    return f"{wrong[0]} has shape {list(found[wrong[0]].shape)}, not {list(expected[wrong[0]].shape)}" if wrong else ""
