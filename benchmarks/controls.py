"""What is a run's accuracy on pictures worth? The same problems answered in ways that lack something.

    python benchmarks/controls.py one_hour_smolbridge       # writes results/controls/one_hour_smolbridge.json

`own`: as the run answered them, its pictures in place. `swapped`: the same adapter, each question with another problem's picture
of the same skill. `reading`: no adapter and no reasoning, the choice whose words the connector reads. `captions_as_text`: the same
adapter without pictures, the true caption as context. `majority`: the best fixed guess. `clip`: the choice whose words lie
nearest to the picture in a CLIP that open_clip loads, by its name there or from a folder of `mmlora.openclip.assemble.save`; by
default lesson 09's, joined here. Only problems that have a picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from tqdm import tqdm

from mmlora.adapters.files import load_vlm
from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.controls import captioned, majority_class, reading, swapped
from mmlora.evaluation.scores import Prediction, load_predictions, score
from mmlora.openclip.assemble import NAME, load
from mmlora.openclip.scores import choose
from mmlora.openclip.train import joined
from mmlora.paths import RESULTS
from mmlora.problems.load import load_problems
from mmlora.problems.record import Problem
from mmlora.reporting import machine
from mmlora.reporting.record import Metrics
from mmlora.smolbridge.words import words_read

EXAMPLES = 5  # answers of each control that the record keeps, to be read


def main(
    name: Annotated[str, typer.Argument(help="a run in results/ whose adapter is there")],
    clip: Annotated[str, typer.Option(help="the yardstick's name")] = NAME,
):
    """Answer a recorded run's picture problems in lesser ways."""
    state, folder = machine.git_state(), RESULTS / name
    run = Metrics.load(folder / "metrics.json")
    data, split = run.settings["data"], run.settings.get("split", "test")  # the first records had no other
    train, test = load_problems(data, "train"), load_problems(data, split, run.n_test)
    shown = [problem for problem in test if problem.image is not None]
    own = {said.id: said for said in load_predictions(folder / "predictions.jsonl")}
    vlm = load_vlm(folder / "adapter")

    def said(problems: Sequence[Problem]) -> list[Prediction]:
        return evaluate(vlm, problems, "generate", batch_size=64)

    def read(problem: Problem) -> str:
        return "".join(word for word, _ in words_read(vlm, problem.image)).strip()

    ways = {
        "own": (shown, [own[problem.id] for problem in shown]),
        "swapped": ((other := swapped(shown)), said(other)),
        "captions_as_text": ((told := captioned(shown)), said(told)),
        "reading": (shown, reading(tqdm(shown, desc="reading"), read)),
        "majority": (shown, majority_class(shown, train)),
    }
    eyes = joined() if clip == NAME else load(clip)
    ways["clip"] = (shown, choose(eyes, shown))
    record = {
        "run": name,
        "clip": clip,
        "controls": {way: score(problems, answers).to_dict() for way, (problems, answers) in ways.items()},
        "examples": {
            way: [{"id": p.id, "question": p.question, "right": p.answer_text, "said": a.text} for p, a in zip(*pair)][
                :: max(1, len(shown) // EXAMPLES)
            ]
            for way, pair in ways.items()
        },
        **machine.circumstances(state),
    }
    target = RESULTS / "controls" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print({way: (found["avg"], found["ci95"]) for way, found in record["controls"].items()}, f"-> {target}")


if __name__ == "__main__":
    typer.run(main)
