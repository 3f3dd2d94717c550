"""Everything that defines a run, in one place: the command line, notebook 04, the benchmarks and the records read it here.

Importing this imports nothing heavy, so that `mmlora run --help` is quick.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mmlora.encoding.prompts import Format
from mmlora.errors import MMLoraError
from mmlora.evaluation.scores import Method
from mmlora.problems.rows import MissingImages
from mmlora.training.settings import Tracker, TrainSettings, usual_rate

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Split = Literal["validation", "test"]
Tower = Literal["vision", "connector", "language"]
SEEDS = 2**31  # as many numbers as every library's dice take
QUICK = 10  # minutes that are too few to teach a connector MiniSQA's pictures too
POSITIVE = ("minutes", "train_minutes", "steps", "train_problems", "test_problems", "rank", "alpha", "learning_rate", "batch_size",
            "side")  # fmt: skip
TRAIN = {each.name: each.default for each in fields(TrainSettings)}  # a default of training stands there, once


class SettingsError(MMLoraError, ValueError):
    """A setting that does not exist or cannot be; the message names the nearest one or what it may be."""


def _setting(default: Any, group: str, why: str) -> Any:
    return field(default=default, metadata={"group": group, "why": why})


@dataclass(frozen=True)
class Settings:
    """One run. Every field has its group, and the reason for its default, as the command line shows them.

    Raises `SettingsError` for a value that cannot be.
    """

    model: str = _setting(
        "",
        "What",
        "Short name (see `mmlora plan`), hub id or folder; none is smolbridge-world, which needs no GPU, or for less "
        "than ten minutes of MiniSQA smolbridge, which has read its pictures before.",
    )
    revision: str | None = _setting(None, "What", "Commit or tag of the model on the hub; none is the newest.")
    data: str = _setting(
        "minisqa", "What", "A guest's name, a hub data set such as derek-thomas/ScienceQA, or a folder."
    )
    missing_images: MissingImages = _setting(
        "error", "What", "Read problems whose picture is missing as text, or stop."
    )

    minutes: float = _setting(60, "How long", "Minutes of work in all: data, alignment, cache, training, scoring.")
    train_minutes: float | None = _setting(
        None, "How long", "Minutes of training alone, to compare rivals at equal time."
    )
    steps: int | None = _setting(
        None, "How long", "Optimizer steps instead; with align_minutes 0 the training repeats exactly on a CPU."
    )
    train_problems: int | None = _setting(
        None, "How long", "Problems to train on; none is as many as the minutes allow."
    )
    test_problems: int | None = _setting(None, "How long", "Problems to score; none is as many as the minutes allow.")
    few_samples: bool = _setting(
        False,
        "How long",
        "Train even if the minutes allow too few samples to learn anything from, instead of stopping.",
    )
    probe_problems: int | None = _setting(
        None, "How long", "Validation problems answered on the way; none is as many as pay, 0 is none."
    )

    align_minutes: float | None = _setting(
        None,
        "How long",
        "Minutes in which the connector learns to read captions first; none is what the model asks for.",
    )

    rank: int = _setting(
        16,
        "Adapter",
        "Rank of each LoRA product; 4 learns more slowly, and 64 is no better after an hour (docs/recipe.md).",
    )
    alpha: int | None = _setting(None, "Adapter", "Its scale, divided by the rank; none is twice the rank.")
    first_layer: int | None = _setting(
        None, "Adapter", "Decoder layer where LoRA begins; none is the middle: below is cached."
    )
    targets: tuple[str, ...] = _setting(
        ("all-linear",), "Adapter", "Linear modules by the end of their name, as q_proj,v_proj."
    )
    towers: tuple[Tower, ...] = _setting(
        ("language",), "Adapter", "Of vision, connector, language; only language can be cached."
    )
    train_connector: bool = _setting(
        False, "Adapter", "Train the connector's own weights too, at a tenth of the rate; nothing can be cached then."
    )

    format: Format = _setting(
        "explanation_answer", "Training", "What is said; the reason first, then the answer leans on it."
    )
    learning_rate: float | None = _setting(
        None, "Training", "Peak rate; none is 2e-3 for decoders as wide as SmolLM2-135M's, less for wider ones."
    )
    batch_size: int = _setting(
        TRAIN["batch_size"], "Training", "Samples a step; in an hour steps are scarcer than samples."
    )
    seed: int = _setting(
        TRAIN["seed"], "Training", "Of the adapter's start, and of the order in which samples and captions are learned."
    )
    report_to: Tracker = _setting(
        TRAIN["report_to"],
        "Training",
        "Tracker of loss, rate, norm, speed and validation; tensorboard writes into the run's folder.",
    )

    side: int | None = _setting(
        None, "Machine", "Pixels a side of a picture, where the model can choose: memory follows it."
    )
    four_bit: bool = _setting(False, "Machine", "Keep frozen weights in NF4 (QLoRA): from 3 billion parameters on.")
    precision: Precision = _setting(
        "auto", "Machine", "Numbers that are multiplied; auto measures which are fast here."
    )

    fused: bool = _setting(
        TRAIN["fused"], "Machine", "Fewer, larger products for the same numbers; off, the plain layers of transformers."
    )

    method: Method = _setting("generate", "Scoring", "How answers are found after training; the model must say them.")
    split: Split = _setting("test", "Scoring", "Search settings on validation; test is for the record, once.")

    def __post_init__(self):
        object.__setattr__(self, "model", "" if self.model is None else self.model)
        for name, kind in get_type_hints(type(self)).items():
            value = _plain(name, kind, getattr(self, name))
            object.__setattr__(self, name, value)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise SettingsError(
                    f"{name} is {value!r}; it can be {', '.join(get_args(kind))}{_hint(value, get_args(kind))}"
                )
        if strange := [tower for tower in self.towers if tower not in get_args(Tower)]:
            raise SettingsError(f"no tower is called {strange[0]!r}; there are {', '.join(get_args(Tower))}")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name} is {value!r}; give a number above 0")
        for name in ("probe_problems", "align_minutes", "first_layer"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise SettingsError(f"{name} is {value}; give 0 for none, or a number above")
        for name in ("towers", "targets"):
            if not all(getattr(self, name) or [""]):
                raise SettingsError(f"{name} is empty; name at least one")
        for name, kind in get_type_hints(type(self)).items():
            _refuse_endless(name, kind, getattr(self, name))
        if not 0 <= self.seed < SEEDS:
            raise SettingsError(f"seed is {self.seed}; give a whole number from 0 to {SEEDS - 1:,}")
        if self.method == "lmms_eval":
            raise SettingsError("method lmms_eval counts a bare letter, which no format teaches: it is for models as published, "
                                "in evaluate(); give another method")  # fmt: skip
        letters = self.format.startswith("QCM")
        if self.method == ("generate" if letters else "official"):
            says, wants = ("letters", "words") if letters else ("words", "letters")
            raise SettingsError(
                f"format {self.format} teaches {says} and method {self.method} looks for {wants}, so that no answer would be found: give "
                f"{'method official or letter' if letters else 'method generate, or a format that begins with QCM'}"
            )
        if self.steps is not None and self.train_minutes is not None:
            raise SettingsError("steps and train_minutes are both given; training ends by one of them")
        object.__setattr__(self, "model", self.model or self._usual_model())

    @classmethod
    def of(cls, changes: Mapping[str, Any]) -> Settings:
        """The defaults with these changes. Raises `SettingsError` for a name that is none, with the nearest one."""
        known = [each.name for each in fields(cls)]
        for name in changes:
            if name not in known:
                raise SettingsError(f"no setting is called {name!r}{_hint(name, known)}; there are {', '.join(known)}")
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in changes.items()}
        return cls(**given)

    def changes(self) -> dict[str, Any]:
        """What differs from the defaults, as `of` takes it."""
        usual = {each.name: each.default for each in fields(self)} | {"model": self._usual_model()}
        return {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}

    def _usual_model(self) -> str:
        quick = self.data == "minisqa" and self.minutes < QUICK and not self.align_minutes
        return "smolbridge" if quick else "smolbridge-world"

    def command(self) -> str:
        """The command line that starts this run."""
        words = ["mmlora", "run"]
        for name, value in self.changes().items():
            words.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
            if not isinstance(value, bool):
                words.append(",".join(value) if isinstance(value, tuple) else str(value))
        return shlex.join(words)

    def for_width(self, width: int) -> Settings:
        """The same with the learning rate settled, for a decoder whose states are so wide."""
        return self if self.learning_rate is not None else replace(self, learning_rate=usual_rate(width))

    def training(self, minutes: float | None) -> TrainSettings:
        """What `fit` needs: these minutes, or the steps where the settings count them."""
        rate = self.learning_rate or TrainSettings.learning_rate
        budget = {"steps": self.steps} if self.steps is not None else {"minutes": minutes}
        return TrainSettings(**budget, learning_rate=rate, batch_size=self.batch_size, seed=self.seed, fused=self.fused,
                             report_to=self.report_to)  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The form kept in metrics.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def _repr_markdown_(self) -> str:
        """A notebook's table: what was changed, and beside it what everything is."""
        rows = [f"| {e.name} | {getattr(self, e.name)} | {e.metadata['why']} |" for e in fields(self)]
        return "\n".join(["| setting | value | why |", "|---|---|---|", *rows])


def _plain(name: str, kind: Any, value: Any) -> Any:
    """The value as one of Python's own types. Raises `SettingsError` for a value of another kind than the setting's."""
    kinds = get_args(kind) if type(None) in get_args(kind) else (kind,)
    if get_origin(kind) is Literal or (value is None and type(None) in kinds):
        return value
    if get_origin(kind) is tuple:
        names = value.split(",") if isinstance(value, str) else value
        if isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names):
            return tuple(each.strip() for each in names)
    elif kinds[0] is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    elif kinds[0] is bool and isinstance(value, bool):
        return value
    elif kinds[0] in (int, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    number = "a number above 0" if name in POSITIVE else "a number"
    what = {str: "a name or a path", bool: "True or False", int: number, float: number}
    raise SettingsError(f"{name} is {value!r:.60}; give {what.get(kinds[0], 'names separated by commas')}")


def _refuse_endless(name: str, kind: Any, value: object) -> None:
    """Raise `SettingsError` for a number that is not finite, and for a fraction where a whole number is needed."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name} is {value}; give a finite number")
    if isinstance(value, float) and float not in (kind, *get_args(kind)):
        raise SettingsError(f"{name} is {value}; give a whole number")


def _hint(name: object, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, 1, 0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
