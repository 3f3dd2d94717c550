"""Everything that a trained model is asked at the end of a run: the test problems, the controls, skills never trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmlora.evaluation.controls import (
    Answered,
    best_guess,
    blanked,
    chance,
    evenly,
    majority_class,
    reading,
    variants,
)
from mmlora.evaluation.pace import Answer, Pace
from mmlora.evaluation.scores import save_predictions, score
from mmlora.problems.record import Problem

PRINTED = 3  # answers of each control


@dataclass(frozen=True)
class Examination:
    """What was asked and what was said to it."""

    test: Answered  # the problems that the accuracy is of
    blank: Answered  # some of them behind grey
    transfer: Answered  # problems of skills that no training problem has
    controls: dict[str, Answered]  # `controls.controls`, of the same problems as `blank`

    def figures(self, train: Sequence[Problem]) -> dict[str, Any]:
        """The fields of metrics.json that follow from the answers; `train` is what the fixed guesses learned from."""
        problems = self.test.problems
        return {
            "accuracy": score(*self.test).to_dict(),
            "majority": score(problems, majority_class(problems, train)).to_dict(),
            "best_guess": score(problems, best_guess(problems, train)).to_dict(),
            "chance": chance(problems),
            "blank_image": score(*self.blank).to_dict(),
            "seen_wording": score(*worded(self.test, "seen")).to_dict(),
            "unseen_wording": score(*worded(self.test, "unseen")).to_dict(),
            "untrained_skills": score(*self.transfer).to_dict(),
            "controls": {name: score(*way).to_dict() for name, way in self.controls.items()},
        }

    def save(self, folder: Path) -> None:
        """One file of predictions for each: `predictions.jsonl`, `blank_predictions.jsonl` and so on."""
        named = {"": self.test, "blank_": self.blank, "transfer_": self.transfer}
        for name, way in {**named, **{f"{name}_": way for name, way in self.controls.items()}}.items():
            save_predictions(way.predictions, folder / f"{name}predictions.jsonl")

    def say(self) -> None:
        """Print each control's accuracy and a few of its answers."""
        for name, (problems, answers) in self.controls.items():
            print(f"{name}: {score(problems, answers).accuracy} % of {len(problems)} problems with a picture, such as")
            for problem, said in list(zip(problems, answers))[:PRINTED]:
                print(f"  {problem.question} {'✓' if said.correct else '✗'} {said.text}")


def worded(answered: Answered, wording: str) -> Answered:
    """Those of the problems whose sentence is `"seen"` or `"unseen"`, with their answers."""
    pairs = [(problem, said) for problem, said in zip(*answered) if problem.wording == wording]
    return Answered([problem for problem, _ in pairs], [said for _, said in pairs])


def examine(
    test: Sequence[Problem],
    transfer: Sequence[Problem],
    answer: Answer,
    read: Callable[[Image.Image], str] | None,
    count: int,
    pace: Pace,
) -> Examination:
    """Ask `answer` everything, and each control `count` of the test problems with a picture, as many as `pace` allows."""
    asked = Answered(*pace.answered(test, answer))
    shown = evenly([problem for problem in asked.problems if problem.image is not None], count)
    controls = variants(asked.problems, shown)
    found = _together({"blank": blanked(shown), "transfer": list(transfer), **controls}, answer, pace)
    ways = {name: found[name] for name in controls}
    if read is not None and shown:
        ways["reading"] = Answered(shown, reading(shown, read))
    return Examination(test=asked, blank=found["blank"], transfer=found["transfer"], controls=ways)


def _together(parts: dict[str, list[Problem]], answer: Answer, pace: Pace) -> dict[str, Answered]:
    """Each part's problems with their answers, all in one call: a batch takes as long as its longest reply."""
    part_of = {id(problem): name for name, problems in parts.items() for problem in problems}
    problems, said = pace.answered([problem for each in parts.values() for problem in each], answer)
    found = {name: Answered([], []) for name in parts}
    for problem, prediction in zip(problems, said):
        found[part_of[id(problem)]].problems.append(problem)
        found[part_of[id(problem)]].predictions.append(prediction)
    return found
