"""What the minutes of a run allow on this machine: how many answers, how much training, and whether that is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import nn

from mmlora import threads
from mmlora.budget import Budget
from mmlora.evaluation.pace import Answer, Pace
from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import Problem
from mmlora.settings import Settings
from mmlora.training.log import TrainingError
from mmlora.training.settings import TrainingSet
from mmlora.training.trial import samples_per_second

SPARE = 1.1  # of the time that scoring was estimated to take
CLOSING = 0.4  # minutes for maps, examples and the report, about what two cores take
MOST = 0.3  # of the minutes for scoring, as on a quiet machine: a slow one scores fewer problems and trains longer
BASE_TRIAL = 16  # problems that are answered to see how long the baseline will take
BASE_SHARE = 0.1  # of the minutes, which the baseline may take before it is scored on fewer problems
WORTH = 1.1  # how much faster fewer threads have to be before a run takes them
FEWEST = 400  # samples; fewer taught nothing of MiniSQA (results/speed/few_samples.json)


class Timing:
    """The time of one run. `pace` is how long answers take and how many are wanted, once `expect` knows."""

    def __init__(self, settings: Settings, budget: Budget):
        self.settings, self.budget = settings, budget
        self.pace: Pace | None = None

    @property
    def promised(self) -> bool:
        """Whether the minutes are the only limit: no steps, minutes of training or number of test problems were set."""
        chosen = self.settings
        return chosen.steps is None and chosen.train_minutes is None and chosen.test_problems is None

    @property
    def reserved(self) -> float | None:
        """Minutes that are kept for scoring; None until `expect`."""
        return None if self.pace is None else self._kept(self.pace.seconds * self.pace.wanted / 60)

    @property
    def closing(self) -> float:
        """Minutes for what comes after the answers: maps, examples, the report."""
        return min(CLOSING, 0.1 * self.budget.minutes) if self.promised else 0.0

    def _kept(self, minutes: float) -> float:
        """The minutes to reserve if answering takes `minutes`."""
        whole = self.budget.test_problems is None  # it is scored in full, to compare with published figures
        if self.promised and not whole:
            minutes = min(minutes, MOST * self.budget.minutes)
        return minutes + self.closing

    def baseline(self, problems: Sequence[Problem], answer: Answer) -> tuple[list[Problem], list[Prediction]]:
        """The base model's answers; where all would take more than `BASE_SHARE` of the minutes, to fewer problems."""
        if not self.promised:
            return list(problems), answer(list(problems))
        end = self.budget.elapsed() + BASE_SHARE * self.budget.minutes
        answer(list(problems[:1]))  # the first answer prepares the libraries
        trial = list(problems[:: max(1, len(problems) // BASE_TRIAL)][:BASE_TRIAL])
        began = perf_counter()
        answer(trial)
        pace = Pace((perf_counter() - began) / len(trial), len(problems), lambda: 60 * (end - self.budget.elapsed()))
        return pace.answered(problems, answer)

    def expect(self, seconds: float, wanted: int) -> None:
        """Estimate scoring: `wanted` answers take `seconds` in all, judging by a trial; a tenth is added."""
        left = (lambda: 60 * (self.budget.left() - self.closing)) if self.promised else None
        self.pace = Pace(SPARE * seconds / max(1, wanted), wanted, left)

    def probed(self, seconds: float, answers: int) -> None:
        """The same from a probe during training, when the model already answers much as it will in the end."""
        if self.pace is not None:
            self.pace.seconds = SPARE * seconds / answers

    def prepare(self, model: nn.Module, samples: TrainingSet, minutes: float) -> None:
        """Choose the number of threads and refuse a training that would see too few samples."""
        settings = self.settings.training(minutes)
        speed = samples_per_second(model, samples, settings)
        if speed is not None and model.device.type == "cpu" and (fewer := threads.fewer()):
            before = torch.get_num_threads()
            torch.set_num_threads(fewer)
            other = samples_per_second(model, samples, settings) or 0.0
            if other > WORTH * speed:
                print(f"training takes {fewer} of {before} threads: {other:.1f} samples/s here instead of {speed:.1f}")
                speed = other
            else:
                torch.set_num_threads(before)
        self.refuse_few_samples(speed, minutes)

    def refuse_few_samples(self, speed: float | None, minutes: float) -> None:
        """Raise `TrainingError` if so many minutes are too few samples to learn from; with `few_samples` only print it.

        `speed` is in samples a second; None if it is not known.
        """
        if speed is None or 60 * minutes * speed >= FEWEST:
            return
        seen = round(60 * minutes * speed)
        enough = -(-self.budget.minutes * FEWEST // (60 * minutes * speed))
        few = (
            f"{minutes:.1f} minutes of training see about {seen} samples on this machine, and fewer than {FEWEST} taught "
            f"nothing when that was measured; a run of about {enough:.0f} minutes sees enough (--minutes {enough:.0f})"
        )
        if not self.settings.few_samples and self.budget.minutes >= 1:  # a shorter run only tries out the code
            raise TrainingError(f"{few}; to train all the same, set few_samples (--few-samples)")
        print(few)

    def training_minutes(self) -> Callable[[float], float]:
        """A function for `fit`: the minutes that training may take, given how many times slower steps have become.

        Scoring slows down as the steps do, until a probe tells how long answers take.
        """
        assert self.pace is not None
        before, pace, began = self.budget.elapsed(), self.pace, self.pace.seconds

        def allowed(slowdown: float) -> float:
            minutes = pace.seconds * pace.wanted / 60
            if pace.seconds == began:
                minutes *= slowdown
            return max(0.1 * self.budget.minutes, self.budget.minutes - before - self._kept(minutes))

        return allowed
