"""The task for lmms-eval asks and scores as mmlora does; where that package is installed, its own loader takes it."""

import importlib.util
from dataclasses import replace

import pytest
import yaml
from tinyvlm import PROBLEMS

from mmlora.encoding.prompts import prompt_text, target_text
from mmlora.paths import PACKAGE

FOLDER = PACKAGE.parent / "benchmarks" / "lmms_eval"
spec = importlib.util.spec_from_file_location("lmms_eval_utils", FOLDER / "utils.py")
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)


def doc(problem) -> dict:
    """The problem as the hub's data set has it."""
    return {"image": problem.image, "question": problem.question, "choices": list(problem.choices), "answer": problem.answer,
            "hint": problem.hint}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.id)
def test_it_asks_and_scores_as_mmlora_does(problem):
    row = doc(problem)
    assert utils.prompt(row) == prompt_text(problem)
    assert len(utils.visual(row)) == (problem.image is not None)
    wrong = replace(problem, answer=1 - problem.answer)
    for format in ("answer", "explanation_answer", "QCM-A", "QCM-LEA"):
        for said, right in ((problem, 1.0), (wrong, 0.0)):
            found = utils.results(row, [target_text(said, format)])
            assert found == {"accuracy": right} | ({"image_accuracy": right} if problem.image else {})
    assert utils.results(row, ["I do not know."])["accuracy"] == 0


def test_every_function_that_the_task_names_is_there():
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!function", lambda _, node: node.value)
    task = yaml.load((FOLDER / "mmlora_scienceqa.yaml").read_text(), loader)
    named = [value for value in task.values() if isinstance(value, str) and value.startswith("utils.")]
    assert len(named) == 4 and all(callable(getattr(utils, name.removeprefix("utils."))) for name in named)
    metrics = {metric["metric"] for metric in task["metric_list"]}
    assert metrics == set(utils.results(doc(PROBLEMS[0]), ["x"]))


def test_lmms_evals_own_loader_finds_it():
    tasks = pytest.importorskip("lmms_eval.tasks")
    manager = tasks.TaskManager(include_path=str(FOLDER), include_defaults=False)
    assert manager.all_subtasks == ["mmlora_scienceqa"]
