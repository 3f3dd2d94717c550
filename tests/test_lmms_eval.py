"""The task for lmms-eval asks and scores as mmlora does; where that package is installed, its own loader takes it."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from PIL import Image
from tinyvlm import PROBLEMS

from mmlora.doctor import index_answers
from mmlora.encoding.prompts import prompt_text, target_text
from mmlora.paths import PACKAGE

FOLDER = PACKAGE.parent / "benchmarks" / "lmms_eval"
spec = importlib.util.spec_from_file_location("lmms_eval_utils", FOLDER / "utils.py")
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)


def doc(problem) -> dict:
    """The problem as the hub's data set has it."""
    return {
        "image": problem.image,
        "question": problem.question,
        "choices": list(problem.choices),
        "answer": problem.answer,
        "hint": problem.hint,
    }


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


#: The package and what its loader imports beyond what is here: all that it requires would be gigabytes.
LOADER = "lmms-eval==0.7.3 colorama evaluate loguru lxml portalocker pytz sacrebleu tabulate".split()


def test_lmms_evals_own_loader_finds_it(tmp_path):
    if not index_answers():
        pytest.skip("no package index to install lmms-eval from")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path, *LOADER]
    subprocess.run(pip, check=True, capture_output=True)
    code = (
        "from lmms_eval.tasks import TaskManager\n"
        f"print(TaskManager(include_path={str(FOLDER)!r}, include_defaults=False).all_subtasks)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["['mmlora_scienceqa']"], done.stderr[-2000:]


def test_it_shows_the_picture_that_mmlora_reads():
    see_through = Image.new("RGBA", (2, 2), (9, 99, 9, 0))
    (shown,) = utils.visual({"image": see_through})
    assert shown.mode == "RGB" and set(shown.get_flattened_data()) == {(255, 255, 255)}
