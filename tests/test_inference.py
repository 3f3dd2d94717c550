"""Replies: greedy ones are transformers' own, sampled ones follow the model's distribution, streamed ones come in whole characters."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import families
import numpy as np
import pytest
import tinyvlm
import torch
from scipy.stats import chisquare
from tinyvlm import PROBLEMS, picture
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mmlora.adapters.files import load_vlm
from mmlora.adapters.fused import fused
from mmlora.encoding.answers import parse_answer
from mmlora.encoding.conversation import Conversation, EncodingError
from mmlora.encoding.prompts import asked, prompt_text
from mmlora.encoding.sample import encode
from mmlora.inference import generate as generation
from mmlora.inference import sampling
from mmlora.inference.ask import ask
from mmlora.inference.generate import InferenceError, complete, generate, greedy
from mmlora.inference.sampling import Draw, Sampling, inverse_cdf, nucleus, probabilities, sample
from mmlora.inference.session import evaluating, left_padded
from mmlora.inference.streaming import GREEDY, INCOMPLETE, TextPieces, stream
from mmlora.models.vlm import VLM, decoder_layers
from mmlora.paths import RESULTS
from mmlora.problems.load import load_problems

#: Prompts of several lengths, pictures of several shapes, and text among them.
MIXED = [
    PROBLEMS[0],
    PROBLEMS[1],
    replace(PROBLEMS[2], image=picture("olive", "red", (40, 96))),
    replace(PROBLEMS[0], id="small", image=picture("green", "black", (20, 24))),
]
PROMPTS = [asked(problem) for problem in MIXED]
LENGTH = 20  # more tokens than a KV cache first has spare places for


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def vlm(request) -> VLM:
    return families.build(request.param)


def build(**tokenizer) -> VLM:
    """A language model alone, the quickest."""
    vlm = families.build("text-only")
    for name, value in tokenizer.items():
        setattr(vlm.processor.tokenizer, name, value)
    return vlm


@torch.no_grad()
def whole_row(vlm: VLM, prompt: Conversation, tokens) -> list[float]:
    """The definition: the tokens' log-probabilities from one forward pass over prompt and reply, without a cache."""
    row = encode(vlm.processor, prompt).followed_by(tokens)
    logits = vlm.model(**left_padded(vlm, [row])).logits[0, -len(tokens) - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()


def never(id: int | None):
    """A hook that makes a token impossible."""

    def silence(model, inputs, out):
        if id is not None:
            out.logits[..., id] = -1e9

    return silence


def surer(model, inputs, out):
    """A hook: the likeliest of a random model's tokens is often hardly likelier than the next."""
    out.logits *= 100


def tokens_of(replies) -> list[list[tuple[int, ...]]]:
    return [[reply.tokens for reply in each] for each in replies]


# -- every family --------------------------------------------------------------------------------------------------------


def test_greedy_replies_are_those_of_transformers(vlm):
    tokenizer = vlm.processor.tokenizer
    samples = [encode(vlm.processor, prompt) for prompt in PROMPTS]
    with evaluating(vlm):
        together = complete(vlm, samples, LENGTH, greedy)
    for one, tokens in zip(samples, together, strict=True):
        batch = left_padded(vlm, [one])
        own = vlm.model.generate(
            **batch,
            max_new_tokens=LENGTH,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(one) :]
        assert own.tolist() == tokens
    assert len({tuple(row) for row in together}) > 1


def test_a_samples_log_probability_is_that_of_a_forward_pass(vlm):
    """At temperature 1 and over the whole vocabulary, whatever it was drawn from."""
    hook = vlm.model.register_forward_hook(never(vlm.processor.image_token_id))  # a whole row would need its picture
    drawn = sample(vlm, PROMPTS, LENGTH, Sampling(temperature=0.8, top_p=0.9, replies=2))
    expected = [[whole_row(vlm, prompt, reply.tokens) for reply in replies] for prompt, replies in zip(PROMPTS, drawn)]
    hook.remove()
    for replies, rows in zip(drawn, expected, strict=True):
        assert len({reply.tokens for reply in replies}) == 2
        for reply, row in zip(replies, rows, strict=True):
            assert reply.log_probabilities == pytest.approx(row, abs=1e-4)
            assert reply.log_probability == pytest.approx(sum(row), abs=1e-4 * len(row))
            assert reply.ended == (reply.tokens[-1] == vlm.processor.tokenizer.eos_token_id)
            assert reply.ended or len(reply.tokens) == LENGTH


def test_samples_depend_neither_on_the_batch_nor_on_the_order(vlm, monkeypatch):
    settings = Sampling(seed=3, replies=2)
    together = tokens_of(sample(vlm, PROMPTS, LENGTH, settings))
    assert tokens_of(sample(vlm, PROMPTS[::-1], LENGTH, settings)) == together[::-1]
    monkeypatch.setattr(generation, "PREFILL_ROWS", 4)  # two prompts with two replies each
    assert tokens_of(sample(vlm, PROMPTS, LENGTH, settings)) == together
    monkeypatch.setattr(generation, "CACHE_BYTES", 1)
    assert tokens_of(sample(vlm, PROMPTS, LENGTH, settings)) == together
    assert [tokens_of(sample(vlm, [prompt], LENGTH, settings))[0] for prompt in PROMPTS] == together
    assert tokens_of(sample(vlm, PROMPTS, LENGTH, replace(settings, seed=4))) != together


def test_a_prompts_replies_share_one_prefill_and_are_those_drawn_apart(vlm, monkeypatch):
    own, prefill, rows = sampling.generator, generation.prefill, []
    apart = []
    for k in range(3):
        monkeypatch.setattr(sampling, "generator", lambda seed, id, reply: own(seed, id, k))  # noqa: B023
        apart.append(sample(vlm, PROMPTS, LENGTH))
    monkeypatch.setattr(sampling, "generator", own)
    monkeypatch.setattr(
        generation, "prefill", lambda vlm, batch, **n: rows.append(len(batch["input_ids"])) or prefill(vlm, batch, **n)
    )
    together = sample(vlm, PROMPTS, LENGTH, Sampling(replies=3))
    assert sum(rows) == len(PROMPTS)
    for replies, *alone in zip(together, *apart, strict=True):
        assert [reply.tokens for reply in replies] == [one.tokens for (one,) in alone]
        for reply, (one,) in zip(replies, alone, strict=True):
            assert reply.log_probabilities == pytest.approx(one.log_probabilities, abs=1e-4)
            assert reply.text == one.text


def test_a_low_temperature_is_greedy(vlm):
    hook = vlm.model.register_forward_hook(surer)
    try:
        with evaluating(vlm):
            expected, _ = generate(vlm, PROMPTS, LENGTH)
        for temperature in (0, 1e-3):
            drawn = sample(vlm, PROMPTS, LENGTH, Sampling(temperature=temperature, replies=2))
            assert [[reply.text for reply in replies] for replies in drawn] == [[text] * 2 for text in expected]
    finally:
        hook.remove()


def test_pieces_of_a_stream_are_the_reply_and_leave_the_model_as_it_was_between_them(vlm):
    with evaluating(vlm):
        expected, _ = generate(vlm, PROMPTS, LENGTH)
    vlm.model.train()
    try:
        for problem, text in zip(MIXED, expected, strict=True):
            pieces = []
            for piece in stream(vlm, prompt_text(problem), problem.image, max_new_tokens=LENGTH):
                pieces.append(piece)
                assert vlm.model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
                assert not any("forward" in vars(layer) for layer in decoder_layers(vlm.model))
            assert "".join(pieces) == text and all(pieces)
        assert len(pieces) > 1
    finally:
        vlm.model.eval()


# -- the distribution ----------------------------------------------------------------------------------------------------

FOUR = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()[None]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, {1}),
        (0.5, {1}),
        (0.51, {1, 2}),
        (0.75, {1, 2}),
        (0.76, {1, 2, 3}),
        (0.91, {0, 1, 2, 3}),
        (1, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    """By hand: 0.5, then 0.75 with token 2, 0.9 with token 3, 1 with token 0."""
    found = probabilities(FOUR, Sampling(top_p=top_p))[0]
    assert {i for i, p in enumerate(found.tolist()) if p > 0} == kept
    assert all(found[i].item() == pytest.approx(FOUR[0, i].exp().item()) for i in kept)


def test_of_equally_likely_tokens_the_first_are_kept():
    assert nucleus(torch.full((2, 4), 0.25), 0.5).tolist() == [[0.25, 0.25, 0, 0]] * 2


def test_temperature_divides_the_logits_before_top_p():
    """At temperature 1/2 the probabilities are squared: 0.25, 0.0625, 0.0225 and 0.01 of 0.345."""
    squared = torch.tensor([0.01, 0.25, 0.0625, 0.0225]) / 0.345
    assert torch.allclose(probabilities(FOUR, Sampling(temperature=0.5))[0], squared)
    assert (probabilities(FOUR, Sampling(temperature=0.5, top_p=0.72))[0] > 0).tolist() == [False, True, False, False]


def test_a_share_falls_into_its_tokens_interval():
    weights = torch.tensor([[0.0, 0.2, 0.0, 0.6, 0.0]])  # of 0.8 in all: a quarter and three quarters
    shares = [0, 0.2499, 0.2501, 1 - 2**-24]
    assert [inverse_cdf(weights, torch.tensor([[share]])).item() for share in shares] == [1, 1, 3, 3]
    largest = torch.full((1, 1), (2**sampling.BITS - 1) / 2**sampling.BITS)
    for total in (0.5, 0.9999999, 1.0, 1.0000001):
        assert inverse_cdf(torch.tensor([[0.0, total, 0.0]]), largest).item() == 1


@pytest.mark.parametrize(
    "settings", [Sampling(replies=1500), Sampling(temperature=1.5, top_p=0.6, seed=1, replies=1500)]
)
def test_frequencies_of_first_tokens_fit_the_distribution(settings):
    vlm = build()
    (replies,) = sample(vlm, PROMPTS[:1], 1, settings)
    counts = np.bincount([reply.tokens[0] for reply in replies], minlength=vlm.model.config.vocab_size)
    with torch.no_grad():
        logits = vlm.model(**left_padded(vlm, [encode(vlm.processor, PROMPTS[0])])).logits[0, -1].double().numpy()
    expected = np.exp((logits - logits.max()) / settings.temperature)
    expected /= expected.sum()
    order = np.argsort(-expected, kind="stable")
    kept = order[: int(np.searchsorted(expected[order].cumsum(), settings.top_p) + 1)]
    assert counts[kept].sum() == settings.replies, "a token outside the nucleus was drawn"
    expected = settings.replies * expected[kept] / expected[kept].sum()
    often = expected >= 5  # a chi-square test's rule; all others are one class
    observed, wanted = ([*each[often], each[~often].sum()] for each in (counts[kept], expected))
    some = None if wanted[-1] else -1
    assert len(kept) > 20 and often.sum() > 10
    assert chisquare(observed[:some], wanted[:some]).pvalue > 0.01


def test_logits_are_softened_in_float32():
    """In bfloat16 257 equal probabilities do not sum to 1, and log-probabilities have three digits."""
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)).bfloat16()
    draw = Draw(Sampling(), ["a"])
    token = draw(logits, torch.zeros(1, dtype=torch.long))
    assert draw.log_probabilities[0][0] == pytest.approx(logits.double().log_softmax(-1)[0, token].item(), abs=1e-5)


def test_replies_that_end_leave_those_beside_them_as_they_are():
    """What is said most often ends a reply here: rows of one prompt leave the batch at different steps."""
    vlm = build()
    tokenizer = vlm.processor.tokenizer
    vlm.model.register_forward_hook(never(vlm.processor.tokenizer.eos_token_id))
    usual = sample(vlm, PROMPTS, 40, Sampling(replies=4))
    written = "".join(prompt.prompt for prompt in PROMPTS)
    said = [t for replies in usual for reply in replies for t in reply.tokens[1:]]
    end = max((t for t in said if tokenizer.decode([t]) not in written), key=said.count)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    finished: list[int] = []
    replies = sample(vlm, PROMPTS, 40, Sampling(replies=4), finished.append)
    for before, after in zip(usual, replies, strict=True):
        for long, short in zip(before, after, strict=True):
            cut = long.tokens.index(end) + 1 if end in long.tokens else len(long.tokens)
            assert short.tokens == long.tokens[:cut] and short.ended == (end in long.tokens)
            assert short.log_probabilities == pytest.approx(long.log_probabilities[:cut], abs=1e-4)
    ended = [reply.ended for each in replies for reply in each]
    assert sum(finished) == 16 and 2 <= sum(ended) < 16


# -- limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"temperature": -1}, r"the temperature is -1; give 0 \(greedy\), or 0.001 or more"),
        ({"temperature": 1e-5}, "give 0"),
        ({"temperature": math.nan}, "the temperature is nan"),
        ({"temperature": math.inf}, "the temperature is inf"),
        ({"top_p": 0}, "top_p is 0; give a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"replies": 0}, "0 replies to each prompt"),
    ],
)
def test_settings_that_define_no_distribution_are_refused(settings, complaint):
    with pytest.raises(InferenceError, match=complaint):
        Sampling(**settings)


def test_logits_that_stop_being_finite_are_named():
    vlm = build()
    calls: list[int] = []

    def overflow(head, inputs, logits):
        calls.append(1)
        return logits * torch.nan if len(calls) == 3 else logits

    hook = vlm.model.get_output_embeddings().register_forward_hook(overflow)
    try:
        with pytest.raises(InferenceError, match="not finite in float32; choose another model"):
            sample(vlm, PROMPTS[:1], 8)
    finally:
        hook.remove()


def test_a_reply_cut_at_the_context_length_is_named_once_and_has_not_ended():
    """Also where the tokenizer has no padding token, so that the end token pads."""
    vlm = build(pad_token=None)
    prompt, short = Conversation("long", "\x7f" * 40), Conversation("short", "?")
    limit = len(encode(vlm.processor, prompt)) + 6
    vlm.model.config.max_position_embeddings = limit
    hook = vlm.model.register_forward_hook(never(vlm.processor.tokenizer.eos_token_id))
    try:
        with pytest.warns(UserWarning, match=rf"replies to long \(1 in all\) were cut at the {limit} tokens"):
            long, other = sample(vlm, [prompt, short], 12, Sampling(replies=2))
        with evaluating(vlm), pytest.warns(UserWarning, match=r"to long \(1 in all\)"):
            assert generate(vlm, [prompt, short], 12)[1] == 2
        with pytest.warns(UserWarning, match=r"to yours \(1 in all\)"):
            list(stream(vlm, prompt.prompt))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            list(stream(vlm, prompt.prompt, max_new_tokens=6))
    finally:
        hook.remove()
    assert [len(r.tokens) for r in (*long, *other)] == [6, 6, 12, 12] and not any(r.ended for r in (*long, *other))
    vlm.model.config.max_position_embeddings = limit - 6
    for refused in (lambda: sample(vlm, [short, prompt], 12), lambda: stream(vlm, prompt.prompt)):
        with pytest.raises(EncodingError, match="does not fit in the model's"):
            refused()


# -- streams -------------------------------------------------------------------------------------------------------------

WRITTEN = "  Größe: 日本語 — 😀👍🏽!  e\u0301 \u3000 end\n\n"


def byte_fallback() -> PreTrainedTokenizerFast:
    """As SentencePiece does it: a word's start is marked, what is not in the vocabulary becomes bytes."""
    letters = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(letters)}, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [tinyvlm.tokenizer(), byte_fallback()], ids=["byte-level", "byte-fallback"])
def test_pieces_are_whole_characters_and_join_to_the_decoded_text(tokenizer):
    ids = tokenizer(
        WRITTEN.replace(" ", "▁") if "<0x00>" in tokenizer.get_vocab() else WRITTEN, add_special_tokens=False
    )["input_ids"]
    for stop in range(len(ids) + 1):  # wherever a reply may be cut
        for tokens in (ids[:stop], [*ids[:stop], tokenizer.eos_token_id]):
            pieces = TextPieces(tokenizer)
            found = [pieces.add(token) for token in tokens]
            assert not any(INCOMPLETE in piece for piece in found)
            assert "".join([*found, pieces.rest()]) == generation.decoded(tokenizer, [tokens])[0]
    assert sum(map(bool, found)) > 10, "text comes as it is made"
    assert "".join([*found]) == WRITTEN.strip()


def test_bytes_that_are_no_character_are_shown_when_that_is_certain():
    tokenizer = tinyvlm.tokenizer()
    start = tokenizer("日", add_special_tokens=False)["input_ids"][:1]
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    pieces = TextPieces(tokenizer)
    assert [pieces.add(token) for token in (*start, *letter)] == ["", f"{INCOMPLETE}a"]
    assert (pieces.add(start[0]), pieces.rest(), pieces.rest()) == ("", INCOMPLETE, "")


def test_special_tokens_are_never_shown():
    tokenizer = tinyvlm.tokenizer()
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ab")
    pieces = TextPieces(tokenizer)
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<image>", "<|im_start|>", "<|im_end|>")]
    assert [pieces.add(token) for token in (marks[0], a, marks[1], b, marks[2])] == ["", "a", "", "b", ""]


def test_a_stream_may_be_left_early(monkeypatch):
    vlm = build()
    patched: list[fused] = []
    enter = fused.__enter__
    monkeypatch.setattr(fused, "__enter__", lambda self: patched.append(self) or enter(self))
    flags = [module.training for module in vlm.model.train().modules()]
    pieces = stream(vlm, "Which?", max_new_tokens=30)
    assert not patched, "nothing is computed before the first piece is asked for"
    next(pieces)
    steps = len(patched)
    pieces.close()
    assert len(patched) == steps and steps < 30 and len(set(map(id, patched))) == 1, "fused layers are prepared once"
    assert [module.training for module in vlm.model.modules()] == flags
    assert not any("forward" in vars(module) for module in vlm.model.modules())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert list(pieces) == []


def test_a_stream_whose_model_fails_leaves_nothing_patched():
    vlm = build()

    def fail(*_):
        raise KeyboardInterrupt

    pieces = stream(vlm, "Which?", max_new_tokens=30)
    next(pieces)
    hook = vlm.model.get_output_embeddings().register_forward_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(pieces)
    finally:
        hook.remove()
    assert not any("forward" in vars(module) for module in vlm.model.modules()) and torch.is_grad_enabled()


def test_a_sampled_stream_is_the_sample_and_several_replies_are_refused():
    vlm = build()
    settings = Sampling(temperature=0.9, seed=5)
    ((reply,),) = sample(vlm, [Conversation("yours", "Which?")], 30, settings)
    assert "".join(stream(vlm, "Which?", sampling=settings, max_new_tokens=30)) == reply.text
    with pytest.raises(InferenceError, match="a stream is one reply, and 2 were asked for"):
        stream(vlm, "Which?", sampling=replace(GREEDY, replies=2))


# -- the real thing ------------------------------------------------------------------------------------------------------


def test_a_trained_smolbridge_samples_answers(capsys):
    vlm = load_vlm(str(RESULTS / "one_hour_smolbridge" / "adapter"))
    problems = load_problems("minisqa", "test", 12)
    problems = [next(p for p in problems if (p.image is None) == plain) for plain in (False, True)]
    prompts = [asked(problem) for problem in problems]
    drawn = sample(vlm, prompts, 80, Sampling(temperature=0.7, top_p=0.95, replies=2))
    assert all(reply.ended for replies in drawn for reply in replies)
    named = [parse_answer(r.text, p.choices) for p, replies in zip(problems, drawn) for r in replies]
    assert None not in named
    reply = drawn[0][0]
    assert reply.log_probabilities == pytest.approx(whole_row(vlm, prompts[0], reply.tokens), abs=1e-3)
    capsys.readouterr()
    said = ask(vlm, prompt_text(problems[0]), problems[0].image)
    assert said == capsys.readouterr().out.strip() and parse_answer(said, problems[0].choices) is not None
