"""Lesson 02: its exercises' judges, and that what it inlines is what the package computes."""

import nbformat
import pytest
import tinyvlm
import torch

from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import collate, encode
from mmlora.lessons.exercises import exercises, verdict
from mmlora.lessons.lesson_02 import QUIZ
from mmlora.paths import NOTEBOOKS
from mmlora.smolbridge.words import words_read


def cells():
    path = NOTEBOOKS / "02_inside_a_vlm.ipynb"
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def defined(name, **given):
    """The notebook's own function, from the first cell that defines it (up to where code follows the definitions)."""
    source = next(s for s in cells() if f"def {name}(" in s)
    kept = source.split("\n\n\n")
    start = next(i for i, part in enumerate(kept) if f"def {name}(" in part)
    exec(kept[start], given)
    return given[name]


@pytest.fixture
def batch(tiny_vlm):
    return collate([encode(tiny_vlm.processor, taught(tinyvlm.PROBLEMS[0], "answer"))])


@torch.inference_mode()
def test_the_parts_give_the_models_logits(tiny_vlm, batch):
    model = tiny_vlm.model
    see, fill = defined("see"), defined("fill", torch=torch)
    visual = see(model, batch["pixel_values"])
    torch.testing.assert_close(visual, model.model.get_image_features(batch["pixel_values"]))
    slots = batch["input_ids"] == model.config.image_token_id
    text = model.model.language_model.embed_tokens(batch["input_ids"].masked_fill(slots, 0))
    assert torch.equal(fill(text, slots, visual), model.model.embed(batch["input_ids"], visual))
    logits = defined("read", fill=fill)(model, batch["input_ids"], visual)
    torch.testing.assert_close(logits, model(**batch).logits, rtol=1e-4, atol=1e-5)
    changed = defined("read", fill=fill)(model, batch["input_ids"], visual.flip(1))
    assert not torch.allclose(logits, changed, atol=1e-3)  # the order of the visual tokens tells


def test_the_token_map_has_every_token_and_its_kind(tiny_vlm):
    problem = tinyvlm.PROBLEMS[0]
    sample = encode(tiny_vlm.processor, taught(problem, "answer"))
    pieces = defined("pieces", vlm=tiny_vlm, IGNORED=-100)
    found = list(pieces(sample, words_read(tiny_vlm, problem.image)))
    kinds = [kind for _, kind in found]
    assert len(found) == len(sample)
    assert kinds.count("image slot") == tiny_vlm.model.config.visual_tokens
    assert [kind == "supervised" for kind in kinds] == (sample.labels != -100).tolist()
    said = "".join(word for word, kind in found if kind == "supervised")
    assert said.replace("·", " ") == "The answer is red.<|im_end|>"
    assert kinds[0] == "special" and "prompt" in kinds


def test_swapped_pictures_show_another_answer():
    from dataclasses import replace

    swapped = defined("swapped", replace=replace)
    problems = [p for p in tinyvlm.PROBLEMS if p.image is not None] * 2
    problems[1:2] = [replace(problems[1], answer=1)]
    for before, after in zip(problems, swapped(problems)):
        source = next(p for p in problems if p.image is after.image)
        assert source.answer_text != before.answer_text
        assert replace(after, image=before.image) == before


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((81, 81 / 141), None),
        ([81, 0.574], None),
        ((729, 729 / 789), "before pixel shuffle"),
        ((243, 0.8), "a square of them"),
        ((84, 0.58), "round down"),
        ((83.6, 0.58), "round down"),
        ((81, 81 / 60), "divide by both"),
        ((81, 57.4), "between 0 and 1"),
        ((81, 0.3), "the share is not"),
        (81, "two numbers"),
    ],
)
def test_counting_visual_tokens(answer, says):
    expect("02-1", answer, says)


def good(text, slots, visual):
    filled = text.clone()
    filled[slots] = visual.flatten(0, 1)
    return filled


def transposed(text, slots, visual):
    filled = text.clone()
    filled[slots] = visual.transpose(0, 1).flatten(0, 1)
    return filled


def in_place(text, slots, visual):
    text[slots] = visual.flatten(0, 1)
    return text


def at_the_front(text, slots, visual):
    filled = text.clone()
    filled.view(-1, text.shape[-1])[: visual.flatten(0, 1).shape[0]] = visual.flatten(0, 1)
    return filled


def added(text, slots, visual):
    filled = text.clone()
    filled[slots] += visual.flatten(0, 1)
    return filled


def inserted(text, slots, visual):
    return torch.cat([text, visual.reshape(1, -1, text.shape[-1]).expand(len(text), -1, -1)], dim=1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (good, None),
        (lambda t, s, v: t.masked_scatter(s.unsqueeze(-1), v), None),
        (transposed, "in another order"),
        (in_place, "text.clone()"),
        (at_the_front, "overwrites text"),
        (added, "do not hold"),
        (inserted, "has shape"),
        (lambda t, s, v: None, "returns nothing"),
        (torch.zeros(2), "a function is wanted"),
    ],
)
def test_filling_slots(answer, says):
    expect("02-2", answer, says)


def test_the_lessons_own_function_is_not_yet_the_answer(tiny_vlm):
    assert verdict("02-2", defined("fill", torch=torch)).state == "wrong"


QUIET = [0.0] * 24


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([0.0, 0, 0, 0, 3.1, 0.2, *QUIET[6:]], None),
        ([0.0, 0, 0, 0, 0.3, 2.1, 0.4, *QUIET[7:]], None),
        ([2.0, 0, 0, 0, 1.0, *QUIET[5:]], "begin with the same 4 words"),
        (QUIET, "nothing changed"),
        ([2.0] * 24, "only one token"),
        ([0.0] * 4 + [1.0] * 19 + [1.1], "fresh clone"),
        ([-9.0] * 24, "absolute value"),
        ([1.0], "24 visual tokens"),
        ([float("nan")] * 24, "finite"),
    ],
)
def test_finding_the_token_that_tells(answer, says):
    expect("02-3", answer, says)


def expect(name, answer, says):
    found = verdict(name, answer)
    assert found.state == ("right" if says is None else "wrong"), found
    if says is not None:
        assert says.lower() in found.words.lower()


def test_every_exercise_of_the_notebook_has_a_judge():
    called = {s.split('check("')[1][:4] for s in cells() if 'check("' in s}
    assert called == set(exercises("02")) and all(0 <= q.right < len(q.options) for q in QUIZ)


@torch.inference_mode()
def test_a_softened_connector_is_less_sure_of_the_same_words(tiny_vlm, batch):
    core = tiny_vlm.model.model
    before = core.get_image_words(batch["pixel_values"])
    hook = defined("soften", core=core)(2)
    try:
        after = core.get_image_words(batch["pixel_values"])
    finally:
        hook.remove()
    assert torch.equal(before.argmax(-1), after.argmax(-1)) and (after.amax(-1) < before.amax(-1)).all()
    torch.testing.assert_close(after, before.sqrt() / before.sqrt().sum(-1, keepdim=True), rtol=1e-3, atol=1e-6)
    assert torch.equal(core.get_image_words(batch["pixel_values"]), before)
