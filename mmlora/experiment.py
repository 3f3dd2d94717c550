"""A run, step by step: load, baselines, attach, cache, fit, score, explain.

Notebook 04 goes through the steps one cell at a time, `run` takes them all; both leave the same files in the folder.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from time import perf_counter

from mmlora import threads
from mmlora.adapters.files import load_vlm
from mmlora.adapters.lora import AdapterError, attach, detach
from mmlora.adapters.towers import learning_connector, towers
from mmlora.budget import Budget
from mmlora.encoding.prefix import cached
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import reply_rows
from mmlora.encoding.samples import Samples
from mmlora.evaluation.answering import TOGETHER, evaluate
from mmlora.evaluation.controls import majority_class
from mmlora.evaluation.examination import examine
from mmlora.evaluation.pace import Pace
from mmlora.evaluation.readback import fit_in, read_back, read_back_tokens
from mmlora.evaluation.scores import Prediction, score
from mmlora.files import refusals
from mmlora.inference.reading import reader
from mmlora.models import processes
from mmlora.models.catalog import seen_by
from mmlora.models.connector import ALIGNED, aligned, own_way
from mmlora.models.precision import choose, products
from mmlora.models.vlm import base_model, decoder_layers
from mmlora.outcome import BASE_METHOD, explain, keep, metrics
from mmlora.problems.captions import captioned, further_captioned
from mmlora.problems.load import load_problems, load_transfer
from mmlora.problems.record import Problem
from mmlora.reporting.machine import git_state
from mmlora.reporting.record import Metrics
from mmlora.settings import Settings
from mmlora.timing import BASE_TRIAL, Timing
from mmlora.training.captions import learn_to_read
from mmlora.training.fit import fit
from mmlora.training.log import TrainingError, TrainLog
from mmlora.training.probe import Probe
from mmlora.training.resume import claim, put_aside
from mmlora.training.settings import TrainingSet
from mmlora.training.tracking import refuse_missing
from mmlora.validation import Validation, best_probe, said_of_best, validation_problems

SPARE = 16  # tokens that an answer may be longer than any that was taught
CONTROLS = 3  # answers to each of their problems: grey, swapped, captions as text; reading costs no words
ANEW = "go on with this run in a new Experiment, resume=True, and take them before it learns"
TRIAL = 64  # problems that are answered once to see how long scoring will take


class Experiment:
    """What a run has so far; each step adds to it and may be taken again.

    `folder` receives log.jsonl, checkpoints, metrics.json, predictions and the adapter.
    """

    def __init__(self, settings: Settings, folder: str | Path, *, resume: bool = False):
        refuse_missing(settings.report_to)  # before minutes are spent
        choose(settings.precision)
        if processes.count() > 1:  # one's processor may multiply otherwise than the next one's
            choose(processes.said(products()))
        self.settings, self.folder, self.resume = settings, Path(folder).absolute(), resume
        minutes = claim(self.folder, resume)
        self.git = git_state()  # of the code that runs, whatever is committed meanwhile
        self.budget = Budget(settings.minutes, minutes if processes.first() else None)
        if resume:
            self.budget.go_on(minutes)
        self.timing = Timing(settings, self.budget)
        self.begun = False  # training, which leaves the base under an adapter
        self.log: TrainLog | None = None
        self.interrupted = False  # training was interrupted, and goes on when `fit` is called again

    def run(self) -> Metrics:
        """All steps, one after the other."""
        for step in (self.load_problems, self.load_model, self.baselines, self.attach, self.cache, self.fit):
            step()
        metrics = self.score()
        if processes.first() or processes.sharded():
            self.explain()
        return metrics

    def load_problems(self) -> None:
        """`train` and `test`, as many as the minutes allow, and `transfer`, skills that no training problem has."""
        chosen, budget = self.settings, self.budget
        if processes.first():
            threads.say_if_busy()
        sizes = chosen.train_problems or budget.train_problems, chosen.test_problems or budget.test_problems
        with refusals(chosen.data), budget.watch("data"), processes.one_first():
            self.train, self.test = (
                load_problems(chosen.data, split, size, missing_images=chosen.missing_images)
                for split, size in zip(("train", chosen.split), sizes)
            )
            few = max(1, len(self.test) // 10)
            self.transfer = load_transfer(chosen.data, few, chosen.missing_images) if chosen.split == "test" else []
        read_back([*self.train, *self.test, *self.transfer], chosen.format, chosen.method)

    def load_model(self) -> None:
        """The frozen base with its processor: `vlm`."""
        chosen = self.settings
        with refusals(chosen.model), self.budget.watch("data"), processes.one_first():
            self.vlm = load_vlm(chosen.model, side=chosen.side, revision=chosen.revision, four_bit=chosen.four_bit)
        if hasattr(self.vlm.model, "peft_config"):
            raise AdapterError(
                f"{chosen.model} is an adapter; a run trains a fresh one: give its base {self.vlm.base.name}"
            )
        self.vlm.model.requires_grad_(False)
        self.settings = chosen.for_width(base_model(self.vlm.model).config.get_text_config().hidden_size)
        if seen := seen_by(self.vlm.name):
            print(f"{self.vlm.name} was aligned on {seen}")
        if hasattr(self, "train"):  # a model may be loaded without problems
            read_back_tokens(self.vlm, [*self.train, *self.test, *self.transfer], chosen.format, chosen.method)

    def baselines(self) -> None:
        """What the figure will be compared with: `base`, the model before training, and `majority`, the best fixed guess."""
        if self.begun or hasattr(base_model(self.vlm.model), ALIGNED):
            if not hasattr(self, "base"):
                raise TrainingError(f"the model has learned already, and baselines come before; {ANEW}")
            return print("the baselines were taken before anything was learned and stand")
        with self.budget.watch("score"):
            problems, self.base_predictions = self.timing.baseline(
                self.test, lambda some: evaluate(self.vlm, some, BASE_METHOD, progress=len(some) > BASE_TRIAL)
            )
        self.base = score(problems, self.base_predictions)
        self._only(problems, "this machine answers slowly")
        self.majority = score(self.test, majority_class(self.test, self.train))

    def align(self) -> None:
        """The connector learns to read the training pictures from their captions: `vlm` reads them from then on.

        Where the model brings a way to, or the settings ask for it. Taken again, what was learned stands.
        """
        package, minutes = own_way(self.vlm), self.settings.align_minutes
        if minutes is None:
            minutes = self.budget.align_minutes if package and package.aligns(self.vlm) else 0
        if not minutes:
            return
        with refusals(self.folder), self.budget.watch("align"):
            pairs, further = captioned(self.train), further_captioned(self.settings.data)
            self.vlm = aligned(self.vlm, pairs, further, minutes, self.folder, learn_to_read, self.settings.seed)

    def attach(self) -> None:
        """A fresh adapter on the base, aligned first where it is to be: `learner`. Prints where it went."""
        self.align()
        self.interrupted, chosen, base = False, self.settings, detach(self.vlm.model)
        depth = len(decoder_layers(base))
        first = depth // 2 if chosen.first_layer is None else chosen.first_layer
        targets = "all-linear" if chosen.targets == ("all-linear",) else chosen.targets
        self.model = attach(
            base, rank=chosen.rank, alpha=chosen.alpha, layers=range(first, depth), targets=targets, within=chosen.towers,
            seed=chosen.seed,
        )  # fmt: skip
        if chosen.train_connector:
            learning_connector(base)
            print(towers(self.model))
        self.learner = self.vlm.with_model(self.model)

    def cache(self) -> None:
        """The training set: `samples`, with everything below the adapter computed once where that is possible."""
        self.taught = [taught(problem, self.settings.format) for problem in self.train]
        self.reply_lengths = sorted(map(len, reply_rows(self.vlm.processor, self.taught)))  # tokens, end token included
        samples = Samples(self.vlm, self.taught)
        only_language = self.settings.towers == ("language",) and not self.settings.train_connector
        with refusals(self.folder), self.budget.watch("cache"):
            fit_in(self.vlm, self.transfer)  # which is answered only after training
            self.samples: TrainingSet = samples
            if only_language and not processes.sharded():
                self.samples = cached(self.model, samples, self.folder / "cache")

    def reserve(self) -> float:
        """Minutes that scoring will take after training, from a timed trial, and a tenth more: `reserved`."""
        on_card = self.vlm.model.device.type != "cpu"  # where a batch takes as long as its longest reply
        count = TOGETHER if on_card else TRIAL
        trial = self.test[:: max(1, len(self.test) // count)][:count]
        with self.budget.watch("score"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the untrained model rambles until it is cut
            tokens = self.reply_lengths[-1 if on_card else 9 * len(self.taught) // 10]
            for some in (trial[:1], trial):  # the first answer on a card takes as long as a hundred
                began = perf_counter()
                evaluate(self.learner, some, self.settings.method, max_new_tokens=tokens, progress=False)
            seconds = perf_counter() - began
        pictures = min(sum(p.image is not None for p in self.test), self.budget.control_problems)
        # scoring makes two calls, each of which takes as long as its longest reply
        asked = len(self.test), len(self.transfer) + CONTROLS * pictures
        rows = sum(max(len(trial), count) for count in asked if count)
        self.timing.expect(seconds * rows / len(trial), sum(asked))
        return self.timing.reserved or 0.0

    def fit(self) -> TrainLog:
        """Train for what the budget leaves: `log`.

        Called again, it goes on where training was interrupted, or else begins anew and puts the earlier training aside.
        """
        goes_on = self.resume or self.interrupted
        if self.interrupted:
            print("training goes on where it was interrupted; to begin it anew, call attach() before fit()")
        elif self.log is not None and not goes_on:
            if processes.first():
                put_aside(self.folder)
            processes.wait()
            if self.settings.train_connector:  # which was trained in place
                self.load_model()
            self.attach()
        chosen = self.settings
        minutes, allowed = chosen.train_minutes, None
        if goes_on or self.log is not None:  # the checkpoints know what was spent on it, or it was put aside
            self.budget.spent.pop("train", None)
        if minutes is None and chosen.steps is None:
            reserved = self.timing.reserved
            minutes = self.budget.training_minutes(self.reserve() if reserved is None else reserved)
            with self.budget.watch("train"):
                self.timing.prepare(self.model, self.samples, minutes)
            allowed = self.timing.training_minutes()
        self.begun = True
        try:
            with refusals(self.folder), self.budget.watch("train"):
                self.log = fit(
                    self.model, self.samples, chosen.training(minutes), self.folder, resume=goes_on, probe=self._probe(goes_on),
                    allowed=allowed,
                )  # fmt: skip
        except BaseException as error:
            if (so_far := getattr(error, "log", None)) is not None:
                self.log, self.interrupted = so_far, True
                print("call fit() again to go on, or score() to see what was learned so far")
            raise
        self.budget.add("train", self.log.seconds_before / 60)  # what a session before this one spent
        self.resume = self.interrupted = False
        if processes.first() and (line := said_of_best(self.folder, self.log.records)):
            print(line)
        return self.log

    def score(self) -> Metrics:
        """Answer the test problems, and the controls, and write everything down at once: `examination`, `scores`, `blank`."""
        if self.log is None or not self.log.records:
            raise TrainingError("nothing was trained yet; call fit() before score()")
        if not hasattr(self, "base"):
            raise TrainingError(f"there are no baselines to compare with; {ANEW}")
        if self.interrupted:
            print(f"training was interrupted; the model is scored as it was after step {self.log.records[-1]['step']}")
        pace = self.timing.pace or Pace(1.0, 0, None)
        with self.budget.watch("score"):
            found = examine(
                self.test, self.transfer, self._answer, reader(self.learner), self.budget.control_problems, pace
            )
        self.examination = found
        self._only(found.test.problems, "the time is up")
        self.predictions, self.blank_predictions = found.test.predictions, found.blank.predictions
        self.scores, self.blank = score(*found.test), score(*found.blank)
        record = metrics(self, self.log, best_probe(self.folder, self.log.records))
        if processes.first():
            keep(self, record)
            found.say()
        return record

    def explain(self, count: int = 2) -> list[tuple[Problem, Prediction]]:
        """Occlusion maps of a few problems with a picture, kept beside wrong answers for the report: `maps` by id."""
        chosen, self.maps = explain(self, count)
        return chosen

    def _only(self, problems: list[Problem], why: str) -> None:
        """Keep only these of the test problems, and score the baselines on the same."""
        if len(problems) == len(self.test):
            return
        print(f"{why}: {len(problems)} of {len(self.test)} test problems, drawn by lot, are scored")
        ids = {problem.id for problem in problems}
        self.test = problems
        self.base_predictions = [said for said in self.base_predictions if said.id in ids]
        if hasattr(self, "base"):
            self.base = score(problems, self.base_predictions)
            self.majority = score(problems, majority_class(problems, self.train))

    def _probe(self, goes_on: bool) -> Probe | None:
        """Answers to a few validation problems while training, where there are such problems and the minutes allow."""
        problems = validation_problems(self)
        return Validation(self, problems, self._answer, goes_on).probe if problems else None

    def _answer(self, problems: list[Problem], progress: bool = True) -> list[Prediction]:
        tokens = self.reply_lengths[-1] + SPARE
        return evaluate(self.learner, problems, self.settings.method, max_new_tokens=tokens, progress=progress)
