"""What training a model will take, said before anything large is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from mmlora import guests
from mmlora.adapters.config import CONFIG, named_base
from mmlora.errors import on_one_line
from mmlora.models import catalog, hub
from mmlora.models.vlm import UnknownModel, refuse_speechless
from mmlora.paths import RESULTS
from mmlora.reporting.machine import GB, machine
from mmlora.reporting.record import Metrics, MetricsError
from mmlora.settings import Settings

TEXT_TOKENS = 256  # assumed for one problem: question, choices, lecture and answer
VISUAL_TOKENS = 256  # assumed for a model that the catalogue lacks
#: Bytes that a trained layer keeps for its backward pass, for each token and each number of its width, in 16 bits:
#: Korthikanti et al. 2022 (arXiv 2205.05198), without the attention matrix, which torch computes anew.
KEPT_BYTES = 34
#: A trainable number in float32 with its gradient and AdamW's two moments.
TRAINED_BYTES = 16
#: A frozen number in NF4 with its share of the scales, and of the embeddings, which stay in 16 bits (QLoRA, arXiv 2305.14314).
NF4_BYTES = 0.6
LARGE = 2_900_000_000  # parameters from which on four bits are offered: a smaller model fits every card as it is


@dataclass(frozen=True)
class Needs:
    """The needs of one model; None where they cannot be known yet. `str` makes the table."""

    name: str
    download: int  # bytes
    parameters: int | None
    trainable: int | None  # numbers in the adapter that `lora.attach` makes: all linear maps of the upper half
    activations: int | None  # bytes for one batch in 16-bit numbers, roughly
    problems: int
    speed: float | None  # training samples/s, measured on a machine like this
    record: str | None  # where that was recorded
    advice: str = ""
    seen: str = ""

    def memory(self, bytes_each: int) -> int | None:
        """Bytes with weights of so many bytes each; activations grow alike."""
        if not (self.parameters and self.trainable and self.activations):
            return None
        return bytes_each * self.parameters + TRAINED_BYTES * self.trainable + self.activations * bytes_each // 2

    def memory_nf4(self) -> int | None:
        """Bytes with frozen weights in four bits and all else as in 16 bits."""
        whole = self.memory(2)
        return None if whole is None or self.parameters is None else round(whole - (2 - NF4_BYTES) * self.parameters)

    def __str__(self):
        lines = {"download": _gb(self.download) if self.download else "nothing, it is here"}
        if self.parameters:
            lines["parameters"] = f"{self.parameters:,}"
            lines["weights"] = f"{_gb(4 * self.parameters)} in float32, {_gb(2 * self.parameters)} in 16 bits"
        if self.trainable:
            lines["adapter"] = (
                f"{self.trainable:,} numbers, with optimizer {TRAINED_BYTES * self.trainable / 1e6:.1f} MB"
            )
            lines["activations"] = f"very roughly {_gb(self.activations)} in 16 bits for a step"
        if self.memory(2):
            lines["memory in all"] = f"roughly {_gb(self.memory(4))} in float32, {_gb(self.memory(2))} in 16 bits"
        else:
            lines["memory in all"] = "not known yet: its configuration is not here, or lacks the sizes"
        if self.memory(2) and self.parameters >= LARGE:
            lines["with NF4"] = (
                f"roughly {_gb(self.memory_nf4())}: mmlora run --four-bit on an NVIDIA card, with bitsandbytes"
            )
        lines["an epoch"] = "not measured yet on a machine like this"
        if self.speed:
            minutes = self.problems / self.speed / 60
            lines["an epoch"] = (
                f"{minutes:.0f} minutes for {self.problems:,} problems ({self.record}: {self.speed:g} samples/s)"
            )
        if self.advice:
            lines["machine"] = self.advice
        if self.seen:
            lines["has seen"] = self.seen
        return "\n".join([self.name, *(f"  {what:<15}{text}" for what, text in lines.items())])


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def needs(name: str, *, problems: int = 12_726, settings: Settings = Settings()) -> Needs:
    """Look the model up in the catalogue, on the hub or in its folder; 12,726 problems are ScienceQA's training split.

    Raises `hub.HubError` where the hub does not have it or cannot be asked.
    """
    entry = catalog.find(name)
    if (Path(name) / CONFIG).is_file():
        raise UnknownModel(
            f"{name} is an adapter; a run trains a fresh one: ask for its base, {named_base(Path(name))}"
        )
    if entry and entry.repo is None:
        total, missing = guests.guest("models", entry.name).download()
        found = hub.Sizes(total, missing, entry.parameters, None)
    elif (Path(name) / "config.json").is_file():
        hub.known_config(Path(name) / "config.json", name)
        found = hub.folder_sizes(Path(name))
    else:
        found = hub.sizes(entry.repo if entry and entry.repo else name)
    trainable, activations = None, None
    if found.config and (widths := _widths(config := _decoder(name, found.config))):
        layers = max(1, config.num_hidden_layers // 2)
        tokens = TEXT_TOKENS + (entry.visual_tokens if entry else VISUAL_TOKENS)
        trainable = layers * settings.rank * widths
        activations = layers * KEPT_BYTES * settings.batch_size * tokens * config.hidden_size
    speed, record = _measured({name, *((entry.name, entry.repo) if entry else ())})
    parameters = found.parameters or (entry.parameters if entry else None)
    said = (entry.advice, entry.seen) if entry else ()
    return Needs(name, found.missing, parameters, trainable, activations, problems, speed, record, *said)


def _decoder(name: str, said: dict) -> Any:
    """The configuration of the language decoder. Raises `UnknownModel` if there is none, `HubError` if it is not valid."""
    kind = said.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise UnknownModel(
            f"transformers {transformers.__version__} does not know the architecture {kind!r} of {name}; update transformers "
            "or choose another model"
        )
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(said)
        refuse_speechless(name, config)
        return config.get_text_config()
    except (AttributeError, TypeError, ValueError, StrictDataclassError) as error:
        reason = on_one_line(error, 300)
        raise hub.HubError(f"the configuration of {name} is not valid ({reason}); copy or fetch it again") from error


def _widths(config: Any) -> int | None:
    """Inputs plus outputs of a layer's linear maps q, k, v, o, gate, up, down: the numbers that one rank adds to it.

    None for a decoder whose configuration has other names for its sizes.
    """
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    if not all(isinstance(getattr(config, name, None), int) for name in names):
        return None
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    query, key = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
    return 2 * (width + query) + 2 * (width + key) + 3 * (width + config.intermediate_size)


def _measured(names: set[str]) -> tuple[float, str] | tuple[None, None]:
    """Samples/s and the file of a recorded run of this model on such a machine."""
    here = _kind(machine())
    for file in sorted(RESULTS.glob("*.json")):
        try:
            run = Metrics.load(file)
        except MetricsError:  # another kind of record
            continue
        if run.model in names and _kind(run.machine) == here:
            return run.samples_per_second, file.name
    return None, None


def _kind(of: dict) -> tuple:
    return (of["gpu"],) if of["gpu"] else (of["cpu"], of["cores"], of["precision"])
