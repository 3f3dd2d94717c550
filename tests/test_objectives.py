"""Objectives on one forward pass: sft to the bit as it was, preferences against a reference, a student and its teacher."""

import copy
import json
from dataclasses import replace
from itertools import islice

import families
import pytest
import torch
from safetensors.torch import load_file
from tinyvlm import PROBLEMS
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, logsigmoid

from mmlora import minisqa
from mmlora.adapters import lora
from mmlora.encoding.loss import CHUNK, IGNORED, ROWS, Supervised, log_probabilities, on_device, token_losses
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import collate
from mmlora.encoding.samples import Samples
from mmlora.models.vlm import base_model
from mmlora.training.fit import fit
from mmlora.training.log import TrainingError
from mmlora.training.objectives import distilled, kept
from mmlora.training.objectives.distill import Distillation, distill
from mmlora.training.objectives.distilled import Distilled, most_probable
from mmlora.training.objectives.dpo import DPO, dpo
from mmlora.training.objectives.pairs import PreferencePairs, both_replies
from mmlora.training.settings import TrainSettings

LESSONS = [taught(problem, "explanation_answer") for problem in PROBLEMS]
PAIRS = [(taught(problem, "answer"), f"The answer is {problem.choices[1 - problem.answer]}.") for problem in PROBLEMS]
ALL = list(range(len(PROBLEMS)))
#: A head that is more than a projection: its bias makes the model project by itself.
BIASED = families.Family(families.text_only("phi"), 2, sees=False)


def adapted(name: str, family: families.Family | None = None):
    """A tiny model of that family, and the same with a fresh adapter on its upper half."""
    vlm = families.build(name, family)
    return vlm, lora.attach(vlm.model, rank=4, layers=(2, 3))


def stirred(model: nn.Module, seed: int = 1, std: float = 0.05) -> nn.Module:
    """The model with an adapter that does something."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=std)
    return model


def gradients(model: nn.Module) -> torch.Tensor:
    """All of what trains, end to end, and cleared."""
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found


def states_of(length: int, vocabulary: int = 29, cap: float | None = None, seed: int = 0) -> Supervised:
    """Hidden states of three samples of so many tokens, as leaves of a graph."""
    torch.manual_seed(seed)
    labels = torch.randint(0, vocabulary, (3, length)).masked_fill(torch.rand(3, length) > 0.8, IGNORED)
    head = nn.Linear(12, vocabulary, bias=False).requires_grad_(False)
    states = Supervised.of(torch.randn(3, length, 12), head, labels, cap)
    return replace(states, hidden=states.hidden.requires_grad_())


def logits_of(states: Supervised) -> torch.Tensor:
    logits = states.hidden @ states.weight.T
    return states.cap * (logits / states.cap).tanh() if states.cap else logits


# The forward pass apart from the loss.


class OldCrossEntropy(torch.autograd.Function):
    """The loss as it was when forward pass and cross-entropy were one function."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, cap):
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        for start in range(0, len(hidden), CHUNK):
            logits = hidden[start : start + CHUNK] @ weight.T
            for part, wanted in zip(logits.split(ROWS), targets[start : start + CHUNK, None].split(ROWS)):
                exact = part.float()
                if cap:
                    exact = cap * (exact / cap).tanh_()
                    slope = 1 - (exact / cap) ** 2
                highest, said = exact.amax(-1, keepdim=True), exact.gather(1, wanted)
                whole = exact.sub_(highest).exp_().sum(-1, keepdim=True)
                exact.div_(whole).scatter_add_(1, wanted, -torch.ones_like(whole))
                part.copy_(exact * slope if cap else exact)
                total += (whole.log() + highest - said).sum()
            gradient[start : start + CHUNK] = logits @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, scale):
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * scale).to(gradient.dtype), None, None, None


def old_batch_loss(model, batch, own):
    inner, inputs = base_model(model), {name: t for name, t in batch.items() if name != "labels"}
    labels = batch["labels"]
    if own:
        tokens = int((labels[:, 1:] != IGNORED).sum())
        return inner(**inputs, labels=labels, use_cache=False).loss.float() * tokens, tokens
    hidden, head = inner.model(**inputs, use_cache=False)[0], inner.get_output_embeddings()
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    keep = labels[:, 1:] != IGNORED
    spoken = hidden[:, :-1][keep].to(head.weight.dtype)
    return OldCrossEntropy.apply(spoken, head.weight, labels[:, 1:][keep], cap), int(keep.sum())


@pytest.mark.parametrize("name", [*families.FAMILIES, "biased"])
def test_sft_is_what_it_was_to_the_bit(name, tmp_path, one_thread):
    vlm, model = adapted(name, BIASED if name == "biased" else None)
    samples = Samples(vlm, LESSONS)
    cached = PrefixCache.build(stirred(model), samples, tmp_path / "cache")
    for indices in (ALL, [2, 1]):
        for source in (samples, cached):
            loss, tokens = source.loss(model, indices)
            (loss / tokens).backward()
            ours = gradients(model)
            if source is samples:
                batch = on_device(model, collate([samples[i] for i in indices]))
                before, same_tokens = old_batch_loss(model, batch, source.own_loss)
            else:
                with cached._resumed(model, indices) as batch:
                    before, same_tokens = old_batch_loss(model, batch, source.own_loss)
            (before / same_tokens).backward()
            assert source.own_loss == (name == "biased")
            assert torch.equal(loss, before) and tokens == same_tokens
            assert torch.equal(ours, gradients(model)) and ours.any()


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("length", [2, 9, CHUNK])
def test_log_probabilities_are_torchs_in_value_and_gradient(length, cap):
    states = states_of(length, cap=cap)
    found = log_probabilities(states)
    expected = logits_of(states).log_softmax(1).gather(1, states.targets[:, None])[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(len(found))
    (ours,) = torch.autograd.grad((found * weights).sum(), states.hidden)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), states.hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_nothing_supervised_has_no_log_probabilities():
    states = states_of(9)
    none = replace(states, hidden=states.hidden[:0], targets=states.targets[:0], keep=torch.zeros_like(states.keep))
    found = log_probabilities(none)
    found.sum().backward()
    assert found.shape == (0,) and none.by_sample(found).tolist() == [0, 0, 0]


def test_only_the_first_column_of_a_token_loss_has_a_gradient():
    states = states_of(9)
    found = token_losses(states, lambda logits, part: torch.stack([logits[:, 0], logits.exp().sum(1)], 1))
    (gradient,) = torch.autograd.grad(found.sum(), states.hidden)
    assert torch.allclose(gradient, states.weight[:1].expand_as(gradient)), "d logits[:, 0] / d hidden"


@pytest.mark.parametrize("name", ["smolvlm", "paligemma2", "biased"])
def test_log_probabilities_of_samples_are_the_models_own(name, tmp_path):
    """Per sample, from logits of every position; also where the model projects by itself, and from the cache."""
    vlm, model = adapted(name, BIASED if name == "biased" else None)
    samples = Samples(vlm, LESSONS)
    cached = PrefixCache.build(stirred(model), samples, tmp_path / "cache")
    batch = collate([samples[i] for i in ALL])
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        logits = model(**{name: t for name, t in batch.items() if name != "labels"}).logits[:, :-1]
        each = -cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
        expected = each.view_as(labels).sum(1)
        for source, close in ((samples, 1e-4), (cached, 2e-3)):
            states = source.forward(model, ALL)
            assert states.counts.tolist() == (labels != IGNORED).sum(1).tolist()
            torch.testing.assert_close(states.by_sample(log_probabilities(states)), expected, rtol=close, atol=close)


# Preferences.


def pairs_of(vlm, model, folder, settings=DPO(), cached=False, pairs=PAIRS):
    source = Samples(vlm, both_replies(pairs))
    if cached:
        source = PrefixCache.build(model, source, folder / "cache")
    return PreferencePairs.build(model, source, settings, folder / "reference.safetensors")


def test_the_loss_of_pairs_is_the_papers():
    torch.manual_seed(0)
    policy, reference = torch.randn(5, 2, requires_grad=True), torch.randn(5, 2)
    for smoothing in (0.0, 0.1):
        loss, metrics = dpo(policy, reference, DPO(beta=0.3, label_smoothing=smoothing))
        won, lost = 0.3 * (policy - reference).T
        expected = -(1 - smoothing) * logsigmoid(won - lost) - smoothing * logsigmoid(lost - won)
        torch.testing.assert_close(loss, expected.sum())
        assert metrics["rewards_chosen"] == pytest.approx(won.sum().item(), abs=1e-6)
        assert metrics["rewards_rejected"] == pytest.approx(lost.sum().item(), abs=1e-6)
        assert metrics["margin"] == pytest.approx((won - lost).sum().item(), abs=1e-6)
        assert metrics["accuracy"] == int((won > lost).sum())
    with pytest.raises(TrainingError, match="beta is 0"):
        DPO(beta=0)
    with pytest.raises(TrainingError, match="label_smoothing is 0.5"):
        DPO(label_smoothing=0.5)


def test_a_pair_of_the_same_reply_is_refused():
    with pytest.raises(TrainingError, match="pair left are the same"):
        both_replies([(PAIRS[0][0], PAIRS[0][0].reply)])


@pytest.mark.parametrize("cached", [False, True])
def test_pairs_are_compared_with_the_model_without_its_adapter(tmp_path, cached):
    vlm, model = adapted("smolvlm")
    fresh = pairs_of(vlm, model, tmp_path, cached=cached)
    assert (len(fresh), fresh.ids) == (4, [problem.id for problem in PROBLEMS])
    assert fresh.lengths == [max(pair) for pair in zip(fresh.source.lengths[::2], fresh.source.lengths[1::2])]
    loss, count, metrics = fresh.loss(model, ALL)
    assert count == 4 and loss.item() == pytest.approx(4 * 0.693147, abs=1e-4)
    assert abs(metrics["margin"]) < 1e-4, "an adapter that does nothing is its own reference"
    one_by_one = sum(fresh.loss(stirred(model), [i])[0].item() for i in ALL)
    assert fresh.loss(model, ALL)[0].item() == pytest.approx(one_by_one, rel=1e-4)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)
    (tmp_path / "reference.safetensors").unlink()
    again = pairs_of(vlm, model, tmp_path, cached=cached)
    assert torch.equal(again.reference, fresh.reference), "the adapter was off"
    started = pairs_of(vlm, model, tmp_path, DPO(reference="start"), cached=cached)
    assert not torch.allclose(started.reference, fresh.reference, atol=1e-3)
    assert abs(started.loss(model, ALL)[2]["margin"]) < 1e-4


def test_length_normalised_scores_are_means_over_a_replys_tokens(tmp_path):
    vlm, model = adapted("text-only")
    plain = pairs_of(vlm, model, tmp_path)
    means = pairs_of(vlm, model, tmp_path, DPO(per_token=True))
    counts = torch.tensor([int((plain.source[i].labels != IGNORED).sum()) for i in range(8)]).view(-1, 2)
    torch.testing.assert_close(means.reference * counts, plain.reference, rtol=1e-5, atol=1e-4)


def test_a_reference_is_computed_once_for_the_same_samples_and_weights(tmp_path, monkeypatch, capsys):
    vlm, model = adapted("text-only")
    calls, original = [], kept.in_parts
    monkeypatch.setattr(kept, "in_parts", lambda *arguments: calls.append(1) or original(*arguments))
    first = pairs_of(vlm, model, tmp_path)
    again = pairs_of(vlm, stirred(model), tmp_path, DPO(beta=0.5))
    assert len(calls) == 1 and torch.equal(first.reference, again.reference)
    assert first.fingerprint != again.fingerprint, "no training goes on with another beta"
    pairs_of(vlm, model, tmp_path, pairs=PAIRS[:3])
    assert len(calls) == 2 and "other weights, samples or settings" in capsys.readouterr().out
    with torch.no_grad():
        model.get_decoder().norm.weight[0] += 1e-3
    changed = pairs_of(vlm, model, tmp_path, pairs=PAIRS[:3])
    assert len(calls) == 3
    file = tmp_path / "reference.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), bytes(content[:40])):
        file.write_bytes(damaged)
        capsys.readouterr()
        mended = pairs_of(vlm, model, tmp_path, pairs=PAIRS[:3])
        assert "is damaged" in capsys.readouterr().out and torch.equal(mended.reference, changed.reference)


@pytest.mark.parametrize("name, cached", [("smolvlm", True), ("text-only", False)])
def test_dpo_learns_its_pairs(name, cached, tmp_path):
    vlm, model = adapted(name)
    pairs = pairs_of(vlm, model, tmp_path, cached=cached)
    settings = TrainSettings(steps=30, batch_size=4, learning_rate=1e-2)
    records = fit(model, pairs, settings, tmp_path / "run").records
    assert records[0]["loss"] == pytest.approx(0.693, abs=2e-3) and records[-1]["loss"] < 0.3
    assert records[-1]["accuracy"] == 1.0 and records[-1]["margin"] > 1
    assert records[-1]["margin"] == pytest.approx(records[-1]["rewards_chosen"] - records[-1]["rewards_rejected"])
    written = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert written == records


def test_metrics_of_micro_batches_are_means_over_the_batch(tmp_path, one_thread):
    """However a batch is cut, loss, gradient and metrics are the same."""
    found = []
    for micro in (4, 1):
        vlm, model = adapted("text-only")
        pairs = pairs_of(vlm, stirred(model), tmp_path)
        settings = TrainSettings(steps=2, batch_size=4, micro_batch_size=micro)
        found.append(fit(model, pairs, settings, tmp_path / str(micro)).records)
    for whole, parts in zip(*found):
        for name in ("loss", "gradient_norm", "rewards_chosen", "rewards_rejected", "accuracy", "margin"):
            assert parts[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-5), name


# A student and its teacher.


def wider(name: str) -> families.Family:
    """The family with a decoder that is half as wide again."""

    def build():
        config, processor = families.FAMILIES[name].build()
        config.get_text_config().hidden_size = 48
        return config, processor

    return replace(families.FAMILIES[name], build=build)


def by_torch(student, teacher, settings, targets):
    """The divergence over a whole vocabulary, and the labels' cross-entropy, in the mean."""
    ours, theirs = ((t / settings.temperature).log_softmax(1) for t in (student, teacher))
    forward = settings.divergence == "forward"
    divergence = kl_div(*((ours, theirs) if forward else (theirs, ours)), log_target=True, reduction="none").sum(1)
    labels = cross_entropy(student, targets, reduction="none")
    return settings.weight * settings.temperature**2 * divergence + (1 - settings.weight) * labels, divergence, labels


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("temperature, weight", [(1.0, 1.0), (2.0, 0.3)])
def test_with_the_whole_vocabulary_the_divergence_is_torchs(divergence, temperature, weight):
    settings = Distillation(top=29, temperature=temperature, divergence=divergence, weight=weight)
    states, teacher = states_of(30, cap=5.0), states_of(30, seed=0)
    teacher = replace(teacher, hidden=teacher.hidden.detach() + 0.5 * torch.randn_like(teacher.hidden))
    exact = (logits_of(teacher) / temperature).log_softmax(1)
    ids = exact.topk(29, 1).indices
    loss, metrics = distill(states, ids, exact.gather(1, ids), settings)
    expected, divergences, labels = by_torch(logits_of(states), logits_of(teacher), settings, states.targets)
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-5, atol=1e-5)
    assert metrics["divergence"] == pytest.approx(divergences.sum().item(), rel=1e-5)
    assert metrics["cross_entropy"] == pytest.approx(labels.sum().item(), rel=1e-5)
    (ours,) = torch.autograd.grad(loss, states.hidden)
    (theirs,) = torch.autograd.grad(expected.sum(), states.hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    stored_ids, stored = most_probable(teacher, settings, 29)
    assert stored.dtype == torch.float16 and stored_ids.dtype == torch.int32 and stored.shape == (len(ids), 29)
    rounded, _ = distill(states, stored_ids.long(), stored, settings)
    torch.testing.assert_close(rounded, loss, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_with_few_tokens_all_others_are_one_outcome(divergence):
    settings = Distillation(top=3, divergence=divergence, weight=1.0)
    states, teacher = states_of(30), states_of(30, seed=0)
    teacher = replace(teacher, hidden=teacher.hidden.detach() + 0.5 * torch.randn_like(teacher.hidden))
    ids, kept_values = most_probable(teacher, settings, 29)
    loss, metrics = distill(states, ids.long(), kept_values, settings)
    total = 0.0
    p, q = (logits_of(each).double().softmax(1) for each in (teacher, states))
    for row in range(len(ids)):
        best = p[row].topk(3).indices
        assert ids[row].tolist() == best.tolist()
        buckets = [torch.cat([each[row, best], 1 - each[row, best].sum(0, keepdim=True)]) for each in (p, q)]
        left, right = buckets if divergence == "forward" else buckets[::-1]
        total = total + (left * (left / right).log()).sum()
    assert loss.item() == pytest.approx(total.item(), rel=2e-3) and metrics["divergence"] == pytest.approx(loss.item())
    (ours,) = torch.autograd.grad(loss, states.hidden)
    (theirs,) = torch.autograd.grad(total, states.hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-3)
    everything, _ = distill(states, *_whole(teacher), replace(settings, top=29))
    assert 0 < loss < everything, "what is not told apart cannot diverge"
    same, _ = distill(teacher, ids.long(), kept_values, settings)
    assert abs(same.item()) < 1e-3 * len(ids), "a student that equals its teacher has nothing to learn"


def _whole(states):
    exact = logits_of(states).log_softmax(1)
    ids = exact.topk(exact.shape[1], 1).indices
    return ids, exact.gather(1, ids)


@pytest.mark.parametrize("size", [25, 33], ids=["padded-teacher", "padded-student"])
def test_projections_may_be_padded_to_other_sizes(size):
    """Rows of a projection beyond the vocabulary belong to no token: a teacher's are left out, a student's are in the rest."""
    states, teacher = states_of(30, vocabulary=size), states_of(30, vocabulary=29)
    states = replace(states, targets=states.targets.clamp_max(24))
    for top in (4, 29):
        settings = Distillation(top=top, weight=1.0)
        ids, values = most_probable(teacher, settings, size)
        assert ids.max() < min(size, 29) and values.shape[1] == ids.shape[1] + (ids.shape[1] < size)
        loss, _ = distill(states, ids.long(), values, settings)
        assert loss.isfinite() and torch.autograd.grad(loss, states.hidden)[0].isfinite().all()


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path):
    vlm, model = adapted("text-only")
    teacher = families.build("text-only")
    teacher.processor.tokenizer.add_tokens(["<more>"])
    with pytest.raises(TrainingError, match="teacher text-only has another vocabulary"):
        Distilled.build(model, Samples(vlm, LESSONS), teacher, Distillation(), tmp_path / "teacher.safetensors")


def test_a_teacher_that_supervises_other_tokens_is_refused(tmp_path):
    vlm, model = adapted("text-only")
    teacher = families.build("text-only", wider("text-only"))
    data = Distilled.build(model, Samples(vlm, LESSONS), teacher, Distillation(), tmp_path / "teacher.safetensors")
    ids, values, targets = data.rows[1]
    data.rows[1] = (ids, values, targets + 1)
    data.loss(model, [0, 2])
    with pytest.raises(TrainingError, match="other tokens in one of the samples left, text"):
        data.loss(model, [0, 1])


def test_a_teachers_distributions_are_kept_in_sixteen_bits_and_computed_once(tmp_path, monkeypatch, capsys):
    vlm, model = adapted("smolvlm")
    teacher = families.build("smolvlm", wider("smolvlm"))
    samples, file, calls = Samples(vlm, LESSONS), tmp_path / "teacher.safetensors", []
    original = distilled.of_each
    monkeypatch.setattr(distilled, "of_each", lambda *arguments: calls.append(1) or original(*arguments))
    first = Distilled.build(model, samples, teacher, Distillation(top=5), file)
    assert "model's own" not in capsys.readouterr().out, "a teacher that could train is no other model"
    assert all(parameter.requires_grad for parameter in teacher.model.parameters())
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    again = Distilled.build(model, cached, teacher, Distillation(top=5, weight=0.2), file)
    assert len(calls) == 1 and first.fingerprint != again.fingerprint
    tokens = sum(int((samples[i].labels != IGNORED).sum()) for i in ALL)
    tensors = load_file(file)
    assert tensors["ids"].dtype == torch.int32 and tensors["ids"].shape == (tokens, 5)
    assert tensors["log_probabilities"].dtype == torch.float16
    torch.testing.assert_close(tensors["log_probabilities"].float().exp().sum(1), torch.ones(tokens), rtol=0, atol=2e-3)
    plain, cached_loss = first.loss(model, ALL), replace_settings(again, first.settings).loss(model, ALL)
    assert plain[1] == cached_loss[1] == tokens and cached_loss[0].item() == pytest.approx(plain[0].item(), rel=2e-3)
    Distilled.build(model, samples, teacher, Distillation(top=5, temperature=2.0), file)
    assert len(calls) == 2, "another temperature has another rest"


def replace_settings(data, settings):
    data.settings = settings
    return data


@pytest.mark.parametrize("name", ["smolvlm", "text-only"])
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_a_student_comes_nearer_to_its_teacher(name, divergence, tmp_path):
    teacher = families.build(name, wider(name))
    vlm, model = adapted(name)
    settings = Distillation(top=16, divergence=divergence, weight=1.0)
    data = Distilled.build(model, Samples(vlm, LESSONS), teacher, settings, tmp_path / "teacher.safetensors")
    training = TrainSettings(steps=30, batch_size=4, learning_rate=1e-2)
    records = fit(model, data, training, tmp_path / "run").records
    assert records[-1]["divergence"] < 0.8 * records[0]["divergence"]
    assert records[-1]["loss"] == pytest.approx(records[-1]["divergence"], rel=1e-4)
    assert {"divergence", "cross_entropy"} < set(records[0])


# The bundled weights.


@pytest.fixture(scope="module")
def bundled(real_vlm):
    """SmolBridge with an adapter on its upper layers, and what four problems with a picture teach."""
    problems = list(islice((p for p in minisqa.generate("train", 40) if p.image is not None), 4))
    model = lora.attach(real_vlm.model, rank=4, layers=range(24, 30))
    yield real_vlm, model, problems
    lora.detach(model)


def restarted(model):
    """The model with its adapter as it was attached."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.zeros_(parameter)
    return model


def test_dpo_on_the_bundled_weights(bundled, tmp_path):
    vlm, model, problems = bundled
    wrong = [problem.choices[problem.answer - 1] for problem in problems]
    preferences = [(taught(p, "answer"), f"The answer is {choice}.") for p, choice in zip(problems, wrong)]
    pairs = pairs_of(vlm, restarted(model), tmp_path, cached=True, pairs=preferences)
    records = fit(model, pairs, TrainSettings(steps=4, batch_size=4), tmp_path / "run").records
    assert records[0]["loss"] == pytest.approx(0.6931, abs=1e-2) and records[-1]["loss"] < records[0]["loss"] - 0.05
    assert records[-1]["accuracy"] == 1.0


def test_distillation_on_the_bundled_weights(bundled, tmp_path):
    """The teacher is the model itself with an adapter that was changed."""
    vlm, model, problems = bundled
    samples = Samples(vlm, [taught(problem, "answer") for problem in problems])
    source = PrefixCache.build(restarted(model), samples, tmp_path / "cache")
    changed = vlm.with_model(stirred(model, std=0.2))
    data = Distilled.build(model, source, changed, Distillation(weight=1.0), tmp_path / "teacher.safetensors")
    _, tokens, metrics = data.loss(model, [0, 1, 2, 3])
    records = fit(restarted(model), data, TrainSettings(steps=4, batch_size=4), tmp_path / "run").records
    first, last = records[0]["divergence"], records[-1]["divergence"]
    assert metrics["divergence"] / tokens < 0.02 * first and last < 0.8 * first


def test_a_copy_of_the_student_is_a_teacher_of_nothing(tmp_path):
    vlm, model = adapted("text-only")
    teacher = vlm.with_model(copy.deepcopy(model))
    data = Distilled.build(model, Samples(vlm, LESSONS), teacher, Distillation(weight=1.0), tmp_path / "t.safetensors")
    _, tokens, metrics = data.loss(model, ALL)
    assert metrics["divergence"] / tokens < 1e-4
