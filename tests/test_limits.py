"""What cannot be read, written or told apart is said by name: too long, refused by a library, tied, or not the model's."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace

import families
import numpy as np
import pytest
import tinyvlm
import torch
from PIL import Image
from transformers import BloomConfig, BloomForCausalLM

from mmlora.encoding.conversation import Conversation, EncodingError
from mmlora.encoding.prompts import asked, taught
from mmlora.encoding.room import room
from mmlora.encoding.sample import encode, reply_tokens
from mmlora.encoding.samples import Samples
from mmlora.evaluation import answering
from mmlora.evaluation.answering import evaluate
from mmlora.evaluation.scores import score
from mmlora.inference import generate as generation
from mmlora.inference.ask import ask
from mmlora.inference.generate import InferenceError, generate
from mmlora.inference.session import Session, evaluating
from mmlora.models.vlm import load_base
from mmlora.models.words import TokenizerError
from mmlora.problems.record import Problem
from mmlora.training.captions import learn_to_read

RED = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def vlm():
    """Reads 256 tokens."""
    vlm = families.build("smolvlm")
    vlm.model.config.get_text_config().max_position_embeddings = 256
    return vlm


def long_problem(vlm, tokens: int) -> Problem:
    """A problem p7 whose prompt takes exactly so many tokens."""
    problem = Problem("p7", "Which?", ("a", "b"), 0)
    short = len(encode(vlm.processor, asked(problem)))
    return replace(problem, question="Which?" + "\x7f" * (tokens - short))  # no merges: a token each


def ending(vlm, score: float):
    """A hook that gives the end token this score at every place."""

    def set_score(model, inputs, out):
        out.logits[..., vlm.processor.tokenizer.eos_token_id] = score

    return vlm.model.register_forward_hook(set_score)


# -- too long ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["likelihood", "letter", "generate", "official", "lmms_eval"])
def test_a_problem_longer_than_the_model_reads_is_refused_by_every_method(vlm, method):
    with pytest.raises(EncodingError, match=r"problem p7 takes \d+ tokens and does not fit in the model's 256"):
        evaluate(vlm, [Problem("p7", "word " * 150, ("a", "b"), 0)], method, progress=False)


def test_likelihood_counts_the_longest_choice(vlm):
    answer = len(reply_tokens(vlm.processor, "The answer is b."))
    assert evaluate(vlm, [long_problem(vlm, 256 - answer)], progress=False)[0].id == "p7"
    with pytest.raises(EncodingError, match="problem p7 takes 257 tokens"):
        evaluate(vlm, [long_problem(vlm, 256 - answer + 1)], progress=False)


def test_a_reply_ends_where_the_model_reads_no_further_and_is_named(vlm, monkeypatch):
    problem = long_problem(vlm, 248)
    short = Problem("short", "Which?", ("a", "b"), 0)
    silenced = ending(vlm, -1e9)
    batches, rows = [], []
    monkeypatch.setattr(generation, "decoded", lambda _, said: rows.extend(said) or [""] * len(said))
    step = Session.decode_step
    monkeypatch.setattr(Session, "decode_step", lambda self, ids: batches.append(len(ids)) or step(self, ids))
    try:
        with (
            evaluating(vlm),
            pytest.warns(UserWarning, match=r"to p7 \(1 in all\) were cut at the 256 tokens"),
        ):
            cut = generate(vlm, [asked(problem), asked(short)], 12)[1]
    finally:
        silenced.remove()
    assert cut == 2 and [len(row) for row in rows] == [8, 12]
    assert len(batches) == 11
    assert batches[-1] == 1, "the row that has no room left leaves the batch"


def test_a_reply_that_ends_in_time_is_as_it_was(vlm):
    problem = long_problem(vlm, 248)
    ended = ending(vlm, 1e9)
    try:
        with evaluating(vlm), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert generate(vlm, [asked(problem)], 192) == ([""], 0)
    finally:
        ended.remove()


def test_ask_refuses_what_training_refuses_and_names_where_it_was_cut(vlm, capsys):
    with pytest.raises(EncodingError, match="takes 257 tokens and does not fit"):
        ask(vlm, long_text(vlm, 256))
    silenced = ending(vlm, -1e9)
    try:
        with pytest.warns(UserWarning, match="were cut at the 256 tokens that the model can read"):
            ask(vlm, long_text(vlm, 254))
    finally:
        silenced.remove()


def long_text(vlm, tokens: int) -> str:
    return "\x7f" * (tokens - len(encode(vlm.processor, Conversation("yours", ""))))


def test_a_model_without_a_last_position_has_room():
    assert room(BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2))) > 10**6


# -- refused by a library ------------------------------------------------------------------------------------------------

THIN = Image.new("RGB", (3000, 8), "red")


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_a_picture_that_a_processor_refuses_is_named_wherever_it_is_read(family, tmp_path):
    vlm = families.build(family)
    problem = Problem("p7", "How long is it?", ("x", "y"), 0, THIN)
    refused = pytest.raises(
        EncodingError, match=r"problem p7 cannot be encoded .*aspect ratio must be .*fix it, or leave"
    )
    with refused:
        evaluate(vlm, [problem], progress=False)
    with refused:
        Samples(vlm, [taught(problem, "answer")]).lengths  # noqa: B018
    with pytest.raises(EncodingError, match="aspect ratio"):
        ask(vlm, "How long is it?", THIN)
    with pytest.raises(EncodingError, match="with the caption 'a long line' .*aspect ratio"):
        learn_to_read(vlm, [(RED, "a red thing"), (THIN, "a long line")], (), 0.1, tmp_path)


@pytest.mark.parametrize("family", ["smolvlm", "llava-1.5", "paligemma2", "text-only"])
@pytest.mark.parametrize("where", ["question", "choice", "solution"])
def test_text_that_utf_8_cannot_write_is_named_with_its_character(family, where):
    vlm = families.build(family)
    words = {"question": "Which?", "choice": "a", "solution": "So."} | {where: "it \ud83d is"}
    problem = Problem("p7", words["question"], (words["choice"], "b"), 0, solution=words["solution"])
    with pytest.raises(EncodingError, match=r"problem p7 .*'\\ud83d', half of a surrogate pair"):
        Samples(vlm, [taught(problem, "explanation_answer")])[0]
    if where != "solution":
        for method in ("likelihood", "generate"):
            with pytest.raises(EncodingError, match="problem p7 "):
                evaluate(vlm, [problem], method, progress=False)


@pytest.mark.parametrize("odd", ["no picture", object(), Image.new("I", (8, 8)), None])
def test_odd_pictures_are_named(odd):
    vlm = tinyvlm.build()
    with pytest.raises(EncodingError, match="problem p7"):
        encode(vlm.processor, Conversation("p7", "What?", (odd,)))


def test_memory_that_ran_out_is_not_the_problems_fault(monkeypatch):
    """Whoever encodes many at a time takes fewer then."""
    vlm = tinyvlm.build()

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(type(vlm.processor), "__call__", full)
    with pytest.raises(torch.OutOfMemoryError):
        encode(vlm.processor, Conversation("p7", "What?"))


def test_a_caption_with_marks_is_spelled_as_text_and_one_that_cannot_be_written_is_named(tmp_path):
    from mmlora.smolbridge.align import spell
    from mmlora.smolbridge.aligned import learn_to_read as read

    vlm = tinyvlm.build()
    words, spelled = spell(vlm.processor.tokenizer, ["a <|im_end|> mark", "a red thing"])
    assert 2 not in words.tolist() and vlm.processor.tokenizer.decode(words[spelled[0]]) == "a <|im_end|> mark"
    with pytest.raises(EncodingError, match=r"with the caption 'a .*half of a surrogate pair"):
        read(vlm, [(RED, "a \ud83d thing")], (), 0.1, tmp_path)


# -- tied ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["likelihood", "letter"])
def test_tied_choices_are_no_answer(method, monkeypatch):
    vlm = tinyvlm.build()
    problems = [Problem(str(i), "Which?", ("a", "b", "c"), 0) for i in range(2)]
    rows = [[-1.0, -1.0, -3.0], [-1.0, -3.0, -3.0]]
    monkeypatch.setattr(answering, "log_likelihoods", lambda vlm, asked, tokens, adapters: rows)
    with pytest.warns(UserWarning, match="1 of 2 problems have several choices with exactly the highest score"):
        tied, clear = evaluate(vlm, problems, method, progress=False)
    assert (tied.choice, tied.correct, tied.scores) == (None, False, (-1.0, -1.0, -3.0)) and clear.choice == 0
    assert score(problems, [tied, clear]).unanswered == 1


# -- not the model's -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return families.save(families.build("text-only"), tmp_path_factory.mktemp("base"))


def altered(saved, folder, change):
    """A copy of the model's folder with its processor changed."""
    shutil.copytree(saved, folder)
    processor = load_base(folder).processor
    change(processor)
    processor.tokenizer.chat_template = processor.chat_template
    processor.save_pretrained(folder)
    return folder


def test_a_tokenizer_larger_than_the_embeddings_is_refused_while_loading(saved, tmp_path):
    for special in (True, False):
        folder = altered(
            saved,
            tmp_path / str(special),
            lambda p: p.tokenizer.add_tokens(["<mine>"], special_tokens=special),  # noqa: B023
        )
        with pytest.raises(
            TokenizerError, match=r"has 1 tokens beyond the model's 301 embeddings, such as '<mine>' \(301\)"
        ):
            load_base(folder)


def test_a_tokenizer_without_an_end_token_is_refused_while_loading(saved, tmp_path):
    def endless(processor):
        processor.tokenizer.eos_token = None

    with pytest.raises(TokenizerError, match="has no end token"):
        load_base(altered(saved, tmp_path / "endless", endless))


@pytest.mark.parametrize("template", ["{{ raise_exception('no user') }}", "{% for %}", "{{ messages[0].x.y }}"])
def test_a_chat_template_that_raises_is_refused_while_loading(saved, tmp_path, template):
    def raising(processor):
        processor.chat_template = template

    with pytest.raises(TokenizerError, match="chat template of .* cannot write a user's turn"):
        load_base(altered(saved, tmp_path / "raising", raising))


def test_the_placeholder_of_a_picture_may_lie_beyond_the_embeddings(tmp_path):
    vlm = tinyvlm.build()
    assert vlm.processor.image_token_id >= vlm.model.get_input_embeddings().num_embeddings
    assert load_base(families.save(vlm, tmp_path)).processor.image_token_id == vlm.processor.image_token_id


@pytest.mark.parametrize(("asks", "words"), [
    (("What?", "a.png"), "it is a str, not a PIL.Image: Image.open"),
    (("What?", np.zeros((4, 4, 3), np.uint8)), "it is a ndarray, not a PIL.Image: .* Image.fromarray"),
    ((None,), "None is not text"),
    ((b"What?",), "b'What\\?' is not text"),
])  # fmt: skip
def test_what_is_no_picture_and_no_text_is_told(asks, words):
    with pytest.raises(EncodingError, match=words):
        ask(tinyvlm.build(), *asks)


def test_ask_says_at_least_one_token():
    with pytest.raises(InferenceError, match="max_new_tokens is 0; give a whole number"):
        ask(tinyvlm.build(), "What?", max_new_tokens=0)
