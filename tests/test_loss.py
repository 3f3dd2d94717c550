"""The folded loss is torch's cross-entropy, in value and in gradient."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mmlora.encoding.loss import CHUNK, IGNORED, supervised_loss


def example(length: int, supervised: float = 0.7, seed: int = 0):
    torch.manual_seed(seed)
    head = nn.Linear(12, 29, bias=False).requires_grad_(False)
    hidden, labels = torch.randn(3, length, 12), torch.randint(0, 29, (3, length))
    return hidden, head, labels.masked_fill(torch.rand(3, length) > supervised, IGNORED)


def by_torch(hidden, head, labels):
    return cross_entropy(head(hidden[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED,
                         reduction="sum")


@pytest.mark.parametrize("length", [2, 9, CHUNK + 40])  # with 3 rows the last is more than two chunks
def test_value_and_gradient_are_torchs(length):
    hidden, head, labels = example(length, supervised=0.9)
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    loss, count = supervised_loss(ours, head, labels)
    expected = by_torch(theirs, head, labels)
    assert count == int((labels[:, 1:] != IGNORED).sum()) and (length < 100 or count > 2 * CHUNK)
    assert torch.allclose(loss, expected, rtol=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert (ours.grad[:, -1] == 0).all() and not ours.grad[:, :-1][labels[:, 1:] == IGNORED].any()


def test_without_gradient():
    hidden, head, labels = example(9)
    loss, _ = supervised_loss(hidden, head, labels)
    assert not loss.requires_grad and torch.allclose(loss, by_torch(hidden, head, labels))
    with torch.no_grad():
        again, _ = supervised_loss(hidden.requires_grad_(), head, labels)
    assert not again.requires_grad and torch.equal(loss, again)


def test_nothing_supervised_is_no_loss_and_no_gradient():
    hidden, head, labels = example(9)
    hidden.requires_grad_()
    loss, count = supervised_loss(hidden, head, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss == 0 and count == 0 and not hidden.grad.any()


def test_certain_predictions_do_not_overflow():
    hidden, head, labels = example(9)
    hidden = (1e4 * hidden).requires_grad_()
    loss, _ = supervised_loss(hidden, head, labels)
    loss.backward()
    assert loss.isfinite() and hidden.grad.isfinite().all() and torch.allclose(loss, by_torch(hidden, head, labels))


def test_half_precision_activations_are_summed_in_float32():
    hidden, head, labels = example(9)
    half = hidden.bfloat16().requires_grad_()
    loss, _ = supervised_loss(half, head.bfloat16(), labels)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    assert torch.allclose(loss, by_torch(hidden, head.float(), labels), rtol=2e-2)
