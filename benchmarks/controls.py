"""What is a run's accuracy on pictures worth? The same problems answered in ways that lack something.

    python benchmarks/controls.py one_hour_smolbridge               # minutes; writes results/controls/one_hour_smolbridge.json
    python benchmarks/controls.py one_hour_smolbridge --text-only   # as long as the run trained; adds to that file

`own`: as the run answered them, its pictures in place. `swapped`: the same adapter, each question with another problem's picture
of the same skill. `reading`: no adapter and no reasoning, the choice whose words are read. `captions_as_text`: the same adapter
without pictures, the true caption as context. `clip`: the choice whose words lie nearest to the picture in a CLIP that open_clip
loads, by its name there or from a folder of `mmlora.openclip.assemble.save`; by default lesson 09's, joined here. `majority`: the
best fixed guess, `best_guess`: that of each skill. `text_only`: another adapter, trained with the run's settings for the minutes that it took to align and train, on problems without their pictures.
Only problems that have a picture, all of them; the text-only figure goes into the run's own metrics.json too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from mmlora.adapters.files import load_vlm
from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.controls import Answered, best_guess, controls, majority_class, unpictured
from mmlora.evaluation.scores import Prediction, load_predictions, score
from mmlora.experiment import Experiment
from mmlora.inference.reading import reader
from mmlora.openclip.assemble import NAME, load
from mmlora.openclip.scores import choose
from mmlora.openclip.train import joined
from mmlora.paths import RESULTS
from mmlora.problems.load import load_problems
from mmlora.problems.record import Problem
from mmlora.reporting import machine
from mmlora.reporting.record import Metrics
from mmlora.settings import Settings

EXAMPLES = 5  # answers of each control that the record keeps, to be read
TRAINED = ("align", "train")  # the parts of a run's minutes that the text-only adapter gets


def answered(folder: Path, run: Metrics, shown: list[Problem], train: list[Problem], clip: str) -> dict[str, Answered]:
    """Every control of a finished run that needs no other training."""
    own = {said.id: said for said in load_predictions(folder / "predictions.jsonl")}
    vlm = load_vlm(folder / "adapter")

    def said(problems: Sequence[Problem]) -> list[Prediction]:
        return evaluate(vlm, problems, run.settings["method"])

    eyes = joined() if clip == NAME else load(clip)
    return {
        "own": Answered(shown, [own[problem.id] for problem in shown]),
        **controls(shown, said, reader(vlm)),
        "majority": Answered(shown, majority_class(shown, train)),
        "best_guess": Answered(shown, best_guess(shown, train)),
        "clip": Answered(shown, choose(eyes, shown)),
    }


def text_only(
    run: Metrics, shown: list[Problem], train: list[Problem], minutes: float
) -> tuple[Answered, dict[str, float]]:
    """The answers of an adapter that was trained as the run's was, on the text of its problems alone; and how long it was."""
    settings = replace(Settings.of(run.settings), train_minutes=minutes, steps=None, probe_problems=0)
    with TemporaryDirectory() as folder:
        blind = Experiment(settings, folder)
        blind.train, blind.test, blind.transfer = unpictured(train), unpictured(shown), []
        blind.load_model()
        blind.attach()
        blind.cache()
        log = blind.fit()
        told = {"train_minutes": round(log.seconds / 60, 2), "samples_seen": log.samples_seen}
        return Answered(shown, evaluate(blind.learner, blind.test, settings.method)), told


def main(
    name: Annotated[str, typer.Argument(help="a run in results/ whose adapter is there")],
    text: Annotated[bool, typer.Option("--text-only", help="train the text-only adapter")] = False,
    clip: Annotated[str, typer.Option(help="the yardstick's name")] = NAME,
):
    """Answer a recorded run's picture problems in lesser ways."""
    state, folder = machine.git_state(), RESULTS / name
    run = Metrics.load(folder / "metrics.json")
    data, split = run.settings["data"], run.settings.get("split", "test")  # the first records had no other
    size = int(run.data.split()[-1].split("/")[0])
    train, test = load_problems(data, "train", size), load_problems(data, split, run.n_test)
    shown = [problem for problem in test if problem.image is not None]
    told: dict[str, float] = {}
    if text:
        blind, told = text_only(run, shown, train, sum(run.minutes.get(part, 0) for part in TRAINED))
        ways = {"text_only": blind}
    else:
        ways = answered(folder, run, shown, train, clip)
    found = {way: score(problems, answers).to_dict() for way, (problems, answers) in ways.items()}
    examples = {
        way: [{"id": p.id, "question": p.question, "right": p.answer_text, "said": a.text} for p, a in zip(*pair)][
            :: max(1, len(shown) // EXAMPLES)
        ]
        for way, pair in ways.items()
    }
    target = RESULTS / "controls" / f"{name}.json"
    kept = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    if kept.get("date_of_run", run.date) != run.date:  # of an earlier run of this name
        kept = {}
    now = {"clip": clip, **machine.circumstances(state)}
    record = {
        **(now | kept if text else kept | now),
        "run": name,
        "date_of_run": run.date,
        "controls": {**kept.get("controls", {}), **found},
        "examples": {**kept.get("examples", {}), **examples},
    }
    if text:
        record["text_only"] = {**told, **machine.circumstances(state)}
        for file in (folder / "metrics.json", RESULTS / f"{name}.json"):
            replace(run, controls={**run.controls, **found}).save(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print({way: (scores["avg"], scores["ci95"]) for way, scores in found.items()}, f"-> {target}")


if __name__ == "__main__":
    typer.run(main)
