"""Scoring agrees with doing it the slow way, and the figures agree with known values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tinyvlm
import torch
from tinyvlm import picture

from mmlora.encoding.loss import IGNORED
from mmlora.encoding.prompts import asked, prompt_text, target_text, taught
from mmlora.encoding.sample import encode
from mmlora.evaluation import answering, controls, occlusion
from mmlora.evaluation.controls import majority_class
from mmlora.evaluation.scores import (
    Prediction,
    ScoreError,
    Scores,
    Share,
    compare,
    load_predictions,
    save_predictions,
    score,
    wilson,
)
from mmlora.files import FileError
from mmlora.inference import generate as generation
from mmlora.inference import session
from mmlora.inference.ask import ask
from mmlora.inference.generate import InferenceError, generate
from mmlora.inference.session import evaluating, left_padded
from mmlora.models.memory import OutOfMemory
from mmlora.models.vlm import VLM
from mmlora.problems.record import CATEGORIES, Problem


@pytest.fixture
def vlm(tiny_vlm) -> VLM:
    return tiny_vlm


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    """Prompts of different lengths, 2 to 5 choices of different lengths, with and without a picture."""
    return [
        Problem("a", "Which colour is the ball?", ("red", "dark olive green", "blue"), 1, picture("red", "olive")),
        Problem("b", "Is it?", ("yes", "no"), 0, None, hint="A longer context, read before the question is answered."),
        Problem("c", "Which?", ("red", "green", "blue", "olive", "red or green"), 4, picture("blue")),
        Problem("d", "Which of these is the right one?", ("a b c", "a b d"), 0, picture("green", "red")),
    ]


@torch.no_grad()
def whole_row(vlm: VLM, problem: Problem, choice: int) -> float:
    """The definition: one full row, no cache, no padding."""
    sample = encode(vlm.processor, taught(replace(problem, answer=choice), "answer"))
    pixels = sample.pictures.get("pixel_values")
    logits = vlm.model(input_ids=sample.input_ids[None], pixel_values=pixels).logits[0, :-1].log_softmax(-1)
    labels = sample.labels[1:]
    return float(logits.gather(-1, labels.clamp(min=0)[:, None])[:, 0][labels != IGNORED].sum())


# -- answering ---------------------------------------------------------------------------------------------------------


def test_likelihood_equals_scoring_whole_rows(vlm, problems):
    predictions = answering.evaluate(vlm, problems, batch_size=3, progress=False)
    for problem, prediction in zip(problems, predictions, strict=True):
        slow = [whole_row(vlm, problem, i) for i in range(len(problem.choices))]
        assert prediction.id == problem.id
        assert prediction.scores == pytest.approx(slow, abs=1e-4)
        assert prediction.choice == int(np.argmax(slow))
        assert prediction.correct == (prediction.choice == problem.answer)
        assert prediction.text == target_text(replace(problem, answer=prediction.choice), "answer")


def test_letter_is_the_next_token(vlm, problems):
    for problem, prediction in zip(problems, answering.evaluate(vlm, problems, "letter", progress=False), strict=True):
        sample = encode(vlm.processor, asked(problem))
        pixels = sample.pictures.get("pixel_values")
        with torch.no_grad():
            log_probs = vlm.model(input_ids=sample.input_ids[None], pixel_values=pixels).logits[0, -1].log_softmax(-1)
        letters = [vlm.processor.tokenizer.convert_tokens_to_ids(x) for x in "ABCDE"[: len(problem.choices)]]
        assert prediction.scores == pytest.approx(log_probs[letters].tolist(), abs=1e-4)


def test_pictures_reach_the_scores(vlm, problems):
    seen = answering.evaluate(vlm, [problems[0]], progress=False)[0]
    blank = answering.evaluate(vlm, controls.blanked(problems)[:1], progress=False)[0]
    assert seen.scores != pytest.approx(blank.scores, abs=1e-6)
    assert [p.id for p in controls.blanked(problems)] == ["a", "c", "d"]


def test_generation_in_a_left_padded_batch_equals_one_by_one(vlm, problems):
    with pytest.warns(UserWarning, match=r"of 4 generations were cut at 12 tokens"):
        together = answering.evaluate(vlm, problems, "generate", batch_size=4, max_new_tokens=12, progress=False)
    with pytest.warns(UserWarning, match="cut"):
        alone = answering.evaluate(vlm, problems, "generate", batch_size=1, max_new_tokens=12, progress=False)
    assert together == alone
    assert all(p.text for p in together)


@pytest.mark.parametrize("held", [2**30, 1])
@pytest.mark.parametrize("leaving", [0.75, 0])
def test_replies_that_end_early_leave_those_beside_them_as_they_are(vlm, problems, monkeypatch, held, leaving):
    """The model says byte 3 in two rows, some steps apart: here it ends a reply."""
    tokenizer, settings = vlm.processor.tokenizer, {"max_new_tokens": 24}
    conversations, usual, ended = [asked(problem) for problem in problems], tokenizer.eos_token, []
    (byte,) = tokenizer("\x03")["input_ids"]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(byte)
    try:
        with evaluating(vlm):
            alone = [generate(vlm, [conversation], **settings) for conversation in conversations]
            monkeypatch.setattr(
                generation, "PREFILL_ROWS", 2
            )  # two parts of different lengths, joined where memory is enough
            monkeypatch.setattr(generation, "COMPACT_BELOW", leaving)
            monkeypatch.setattr(generation, "CACHE_BYTES", held)
            texts, unfinished = generate(vlm, conversations, **settings, on_finished=ended.append)
    finally:
        tokenizer.eos_token = usual
    assert (texts, unfinished) == ([text for (text,), _ in alone], 2)
    assert sum(cut for _, cut in alone) == 2 and sum(ended) == 4 and ended.count(1) >= 2


def test_spare_places_of_a_kv_cache_grow_and_are_never_attended_to(vlm, problems):
    """The logits after every few tokens are those of a forward pass over the whole row, without a cache."""
    samples = [encode(vlm.processor, asked(problem)) for problem in problems[:2]]
    with evaluating(vlm):
        parts = [session.prefill(vlm, left_padded(vlm, [sample]), 1)[1] for sample in samples]
        both = session.concatenated(parts)
        for length in (1, 3, session.SPARE, 2):
            ids = torch.randint(0, 200, (2, length))
            logits = both.decode_step(ids).logits
            samples = [sample.followed_by(row.tolist()) for sample, row in zip(samples, ids)]
            for row, sample in enumerate(samples):
                whole = vlm.model(**left_padded(vlm, [sample])).logits[0, -length:]
                assert torch.allclose(logits[row], whole, atol=1e-4)


@pytest.fixture
def small_memory(vlm):
    """`small_memory(rows)`: more rows than that in one forward pass do not fit."""
    hooks = []

    def limit(rows: int):
        def refuse(model, inputs, named):
            if len(named["input_ids"]) > rows:
                torch.empty(2**60)  # more than any machine has, so this is torch's own error

        hooks.append(vlm.model.register_forward_pre_hook(refuse, with_kwargs=True))

    yield limit
    for hook in hooks:
        hook.remove()


@pytest.mark.filterwarnings("ignore:.*generations were cut")
def test_what_does_not_fit_in_memory_is_answered_in_parts(vlm, problems, small_memory, capsys):
    settings = {"batch_size": 4, "max_new_tokens": 12, "progress": False}
    whole = answering.evaluate(vlm, problems, "generate", **settings)
    small_memory(1)
    assert answering.evaluate(vlm, problems, "generate", **settings) == whole
    said = capsys.readouterr().out
    assert "from now on 2 samples at a time" in said and "from now on 1 samples at a time" in said
    small_memory(0)
    with pytest.raises(OutOfMemory, match="a single sample does not fit in memory; give load_vlm a smaller side"):
        answering.evaluate(vlm, problems, "generate", **settings)


@pytest.mark.filterwarnings("ignore:.*generations were cut")
def test_pictures_that_are_large_together_are_answered_a_few_at_a_time(vlm, problems, monkeypatch):
    settings = {"batch_size": 4, "max_new_tokens": 12, "progress": False}
    whole, sizes, original = answering.evaluate(vlm, problems, "generate", **settings), [], answering.generate

    def counted(vlm, conversations, *given):
        sizes.append(len(conversations))
        return original(vlm, conversations, *given)

    monkeypatch.setattr(answering, "generate", counted)
    monkeypatch.setattr(answering, "HELD", 1)
    assert answering.evaluate(vlm, problems, "generate", **settings) == whole and set(sizes) == {1}


def test_a_model_whose_words_are_not_finite_is_named(vlm, problems):
    overflow = vlm.model.get_output_embeddings().register_forward_hook(lambda head, inputs, logits: logits * torch.nan)
    try:
        with pytest.raises(InferenceError, match="logits of tiny are not finite in float32; choose another model"):
            answering.evaluate(vlm, problems, "generate", progress=False)
    finally:
        overflow.remove()


def test_unanswered_counts_as_wrong_and_apart(vlm, problems, monkeypatch):
    said = {"a": "It is dark olive. The answer is dark olive green.", "b": "I would rather not say."}
    monkeypatch.setattr(answering, "generate", lambda vlm, batch, *_: ([said[c.id] for c in batch], 0))
    first, second = answering.evaluate(vlm, problems[:2], "generate", progress=False)
    assert (first.choice, first.correct) == (1, True)
    assert (second.choice, second.correct) == (None, False)
    scores = score(problems[:2], [first, second])
    assert (scores.accuracy, scores.unanswered) == (50.0, 1)


def test_the_official_scorer_guesses_and_says_so(vlm, problems, monkeypatch):
    said = dict(zip((p.id for p in problems), ("Because. The answer is B.", "Hm.", "The answer is E.", "A.")))
    monkeypatch.setattr(answering, "generate", lambda vlm, batch, *_: ([said[c.id] for c in batch], 0))
    with pytest.warns(UserWarning, match="2 of 4 answers named no letter and were guessed"):
        answers = answering.evaluate(vlm, problems, "official", progress=False)
    assert (answers[0].choice, answers[2].choice) == (1, 4)
    assert all(0 <= a.choice < len(p.choices) for a, p in zip(answers, problems))
    strict = answering.evaluate(vlm, problems, "lmms_eval", progress=False)
    assert [a.choice for a in strict] == [None, None, None, 0]


def test_shuffle_is_fixed_by_its_seed_and_mapped_back(vlm, problems, monkeypatch):
    orders = [answering._order(p, 7) for p in problems]
    assert orders == [answering._order(p, 7) for p in problems]
    assert any(order != sorted(order) for order in orders)
    assert answering._order(problems[0], None) == [0, 1, 2]
    shuffled = answering.evaluate(vlm, problems, shuffle_seed=7, progress=False)
    for problem, order, prediction in zip(problems, orders, shuffled):
        shown = problem.reordered(order)
        for i, value in enumerate(prediction.scores):
            assert value == pytest.approx(whole_row(vlm, shown, order.index(i)), abs=1e-4)
        assert prediction.choice == int(np.argmax(prediction.scores))
        assert prediction.correct == (prediction.choice == problem.answer)
    for i, choice in enumerate(problems[0].choices):
        monkeypatch.setattr(answering, "generate", lambda vlm, batch, *_: ([f"The answer is {choice}."], 0))  # noqa: B023
        assert answering.evaluate(vlm, problems[:1], "generate", shuffle_seed=7, progress=False)[0].choice == i


def test_asked_it_says_what_it_generates_word_by_word(vlm, problems, capsys):
    problem = problems[0]
    said = ask(vlm, prompt_text(problem), problem.image, max_new_tokens=12)
    printed = capsys.readouterr().out
    with evaluating(vlm):
        assert said == generate(vlm, [asked(problem)], max_new_tokens=12)[0][0]
    assert said and printed.strip() == said


def test_the_model_comes_back_as_it_was(vlm, problems):
    flags = [m.training for m in vlm.model.modules()]
    vlm.model.lm_head.training = True
    try:
        scores = answering.evaluate(vlm, problems[:1], progress=False)
        assert [m.training for m in vlm.model.modules()] == [*flags[:-1], True]
        assert all(p.requires_grad for p in vlm.model.lm_head.parameters())
        assert scores == answering.evaluate(vlm, problems[:1], progress=False)
    finally:
        vlm.model.lm_head.training = False


def test_bad_requests_say_what_to_do(vlm, problems):
    with pytest.raises(
        answering.EvaluationError, match="'guess'; there are likelihood, letter, generate, official, lmms_eval"
    ):
        answering.evaluate(vlm, problems, "guess", progress=False)
    with pytest.raises(answering.EvaluationError, match="problem b has no picture"):
        occlusion.occlusion(vlm, problems[1], Prediction("b", 0, True, "yes"))
    kept = vlm.model.lm_head.weight.data.clone()
    try:
        vlm.model.lm_head.weight.data.fill_(float("nan"))
        with pytest.raises(answering.EvaluationError, match="not finite"):
            answering.evaluate(vlm, problems[2:3], progress=False)
    finally:
        vlm.model.lm_head.weight.data.copy_(kept)


def test_occlusion_is_the_fall_of_the_spoken_text(vlm, problems):
    prediction = answering.evaluate(vlm, problems[:1], progress=False)[0]
    drops = occlusion.occlusion(vlm, problems[0], prediction, grid=2, batch_size=3)
    image = problems[0].image.copy()
    image.paste((128, 128, 128), (45, 0, 90, 35))
    covered = whole_row(vlm, replace(problems[0], image=image), prediction.choice)
    assert drops.shape == (2, 2)
    assert drops[0, 1] == pytest.approx(whole_row(vlm, problems[0], prediction.choice) - covered, abs=1e-4)


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_wilson_against_known_values():
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)  # Wilson 1927's formula by hand
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson(850, 1000) == pytest.approx((0.82654, 0.87078), abs=2e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_columns_overlap_as_in_scienceqa():
    both = Problem("1", "?", ("x", "y"), 0, picture("red"), hint="text", grade="grade6")
    none = Problem("2", "?", ("x", "y"), 0, subject="language science", grade="grade7", skill="guide words")
    scores = score([both, none], [Prediction("2", 1, False), Prediction("1", 0, True)])
    counts = {name: (share.correct, share.n) for name, share in scores.columns.items()}
    assert counts == {
        "NAT": (1, 1),
        "SOC": (0, 0),
        "LAN": (0, 1),
        "TXT": (1, 1),
        "IMG": (1, 1),
        "NO": (0, 1),
        "G1-6": (1, 1),
        "G7-12": (0, 1),
        "Avg": (1, 2),
    }
    assert scores.by_skill == {"guide words": Share(0, 1)}
    record = scores.to_dict()
    assert list(record)[:11] == ["avg", "ci95", *CATEGORIES]
    assert (record["avg"], record["Avg"], record["SOC"], record["ci95"]) == (50.0, 50.0, None, [9.45, 90.55])
    assert Scores.from_dict(record) == scores


def test_score_refuses_what_does_not_match(problems):
    answers = [Prediction(p.id, 0, True) for p in problems]
    for given, complaint in (
        (answers[1:], "1 problems have no prediction, the first is a"),
        ([*answers, Prediction("z", 0, True)], "prediction z belongs to none"),
        ([*answers, answers[0]], "prediction a occurs more than once"),
    ):
        with pytest.raises(ScoreError, match=complaint):
            score(problems, given)


def test_majority_class_is_per_number_of_choices():
    def problem(answer, k):
        return Problem(f"{answer}{k}", "?", tuple("abcde"[:k]), answer)

    train = [problem(1, 2), problem(1, 2), problem(0, 2), problem(2, 3), problem(0, 3)]
    answers = majority_class([problem(0, 2), problem(2, 3), problem(0, 4)], train)
    assert [(a.choice, a.correct) for a in answers] == [(1, False), (0, False), (0, True)]


def test_compare_pairs_by_id():
    first = [Prediction(str(i), 0, i < 60) for i in range(100)]
    second = [Prediction(str(i), 0, i < 50 or i >= 96) for i in reversed(range(100))]
    result = compare(first, second)
    assert (result.only_first, result.only_second, result.difference) == (10, 4, 6.0)
    assert result.p_value == pytest.approx(0.17957, abs=1e-5)  # exact two-sided binomial test of 10 in 14
    assert compare(first, first).p_value == 1.0
    with pytest.raises(ScoreError, match="different problems"):
        compare(first, second[1:])


def test_compare_gives_points_and_their_interval():
    first = [Prediction(str(i), 0, i < 240) for i in range(400)]
    second = [Prediction(str(i), 0, i < 200 or i >= 384) for i in range(400)]
    result = compare(first, second)
    assert result.difference == 6.0  # 40 alone against 16 alone, of 400
    half = 1.96 * 100 * math.sqrt((0.1 + 0.04 - 0.06**2) / 400)
    assert result.ci95 == (pytest.approx(6 - half, rel=0.1), pytest.approx(6 + half, rel=0.1))


def test_predictions_survive_a_file(tmp_path):
    written = [Prediction("a", None, False, "line one\nline \u2028 two"), Prediction("b", 1, True, "é", (-1.5, -0.25))]
    save_predictions(written, tmp_path / "p.jsonl")
    assert load_predictions(tmp_path / "p.jsonl") == written


@pytest.mark.parametrize(
    "numbers",
    [{"batch_size": 0}, {"batch_size": -1}, {"batch_size": 1.5}, {"max_new_tokens": 0}, {"max_new_tokens": None}],
)
def test_numbers_that_are_none_are_refused(numbers):
    """A batch of -1 would never end."""
    (name,) = numbers
    with pytest.raises(answering.EvaluationError, match=f"{name} is .*; give a whole number above 0"):
        answering.evaluate(tinyvlm.build(), tinyvlm.PROBLEMS, "generate", progress=False, **numbers)


@pytest.mark.parametrize("content", [b"junk\n", b"[]\n", b'{"id": "a"}\n', b"\xff\n"])
def test_predictions_that_are_none_and_files_that_cannot_be_had_are_sentences(tmp_path, content):
    (tmp_path / "some.jsonl").write_bytes(content)
    with pytest.raises(ScoreError, match="some.jsonl does not hold predictions"):
        load_predictions(tmp_path / "some.jsonl")
    for use in (load_predictions, lambda path: save_predictions([], path)):
        with pytest.raises(FileError, match="cannot be used"):
            use(tmp_path / "some.jsonl" / "below")
