"""What is taught is read back before training: as text while the problems are read, and from its tokens with the model."""

from __future__ import annotations

import json

import families
import pytest
import tinyvlm
from PIL import Image
from tokenizers import normalizers

from mmlora.encoding.conversation import EncodingError
from mmlora.evaluation.readback import fit_in, read_back, read_back_tokens
from mmlora.experiment import Experiment
from mmlora.problems.record import Problem
from mmlora.settings import Settings

GOOD = Problem("good", "Which is red?", ("red", "blue"), 0, solution="It is seen. It is red.", lecture="Look.")


def telling(id: str, solution: str) -> Problem:
    return Problem(id, "Which is red?", ("red", "blue"), 0, solution=solution)


@pytest.mark.parametrize(
    "format, method",
    [("answer", "generate"), ("answer_explanation", "generate"), ("explanation_answer", "generate"),
     ("QCM-A", "official"), ("QCM-ALE", "official"), ("QCM-LEA", "official"), ("answer", "likelihood"), ("QCM-A", "letter")],
)  # fmt: skip
def test_what_is_read_back_rightly_goes_on(format, method):
    vlm = tinyvlm.build()
    problems = [GOOD, *tinyvlm.PROBLEMS]
    read_back(problems, format, method)
    read_back_tokens(vlm, problems, format, method)


def test_a_solution_that_says_another_answer_is_refused_where_it_comes_last():
    odd = telling("odd", "Some say the answer is blue. It is not.")
    read_back([GOOD, odd], "explanation_answer", "generate")
    read_back([GOOD, odd], "answer_explanation", "likelihood")
    with pytest.raises(
        EncodingError,
        match=r"answer of odd \(1 in all\): as text, .*names the choice 'blue', not 'red' .*its solution says",
    ):
        read_back([GOOD, odd], "answer_explanation", "generate")
    twice = telling("twice", "Some think: The answer is B. It is not.")
    with pytest.raises(
        EncodingError,
        match=r"would not be read as the answer of twice .* names no choice, not 'red' \(method official\)",
    ):
        read_back([GOOD, twice], "QCM-LEA", "official")


def test_ten_ids_are_named_and_their_number():
    odd = [telling(f"row{i}", "So the answer is green.") for i in range(14)]
    with pytest.raises(EncodingError, match=r"answer of row0, .*, row9, … \(14 in all\)") as refused:
        read_back(odd, "answer_explanation", "generate")
    assert "row10" not in str(refused.value) and len(str(refused.value)) < 600


def test_choices_that_are_one_to_the_tokenizer_are_refused_with_its_model():
    """Composed and decomposed letters are other texts, and the same tokens of a tokenizer that composes them."""
    vlm = tinyvlm.build()
    vlm.processor.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    problem = Problem("accents", "Which?", ("caf\u00e9", "cafe\u0301"), 1)
    read_back([problem], "answer", "generate")
    with pytest.raises(EncodingError, match=r"answer of accents .*from the tokens of tiny, the reply"):
        read_back_tokens(vlm, [GOOD, problem], "answer", "generate")
    single = Problem("single", "Which?", ("cafe\u0301", "tea"), 0)
    read_back_tokens(vlm, [GOOD, single], "answer", "generate")


def test_marks_in_choices_are_read_back_from_their_tokens():
    for family in families.FAMILIES:
        vlm = families.build(family)
        end = vlm.processor.tokenizer.eos_token
        problems = [Problem("p", "Which?", (f"a {end} b", "a b", f"a {end}", "a", f"{end}"), i) for i in range(5)]
        for format in ("answer", "answer_explanation"):
            read_back_tokens(vlm, problems, format, "generate")


def test_a_reply_that_cannot_be_written_is_named():
    problem = telling("half", "A \ud83d half.")
    with pytest.raises(EncodingError, match="problem half .*half of a surrogate pair"):
        read_back_tokens(tinyvlm.build(), [GOOD, problem], "answer_explanation", "generate")


def test_what_is_asked_only_after_training_is_encoded_before():
    vlm = families.build("qwen2.5-vl")
    fit_in(vlm, [GOOD])
    with pytest.raises(EncodingError, match="problem thin .*aspect ratio"):
        fit_in(vlm, [GOOD, Problem("thin", "What?", ("a", "b"), 0, Image.new("RGB", (3000, 8)))])
    with pytest.raises(EncodingError, match=r"problem long takes \d+ tokens"):
        fit_in(vlm, [Problem("long", "word " * 1500, ("a", "b"), 0)])


def test_a_run_stops_while_it_reads_its_problems(tmp_path):
    row = {"question": "Which is red?", "choices": ["red", "blue"], "answer": 0, "solution": "It is red."}
    odd = row | {"solution": "Or the answer is blue."}
    for split, rows in (("train", [row] * 3), ("test", [row, odd])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = str(families.save(families.build("text-only"), tmp_path / "model"))
    run = Experiment(Settings(model=model, data=str(tmp_path), steps=1, format="answer_explanation"), tmp_path / "run")
    with pytest.raises(EncodingError, match=r"would not be read as the answer of test-1 \(1 in all\)"):
        run.load_problems()
    Experiment(Settings(model=model, data=str(tmp_path), steps=1), tmp_path / "other").load_problems()
