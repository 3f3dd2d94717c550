"""From problem to tokens and back: what is supervised, what counts as a picture, and which choice was said."""

import io
import random
from dataclasses import replace

import pytest
import tinyvlm
import torch
from PIL import Image

from mmlora.encoding.answers import parse_answer, parse_lmms, parse_official
from mmlora.encoding.conversation import EncodingError
from mmlora.encoding.loss import IGNORED
from mmlora.encoding.prompts import asked, lmms_prompt, prompt_text, target_text, taught
from mmlora.encoding.sample import encode, show_labels
from mmlora.encoding.samples import Samples
from mmlora.problems.record import Problem

LEFT, TEXT = tinyvlm.PROBLEMS[:2]
TARGETS = {
    "answer": "The answer is red.",
    "answer_explanation": "The answer is red. The left square is red.",
    "explanation_answer": "The left square is red. The answer is red.",
}


# What is asked and what is supervised.


def test_the_prompt_holds_question_context_and_lettered_options():
    assert prompt_text(TEXT) == "Question: Which is a colour?\nContext: Colours are seen.\nOptions: (A) seven (B) green"
    assert "Context" not in prompt_text(LEFT) and LEFT.solution not in prompt_text(LEFT)


@pytest.mark.parametrize("format", TARGETS)
def test_labels_cover_the_target_and_its_end_token_and_nothing_else(tiny_vlm, format):
    sample = encode(tiny_vlm.processor, taught(LEFT, format))
    supervised = sample.labels != IGNORED
    first = int(supervised.nonzero()[0])
    assert supervised[first:].all() and (sample.labels[first:] == sample.input_ids[first:]).all()
    assert tiny_vlm.processor.tokenizer.decode(sample.labels[first:]) == TARGETS[format] + tinyvlm.STOP
    slots = sample.input_ids == tiny_vlm.processor.image_token_id
    assert slots.sum() == 4 and not (slots & supervised).any()
    assert target_text(LEFT, format) == TARGETS[format]


@pytest.mark.parametrize("problem", tinyvlm.PROBLEMS, ids=lambda p: p.id)
def test_training_reads_what_answering_reads(tiny_vlm, problem):
    """The prompt given at answering time is, token for token, the unsupervised part of the training sample."""
    question, lesson = (encode(tiny_vlm.processor, said) for said in (asked(problem), taught(problem, "answer")))
    length = int((lesson.labels == IGNORED).sum())
    assert question.input_ids.tolist() == lesson.input_ids[:length].tolist()
    assert (question.labels == IGNORED).all() and question.id == lesson.id == problem.id
    assert (not question.pictures) == (problem.image is None)
    assert tiny_vlm.processor.tokenizer.decode(question.input_ids).endswith(f"{tinyvlm.START}assistant\n")


def test_an_image_mark_in_the_text_is_no_picture(tiny_vlm):
    odd = Problem(
        "odd",
        "What does <image> mean?",
        ("<image>", "no"),
        0,
        hint="In HTML, <image> is no tag.",
        solution="It says <image>.",
    )
    sample = encode(tiny_vlm.processor, taught(odd, "explanation_answer"))
    assert not sample.pictures and not (sample.input_ids == tiny_vlm.processor.image_token_id).any()
    seen = encode(tiny_vlm.processor, taught(replace(odd, image=LEFT.image), "explanation_answer"))
    assert (seen.input_ids == tiny_vlm.processor.image_token_id).sum() == 4 and len(seen.pictures["pixel_values"]) == 1


def test_several_pictures_stand_before_the_words_in_their_order(tiny_vlm):
    processor = tiny_vlm.processor
    one, two = taught(LEFT, "answer"), tinyvlm.picture("olive")
    both = encode(processor, replace(one, pictures=(*one.pictures, two)))
    assert (both.input_ids == processor.image_token_id).sum() == 8 and both.pictures["pixel_values"].shape == (
        2,
        3,
        128,
        128,
    )
    apart = [
        encode(processor, replace(one, pictures=(picture,))).pictures["pixel_values"][0]
        for picture in (*one.pictures, two)
    ]
    assert all(map(torch.equal, both.pictures["pixel_values"], apart)) and not torch.equal(*apart)
    assert show_labels(processor, both).startswith(f"{tinyvlm.START}user\n[4 image slots]\n[4 image slots]\nQuestion")
    single, double = (
        Samples(tiny_vlm, [c]).loss(tiny_vlm.model, [0])[0] for c in (one, replace(one, pictures=(*one.pictures, two)))
    )
    assert double.isfinite() and not torch.isclose(single, double, rtol=1e-4)


def test_show_labels_marks_what_is_supervised(tiny_vlm):
    shown = show_labels(tiny_vlm.processor, encode(tiny_vlm.processor, taught(LEFT, "answer")))
    start, stop = tinyvlm.START, tinyvlm.STOP
    assert shown == (
        f"{start}user\n[4 image slots]\n{prompt_text(LEFT)}{stop}\n{start}assistant\n⟦The answer is red.{stop}⟧"
    )
    warm = replace(TEXT, choices=("21 °C", "30 °C"))  # a degree sign is more than one byte, and so maybe two tokens
    assert "⟦The answer is 30 °C." in show_labels(
        tiny_vlm.processor, encode(tiny_vlm.processor, taught(warm, "answer"))
    )
    assert "⟦" not in show_labels(tiny_vlm.processor, encode(tiny_vlm.processor, asked(LEFT)))


def test_an_unknown_format_is_named_with_the_known_ones(tiny_vlm):
    with pytest.raises(
        EncodingError, match="'letters'; there are answer, answer_explanation, explanation_answer, QCM-A"
    ):
        encode(tiny_vlm.processor, taught(LEFT, "letters"))


def test_a_broken_picture_is_named_by_its_problem(tiny_vlm):
    buffer = io.BytesIO()
    tinyvlm.picture("red", size=(300, 200)).save(buffer, "JPEG")
    broken = Image.open(io.BytesIO(buffer.getvalue()[:900]))
    with pytest.raises(EncodingError, match="problem left: its picture cannot be read .*truncated"):
        encode(tiny_vlm.processor, asked(replace(LEFT, image=broken)))


def test_a_picture_in_a_file_is_not_kept_decoded(tiny_vlm):
    """Thousands of decoded pictures are gigabytes."""
    data = io.BytesIO()
    tinyvlm.PROBLEMS[0].image.save(data, "PNG")
    in_file = replace(tinyvlm.PROBLEMS[0], image=Image.open(data))
    pixels = [
        encode(tiny_vlm.processor, taught(problem, "answer")).pictures["pixel_values"]
        for problem in (tinyvlm.PROBLEMS[0], in_file, in_file)
    ]
    assert pixels[0].equal(pixels[1]) and pixels[0].equal(pixels[2])
    assert in_file.image.tile, "it was decoded in place"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_are_read(tiny_vlm, mode):
    assert (
        encode(tiny_vlm.processor, asked(replace(LEFT, image=LEFT.image.convert(mode))))
        .pictures["pixel_values"]
        .shape[1]
        == 3
    )


# Which choice was said.

COLOURS = ("red", "olive green", "green")
GREETINGS = ("Dear Aunt Ann,", "dear Aunt Ann,", "Dear aunt ann,")
PLACES = ("Mt", "Mt. Everest", "St. Helens")


@pytest.mark.parametrize(
    "text, choices, expected",
    [
        ("The answer is red.", COLOURS, 0),
        ("The answer is red", COLOURS, 0),
        ("the ANSWER is  Olive\nGreen .", COLOURS, 1),
        ("THE ANSWER IS OLIVE GREEN.", COLOURS, 1),
        ("The answer is: green.", COLOURS, 2),
        ("It is red. The answer is green. The left one is red.", COLOURS, 2),
        ("The answer is red. No, wait. The answer is green.", COLOURS, 2),
        ("The answer is red. The answer is purple.", COLOURS, None),
        ("The answer is red\nQuestion: which", COLOURS, 0),
        ("The answer is reddish.", COLOURS, None),
        ("The answer is green olives.", COLOURS, None),
        ("The answer is not red.", COLOURS, None),
        ("The answer isn't red.", COLOURS, None),
        ("The left square is red.", COLOURS, None),
        ("The answer is", COLOURS, None),
        ("The answer is .", COLOURS, None),
        ("", COLOURS, None),
        ("The answer is Mt. Everest.", PLACES, 1),
        ("The answer is Mt Everest.", PLACES, 1),
        ("The answer is Mt.", PLACES, 0),
        ("The answer is Mt. It is short.", PLACES, 0),
        ("The answer is St. Helens. It is a volcano.", PLACES, 2),
        ("The answer is Mt. Whitney.", PLACES[1:], None),
        ("The answer is 3.5 m.", ("35 m", "3.5 m", "3 m"), 1),
        ("The answer is 3 m.", ("35 m", "3.5 m", "3 m"), 2),
        ("The answer is It rains. I stay..", ("It rains.", "It rains. I stay."), 1),
        ("The answer is It rains..", ("It rains.", "It rains. I stay."), 0),
        ("The answer is Dear Aunt Ann,.", GREETINGS, 0),
        ("The answer is dear Aunt Ann,.", GREETINGS, 1),
        ("The answer is Dear aunt ann,.", GREETINGS, 2),
        ("The answer is DEAR AUNT ANN,.", GREETINGS, None),
        ("The answer is Dr. Lee.", ("Dr Lee", "Dr. Lee"), 1),
        ("The answer is same.", ("same", "same"), None),
        ("The answer is (C) green.", COLOURS, 2),
        ("The answer is (a) Red", COLOURS, 0),
        ("The answer is (A) green.", COLOURS, None),
        ("The answer is (C).", COLOURS, None),
        ("The answer is (B) dear Aunt Ann,.", GREETINGS, 1),
    ],
)
def test_the_choice_that_was_said(text, choices, expected):
    assert parse_answer(text, choices) == expected


@pytest.mark.parametrize("format", TARGETS)
@pytest.mark.parametrize("choices", [COLOURS, GREETINGS, PLACES, ("3.5 m", "35 m", "5 m."), ("A. B.", "A.", "B.")])
def test_every_target_names_its_own_choice(format, choices):
    for answer in range(len(choices)):
        problem = replace(LEFT, choices=choices, answer=answer, solution="It is so. Look at the left.")
        assert parse_answer(target_text(problem, format), choices) == answer


ALIKE = [
    ("Mr", "Mr."),
    ("I ran", "I ran.", "I ran..", "i ran"),
    ("wait", "wait...", "wait."),
    ("at 5 p.m", "at 5 p.m.", "at 5 pm"),
    (".", "...", "!"),
    ("the answer is no", "no", "The answer is"),
    ("(B) x", "x", "(A) (B) x"),
    ("Polish", "polish", "POLISH."),
    ("a b", "a  b", " a b", "a\tb"),
    ("x", "x\ny", "x\n\ny.\n"),
    ("caf\u00e9", "cafe\u0301", "cafe"),
    ("🙂", "🙃", "🙂🙂", "👩‍👩‍👧"),
    ("so. " * 900 + "a", "so. " * 900 + "b", "so. " * 899 + "a"),
]


@pytest.mark.parametrize("format", TARGETS)
@pytest.mark.parametrize("choices", ALIKE, ids=[choices[0][:20] for choices in ALIKE])
def test_the_taught_sentence_names_its_choice_among_others_that_are_nearly_the_same(format, choices):
    for answer in range(len(choices)):
        problem = replace(LEFT, choices=choices, answer=answer, solution="It is so. Look at the left.")
        assert parse_answer(target_text(problem, format), choices) == answer


def test_any_choices_are_told_apart_by_the_taught_sentence():
    parts = (
        ".",
        "..",
        " ",
        "\n",
        "a",
        "A",
        "(A) ",
        "(B) ",
        "the answer is ",
        "Mr",
        "é",
        "e\u0301",
        ": ",
        "🙂",
        "\u00a0",
    )
    lot = random.Random(0)
    for _ in range(2000):
        drawn = {"".join(lot.choices(parts, k=lot.randint(1, 4))): None for _ in range(4)}
        choices = tuple(choice for choice in drawn if choice.strip())
        if len(choices) < 2:
            continue
        for answer in range(len(choices)):
            problem = replace(LEFT, choices=choices, answer=answer)
            for format in TARGETS:
                assert parse_answer(target_text(problem, format), choices) == answer, (format, choices, answer)


@pytest.mark.parametrize(
    "text, choices, expected",
    [
        ("The answer is the answer is no.", ("the answer is no", "no"), 0),
        ("The answer is no.", ("the answer is no", "no"), 1),
        ("The answer is cafe\u0301.", ("caf\u00e9", "tea"), 0),
        ("The answer is (C) Polish.", ("a", "b", "Polish", "polish"), 2),
        ("The answer is I ran", ("I ran", "I ran."), 0),
        ("The answer is\n", (".", "!"), None),
    ],
)
def test_what_else_was_said_among_such_choices(text, choices, expected):
    assert parse_answer(text, choices) == expected


# ScienceQA's own protocol, and lmms-eval's.

TAUGHT = replace(TEXT, lecture="Colours are seen by eye.", answer=1)


@pytest.mark.parametrize(
    "format, said",
    [
        ("QCM-A", "The answer is B."),
        ("QCM-ALE", "The answer is B. BECAUSE: Colours are seen by eye. Green is seen."),
        ("QCM-LEA", "Colours are seen by eye. Green is seen. The answer is B."),
    ],
)
def test_the_official_formats_say_the_letter(format, said):
    assert target_text(TAUGHT, format) == said
    assert parse_official(said, TAUGHT.choices) == 1
    bare = replace(TAUGHT, lecture="", solution="")  # a fifth of ScienceQA has no lecture
    assert "  " not in target_text(bare, format) and parse_official(target_text(bare, format), bare.choices) == 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The answer is A. The answer is B.", None),
        ("So The answer is C.", 2),
        ("The answer is A. BECAUSE: A.", 0),
        ("the answer is A.", None),
        ("The answer is D.", None),
        ("The answer is Z.", None),
        ("A", None),
        ("The answer is", None),
    ],
)
def test_the_official_scorer_reads_one_letter(text, expected):
    assert parse_official(text, COLOURS) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("B", 1),
        ("B.", 1),
        ("C. green", 2),
        ("b", None),
        ("(B)", None),
        ("B green", None),
        ("The answer is B.", None),
        ("", None),
        ("D", None),
    ],
)
def test_lmms_eval_takes_a_letter_and_nothing_else(text, expected):
    assert parse_lmms(text, COLOURS) == expected


def test_lmms_evals_prompt():
    assert lmms_prompt(TEXT) == (
        "Context: Colours are seen.\nWhich is a colour?\nA. seven\nB. green\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_every_target_of_minisqa_names_its_own_choice():
    from mmlora.minisqa import generate

    problems = list(generate("validation", 150))
    assert len({p.skill for p in problems}) >= 24
    missed = [
        p.id
        for p in problems
        for format in ("answer_explanation", "explanation_answer")
        if parse_answer(target_text(p, format), p.choices) != p.answer
    ]
    assert not missed


# With SmolBridge's own tokenizer.


def test_smolbridge_reads_and_ends_as_its_tokenizer_says(real_vlm):
    processor = real_vlm.processor
    sample = encode(processor, taught(LEFT, "explanation_answer"))
    slots = sample.input_ids == processor.image_token_id
    assert slots.sum() == processor.visual_tokens == 24
    assert sample.pictures["pixel_values"].shape == (1, 3, 256, 256)
    target = sample.labels[sample.labels != IGNORED]
    assert processor.tokenizer.decode(target) == TARGETS["explanation_answer"] + "<|im_end|>"
    assert show_labels(processor, sample).startswith("<|im_start|>user\n[24 image slots]\nQuestion: Which colour")
    assert int(target[-1]) == processor.tokenizer.eos_token_id == real_vlm.model.generation_config.eos_token_id
    assert sample.input_ids[~slots].max() < real_vlm.model.config.text_config.vocab_size
