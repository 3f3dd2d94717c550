"""Which of reading and reasoning fails, skill by skill? A recorded run's adapter answers the validation split.

    python benchmarks/wrong_answers.py one_hour_smolbridge     # minutes; writes results/wrong_answers/NAME.json and NAME.jsonl

A wrong answer is *misread* where what the connector says lacks words of the picture's caption, or their order, else *misreasoned*;
without a picture it is neither. How many right answers were misread is counted beside it. Some wrong ones are kept to be looked at. The
test split stays unread: what is mended by this is scored there once.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

import typer
from recipe import keep_solved

from mmlora.adapters.files import load_vlm
from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.scores import score
from mmlora.inference.reading import reader
from mmlora.paths import RESULTS
from mmlora.problems.load import load_problems
from mmlora.reporting import machine
from mmlora.reporting.explanations import FAULTS, fault
from mmlora.reporting.record import Metrics

EXAMPLES = 3  # wrong answers that are kept of each skill


def main(name: Annotated[str, typer.Argument(help="a run in results/ whose adapter is there")]):
    """Answer the validation split, and write the record."""
    state, settings = machine.git_state(), Metrics.load(RESULTS / name / "metrics.json").settings
    vlm, problems = load_vlm(RESULTS / name / "adapter"), load_problems(settings["data"], "validation")
    if (read := reader(vlm)) is None:
        raise typer.BadParameter("this model's connector speaks no words, so nobody can tell what it read")
    said = evaluate(vlm, problems, settings["method"])
    skills: dict[str, dict] = {}
    pictured = {"right": Counter[str](), "wrong": Counter[str]()}
    for problem, answer in zip(problems, said):
        tally = skills.setdefault(problem.skill, {"n": 0, "right": 0, "faults": Counter(), "examples": []})
        tally["n"] += 1
        tally["right"] += answer.correct
        words = read(problem.image) if problem.image is not None else ""
        found = fault(problem, words)
        if problem.image is not None:
            pictured["right" if answer.correct else "wrong"]["misread" if found == FAULTS[0] else "read"] += 1
        if not answer.correct:
            tally["faults"][found] += 1
            wrong = {"question": problem.question, "read": words, "caption": problem.caption, "said": answer.text,
                     "right": problem.answer_text}  # fmt: skip
            tally["examples"] = [*tally["examples"], wrong][:EXAMPLES]
    worst = dict(sorted(skills.items(), key=lambda each: each[1]["right"] / each[1]["n"]))
    record = {
        "run": name,
        "accuracy": score(problems, said).to_dict(),
        "pictured": pictured,
        "skills": worst,
        **machine.circumstances(state),
    }
    target = RESULTS / "wrong_answers" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    keep_solved(said, target)
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for skill, found in worst.items():
        print(f"{found['right']:3d} of {found['n']:3d}  {skill}  {dict(found['faults'])}")
    print({answers: dict(found) for answers, found in pictured.items()})
    print(f"{record['accuracy']['avg']} % of {len(problems)} -> {target}")


if __name__ == "__main__":
    typer.run(main)
