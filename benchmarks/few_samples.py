"""How many samples must training see before it teaches anything? A run that would see fewer stops before it trains.

    python benchmarks/few_samples.py     # about half an hour; writes results/speed/few_samples.json and .jsonl

One cache, a fresh adapter for each number of samples and seed, the same 300 validation problems for all. The rate follows
its whole schedule in each of them, as in a run that has only so many samples.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import typer

from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.scores import Prediction, compare, score
from mmlora.experiment import BASE_METHOD, Experiment
from mmlora.paths import RESULTS
from mmlora.reporting.machine import circumstances
from mmlora.settings import Settings

SAMPLES = (100, 200, 300, 400, 600)
SEEDS = (0, 1)
SETTINGS = Settings(minutes=5, train_problems=665, test_problems=300, split="validation")


def trained(first: Experiment, samples: int, seed: int, folder: Path) -> list[Prediction]:
    """The answers of an adapter that has seen so many samples."""
    first.settings = replace(first.settings, steps=max(1, samples // first.settings.batch_size), seed=seed)
    first.folder, first.log = folder, None
    first.attach()
    first.fit()
    tokens = first.reply_lengths[-1] + 16
    return evaluate(first.learner, first.test, first.settings.method, max_new_tokens=tokens, progress=False)


def main():
    """Train, ask, and write the record."""
    now = circumstances()
    target = RESULTS / "speed" / "few_samples.json"
    with tempfile.TemporaryDirectory(prefix="few-") as folder:
        run = Experiment(SETTINGS, Path(folder))
        run.load_problems()
        run.load_model()
        base = evaluate(run.vlm, run.test, BASE_METHOD, progress=False)
        run.attach()
        run.cache()
        rows, lines = [], [{"samples": 0, "id": said.id, "correct": said.correct} for said in base]
        for samples in SAMPLES:
            for seed in SEEDS:
                answers = trained(run, samples, seed, Path(folder) / f"{samples}-{seed}")
                found = score(run.test, answers).to_dict() | {"to_base": asdict(compare(answers, base))}
                rows.append({"samples": samples, "seed": seed, **found})
                lines += [{"samples": samples, "seed": seed, "id": a.id, "correct": a.correct} for a in answers]
                print(samples, seed, found["avg"], found["ci95"], "unanswered", found["unanswered"], flush=True)
    record = {**now, "settings": SETTINGS.to_dict(), "base": score(run.test, base).to_dict(), "trained": rows}
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    target.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
