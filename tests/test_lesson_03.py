"""Lesson 03: its exercises are judged rightly, and what its notebook inlines equals the package's own."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from zlib import crc32

import nbformat
import numpy as np
import pytest
import tinyvlm
import torch

from mmlora.encoding.loss import batch_loss
from mmlora.encoding.prompts import asked, taught
from mmlora.encoding.sample import collate, encode
from mmlora.lessons import lesson_03
from mmlora.lessons.exercises import verdict
from mmlora.paths import NOTEBOOKS


def inlined(name: str, **known):
    """A function of the notebook, made from its cell's own source."""
    cells = nbformat.read(NOTEBOOKS / "03_scienceqa.ipynb", as_version=4).cells
    (source,) = [c.source for c in cells if c.cell_type == "code" and re.search(rf"^def {name}\(", c.source, re.M)]
    names = {"torch": torch, "np": np, "re": re, "replace": replace, **known}
    definition = source[re.search(rf"^def {name}\(", source, re.M).start() :]
    exec(re.split(r"\n\n\n|\n(?=\S)", definition)[0], names)
    return names[name]


# -- what the notebook inlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", tinyvlm.PROBLEMS, ids=lambda problem: problem.id)
def test_the_inlined_mask_gives_the_labels_of_encode(tiny_vlm, problem):
    sample = encode(tiny_vlm.processor, taught(problem, "answer"))
    prompt = len(encode(tiny_vlm.processor, asked(problem)))
    ids = sample.input_ids.clone()
    labels = inlined("mask")(ids, prompt)
    assert torch.equal(labels, sample.labels) and torch.equal(ids, sample.input_ids)
    assert (labels != -100).any() and (labels == -100).any()


@pytest.mark.parametrize("problem", tinyvlm.PROBLEMS, ids=lambda problem: problem.id)
def test_the_loss_by_hand_is_the_models_own(tiny_vlm, problem):
    batch = collate([encode(tiny_vlm.processor, taught(problem, "explanation_answer"))])
    with torch.no_grad():
        output, (total, tokens) = tiny_vlm.model(**batch), batch_loss(tiny_vlm.model, batch)
    nats = inlined("loss_by_hand")(output.logits[0], batch["labels"][0])
    assert len(nats) == tokens and nats.min() > 0
    torch.testing.assert_close(nats.mean(), output.loss)
    torch.testing.assert_close(nats.sum(), total)


def test_swapping_gives_every_problem_another_ones_picture():
    left, text, right, plain = tinyvlm.PROBLEMS
    third = replace(left, id="third", image=tinyvlm.picture("green", "blue"))
    lonely = replace(left, id="lonely", skill="a skill of its own")
    shown = [left, text, lonely, right, plain, third]
    changed = inlined("swapped")(shown)
    own = {problem.id: problem.image for problem in shown}
    assert {p.id for p in changed} == {"left", "right", "third"}, "without pictures, or alone in a skill: left out"
    assert all(problem.image is not own[problem.id] for problem in changed)
    assert Counter(id(p.image) for p in changed) == Counter(id(own[p.id]) for p in changed), "each is used once"
    by_id = {p.id: p for p in shown}
    assert all(replace(p, image=own[p.id]) == by_id[p.id] for p in changed), "nothing else has changed"


def test_the_broken_masks_are_broken_as_the_lesson_says(tiny_vlm):
    cells = nbformat.read(NOTEBOOKS / "03_scienceqa.ipynb", as_version=4).cells
    (source,) = [c.source for c in cells if c.source.startswith("SLOT = ")]
    names = {"vlm": tiny_vlm}
    exec(source.split("\nfor ")[0], names)
    row = encode(tiny_vlm.processor, taught(tinyvlm.PROBLEMS[0], "answer"))
    ids, start = row.input_ids, int((row.labels == -100).sum())
    labels = {name: make(row) for name, make in names["LABELS"].items()}
    assert list(labels) == ["never", "twice", "prompt_too", "right"]
    assert torch.equal(labels["right"], row.labels)
    slots = ids == tiny_vlm.processor.image_token_id
    assert slots.any() and torch.equal(labels["prompt_too"] != -100, ~slots)
    targets = {name: each[1:] for name, each in labels.items()}  # position t predicts label t + 1
    assert torch.equal(targets["never"][start - 1 :], ids[start - 1 : -1]), "each token itself"
    assert torch.equal(targets["twice"][start - 2 : -1], ids[start:]), "the token after the next one"
    assert (targets["never"][: start - 1] == -100).all() and (targets["twice"][: start - 2] == -100).all()


def test_the_blind_reader_gets_numbers_for_every_choice():
    bags = inlined("features", crc32=crc32, SIZE=2**18)(tinyvlm.PROBLEMS[1])
    assert len(bags) == 2 and all(bags) and set(bags[0]).isdisjoint(bags[1])


# -- its exercises -------------------------------------------------------------------------------------------------------


def masked(ids, prompts, first=0, after=1, shift=0):
    """Right with the defaults; otherwise wrong by so many tokens at the start, at the end, or in their places."""
    labels = torch.full_like(ids, -100)
    for row, (tokens, prompt) in enumerate(zip(ids, prompts)):
        end = prompt + tokens[prompt:].tolist().index(2)
        kept = slice(prompt + first, end + after)
        labels[row, kept] = tokens[kept]
    return labels.roll(shift, 1)


def in_place(ids, prompts):
    ids[:] = masked(ids, prompts)
    return ids


def test_a_right_batch_mask():
    assert verdict("03-1", masked).state == "right"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda ids, prompts: masked(ids, prompts, after=0), "never learns to stop"),
        (lambda ids, prompts: masked(ids, prompts).masked_fill(ids == 2, -100), "never learns to stop"),
        (lambda ids, prompts: masked(ids, prompts, after=2), "adding behind a reply"),
        (lambda ids, prompts: masked(ids, prompts, first=-1), "one too many"),
        (lambda ids, prompts: masked(ids, prompts, shift=-1), "shifted"),
        (in_place, "changed the ids"),
        (lambda ids, prompts: masked(ids, prompts).clamp(min=0), "not -100 should be the token"),
        (lambda ids, prompts: None, "shape"),
        (3, "TypeError"),
    ],
)
def test_a_wrong_batch_mask_has_its_own_hint(answer, hint):
    found = verdict("03-1", answer)
    assert found.state == "wrong" and hint in found.words


def test_a_mask_without_the_first_token_of_a_reply():
    def late(ids, prompts):
        labels = masked(ids, prompts)
        labels[0, prompts[0]] = -100
        return labels

    assert "how to begin" in verdict("03-1", late).words


def test_the_accuracy_of_a_scorer_that_guesses():
    rng = np.random.default_rng(0)
    right = []
    for choices, count in lesson_03.MIX.items():
        named = rng.random((2000, count)) < lesson_03.NAMED
        right.append(
            np.where(named, rng.random((2000, count)) < lesson_03.RIGHT, rng.random((2000, count)) < 1 / choices)
        )
    simulated = 100 * np.concatenate(right, axis=1).mean()
    assert simulated == pytest.approx(79.2, abs=0.1)
    assert verdict("03-2", 79.2).state == "right"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [(0.792, "percent"), (72, "lmms-eval's"), (36, "chance on all"), (78.667, "mean number of choices"), (75, "")],
)
def test_a_wrong_accuracy_has_its_own_hint(answer, hint):
    found = verdict("03-2", answer)
    assert found.state == "wrong" and hint in found.words


def cautious(question, choices):
    sure = [any(word in choice.split() for word in lesson_03.SURE) for choice in choices]
    return sure.index(False) if False in sure else 0


def test_a_rule_that_found_the_leak():
    assert verdict("03-3", cautious).state == "right"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda question, choices: 0, "always takes the same place"),
        (lambda question, choices: int(np.argmax([len(c) for c in choices])), "% of 600 new problems"),
        (lambda question, choices: choices.index(min(choices)), "% of 600 new problems"),
        (lambda question, choices: (cautious(question, choices) + 1) % 3, "turn it round"),
        (lambda question, choices: None, "TypeError"),
    ],
)
def test_a_rule_that_found_nothing(answer, hint):
    found = verdict("03-3", answer)
    assert found.state == "wrong" and hint in found.words


def test_the_leak_is_planted_and_nothing_else():
    problems = lesson_03.leaky(600)
    assert set(Counter(p.answer for p in problems).values()) == {200}
    assert len({p.id for p in problems}) == 600 and problems[0] == lesson_03.leaky(600)[0]
    longest = np.mean([np.argmax([len(c) for c in p.choices]) == p.answer for p in problems])
    assert longest < (100 / 3 + lesson_03.MARGIN) / 100


def test_the_quiz_has_its_options():
    assert 3 <= len(lesson_03.QUIZ) <= 5
    assert all(0 <= q.right < len(q.options) == len(set(q.options)) for q in lesson_03.QUIZ)
    assert len({q.right for q in lesson_03.QUIZ}) > 1
