"""The folded loss is torch's cross-entropy, in value and in gradient."""

import families
import pytest
import torch
from tinyvlm import PROBLEMS
from torch import nn
from torch.nn.functional import cross_entropy

from mmlora.adapters import lora
from mmlora.encoding.loss import CHUNK, IGNORED, Supervised, sft
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import collate
from mmlora.encoding.samples import Samples


def example(length: int, supervised: float = 0.7, seed: int = 0):
    torch.manual_seed(seed)
    head = nn.Linear(12, 29, bias=False).requires_grad_(False)
    hidden, labels = torch.randn(3, length, 12), torch.randint(0, 29, (3, length))
    return hidden, head, labels.masked_fill(torch.rand(3, length) > supervised, IGNORED)


def loss_of(hidden, head, labels):
    return sft(Supervised.of(hidden, head, labels))


def by_torch(hidden, head, labels):
    return cross_entropy(
        head(hidden[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("length", [2, 9, CHUNK + 40])  # with 3 rows the last is more than two chunks
def test_value_and_gradient_are_torchs(length):
    hidden, head, labels = example(length, supervised=0.9)
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    loss, count = loss_of(ours, head, labels)
    expected = by_torch(theirs, head, labels)
    assert count == int((labels[:, 1:] != IGNORED).sum()) and (length < 100 or count > 2 * CHUNK)
    assert torch.allclose(loss, expected, rtol=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert (ours.grad[:, -1] == 0).all() and not ours.grad[:, :-1][labels[:, 1:] == IGNORED].any()


def test_without_gradient():
    hidden, head, labels = example(9)
    loss, _ = loss_of(hidden, head, labels)
    assert not loss.requires_grad and torch.allclose(loss, by_torch(hidden, head, labels))
    with torch.no_grad():
        again, _ = loss_of(hidden.requires_grad_(), head, labels)
    assert not again.requires_grad and torch.equal(loss, again)


def test_nothing_supervised_is_no_loss_and_no_gradient():
    hidden, head, labels = example(9)
    hidden.requires_grad_()
    loss, count = loss_of(hidden, head, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss == 0 and count == 0 and not hidden.grad.any()


def test_certain_predictions_do_not_overflow():
    hidden, head, labels = example(9)
    hidden = (1e4 * hidden).requires_grad_()
    loss, _ = loss_of(hidden, head, labels)
    loss.backward()
    assert loss.isfinite() and hidden.grad.isfinite().all() and torch.allclose(loss, by_torch(hidden, head, labels))


def test_half_precision_activations_are_summed_in_float32():
    hidden, head, labels = example(9)
    half = hidden.bfloat16().requires_grad_()
    loss, _ = loss_of(half, head.bfloat16(), labels)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    assert torch.allclose(loss, by_torch(hidden, head.float(), labels), rtol=2e-2)


# Heads that are more than a projection.

HEADS = {
    "a bias": ("phi", {}),
    "Cohere's scale": ("cohere", {"logit_scale": 0.25}),
    "Granite's scale": ("granite", {"logits_scaling": 4.0}),
    "a projection": ("llama", {}),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_is_more_than_a_projection_gets_the_models_own_loss(head, tmp_path, capsys):
    kind, options = HEADS[head]
    vlm = families.build(kind, families.Family(families.text_only(kind, **options), 2, sees=False))
    assert (getattr(vlm.model.lm_head, "bias", None) is not None) == (head == "a bias")
    if head == "a bias":
        nn.init.normal_(vlm.model.lm_head.bias, std=1.0)
    model = lora.attach(vlm.model, rank=4, layers=(2, 3)).train()
    samples = Samples(vlm, [taught(problem, "explanation_answer") for problem in PROBLEMS])
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    assert "model's own" not in capsys.readouterr().out
    for indices in ([0, 1, 2, 3], [2, 1], [3]):
        own = model(**collate([samples[i] for i in indices])).loss
        for source in (samples, cached):
            model.zero_grad()
            loss, tokens = source.loss(model, indices)
            (loss / tokens).backward()
            torch.testing.assert_close(loss / tokens, own, rtol=1e-4, atol=0)
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
            assert all(
                p.grad.abs().max() > 0 for n, p in model.named_parameters() if "layers.3" in n and ".lora_B." in n
            )
    assert all(module.training for module in model.modules()), "the trial left the model in evaluation mode"
    said = [line for line in capsys.readouterr().out.splitlines() if "model's own" in line]
    sentence = f"the loss of {type(vlm.model).__name__} is more than a frozen projection: taking the model's own, which needs more memory"
    assert said == [sentence] * (0 if head == "a projection" else 2), "each source says it once"
