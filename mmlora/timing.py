"""What the minutes of a run allow on this machine: how many answers, how much training, and whether that is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from torch import nn

from mmlora.budget import Budget
from mmlora.evaluation.pace import Answer, Pace
from mmlora.evaluation.scores import Prediction
from mmlora.problems.record import Problem
from mmlora.settings import Settings
from mmlora.training.log import TrainingError
from mmlora.training.settings import TrainingSet
from mmlora.training.trial import samples_per_second

SPARE = 1.1  # of the time that scoring was estimated to take
MOST = 0.3  # of the minutes for scoring, a quiet machine's share: on a slow one fewer problems are scored and more is learned
BASE_TRIAL = 16  # problems that are answered to see how long the baseline will take
BASE_SHARE = 0.1  # of the minutes, which the baseline may take before it is scored on fewer problems
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

    def _kept(self, minutes: float) -> float:
        part = self.promised and self.budget.test_problems is not None  # a whole split is scored for the published rows' sake
        return min(minutes, MOST * self.budget.minutes) if part else minutes

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

    def expect(self, seconds: float, answers: int, wanted: int) -> None:
        """Estimate how long scoring takes: a trial gave so many answers in so many seconds; a tenth is added."""
        left = (lambda: 60 * self.budget.left()) if self.promised else None
        self.pace = Pace(SPARE * seconds / answers, wanted, left)

    def probed(self, seconds: float, answers: int) -> None:
        """The same from a probe during training, when the model already answers much as it will in the end."""
        if self.pace is not None:
            self.pace.seconds = SPARE * seconds / answers

    def refuse_few_samples(self, model: nn.Module, samples: TrainingSet, minutes: float) -> None:
        """Raise `TrainingError` if so many minutes are too few samples to learn from; with `few_samples` only print it."""
        speed = samples_per_second(model, samples, self.settings.training(minutes))
        if speed is None or 60 * minutes * speed >= FEWEST:
            return
        seen = round(60 * minutes * speed)
        enough = -(-self.budget.minutes * FEWEST // (60 * minutes * speed))
        few = (
            f"{minutes:.1f} minutes of training see about {seen} samples on this machine, and fewer than {FEWEST} taught "
            f"nothing when that was measured; a run of about {enough:.0f} minutes sees enough (--minutes {enough:.0f})"
        )
        if not self.settings.few_samples and self.budget.minutes >= 1:  # less is a trial of the machinery
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
