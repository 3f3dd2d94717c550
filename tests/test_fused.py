"""Fused layers are the plain ones: the same losses, the same gradient tensor by tensor; what does not fit says so."""

import copy

import families
import pytest
import tinyvlm
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd import gradcheck

from mmlora.adapters import files, lora
from mmlora.adapters.fused import attended_on_card, fused
from mmlora.adapters.kernels import GELU, SILU, Attention, Gated, Normed, Rotated, bias_of
from mmlora.adapters.stacked import StackedLinear, restack
from mmlora.encoding.prompts import asked, taught
from mmlora.encoding.samples import Samples
from mmlora.evaluation.answering import evaluate
from mmlora.inference.generate import generate
from mmlora.inference.session import evaluating
from mmlora.models.vlm import decoder_layers
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

LESSONS = [taught(problem, "explanation_answer") for problem in tinyvlm.PROBLEMS]
ALL = list(range(len(LESSONS)))
#: Language models of further shapes: a norm around 1 and GeGLU, norms of queries and keys, biases.
SHAPES = {
    "gemma": families.Family(families.text_only("gemma", hidden_act="gelu_pytorch_tanh"), 2, sees=False),
    "qwen3": families.Family(families.text_only("qwen3"), 2, sees=False),
    "qwen2": families.Family(families.text_only("qwen2"), 2, sees=False),
    "mistral": families.Family(families.text_only("mistral"), 2, sees=False),
}
PLAIN = {"paligemma2"}  # Gemma 2 caps its scores and norms twice


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """An adapter that already does something."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def wide(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def learned(model, samples, indices=ALL, half=False):
    """Loss, and the gradient of every tensor that trains."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss, tokens = samples.loss(model, indices)
    (loss / tokens).backward()
    return loss.item() / tokens, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


# The derivatives, against finite differences in float64.


@pytest.mark.parametrize("bias", [False, True])
def test_the_stacked_linears_derivative(bias):
    torch.manual_seed(0)
    inner = nn.ModuleDict({name: nn.Linear(6, size, bias) for name, size in (("q", 4), ("k", 3), ("v", 5))}).double()
    model = get_peft_model(inner, LoraConfig(r=2, lora_alpha=6, target_modules=["q", "v"])).double()
    moved(model)
    modules = [model.base_model.model[name] for name in ("q", "k", "v")]
    linear, x = StackedLinear(modules, torch.float64), wide(7, 6)
    expected = torch.cat([module(x) for module in modules], -1)

    def computed(x, *_):  # finite differences move the factors in place
        restack([linear])
        return linear(x)

    assert torch.allclose(computed(x), expected)
    assert gradcheck(computed, (x, *linear.factors))


def test_the_rotations_derivative():
    angles = torch.randn(2, 5, 4, dtype=torch.float64)
    x, cos, sin = wide(2, 5, 3, 8), *(torch.cat([f(angles), f(angles)], -1) for f in (torch.cos, torch.sin))
    turned = Rotated.apply(x, cos, sin)
    assert turned.shape == (2, 3, 5, 8) and torch.allclose(turned.norm(dim=-1), x.transpose(1, 2).norm(dim=-1))
    assert gradcheck(Rotated.apply, (x, cos, sin))


@pytest.mark.parametrize("masked", [False, True])
def test_the_attentions_derivative_and_value(masked):
    query, key, value = wide(2, 6, 5, 4), wide(2, 3, 5, 4), wide(2, 3, 5, 4)
    mask = torch.ones(5, 5).tril().bool().expand(2, 1, 5, 5).clone()
    mask[1, :, :, 0] = not masked  # one sample does not look at its first token
    mask[1, :, 0, 0] = True
    bias = bias_of(mask if masked else None, 5, 5)
    ours = Attention.apply(query, key, value, bias, 0.3)
    seen = mask if masked else torch.ones(5, 5).tril().bool()
    theirs = nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=0.3, enable_gqa=True)
    assert torch.allclose(ours, theirs)
    assert gradcheck(lambda *x: Attention.apply(*x, bias, 0.3), (query, key, value))


@pytest.mark.parametrize(("length", "masked"), [(1, True), (1, False), (5, True), (5, False)])
def test_attention_on_a_card_is_attention(length, masked):
    query, key, value = wide(2, 6, length, 4), wide(2, 3, 5, 4), wide(2, 3, 5, 4)
    mask = torch.ones(5, 5).tril().bool().expand(2, 1, 5, 5)[:, :, -length:].clone()
    mask[1, :, :, 0] = not masked  # one row begins later
    mask[1, :, 0, 1] |= masked
    heads = (t.repeat_interleave(2, 1) for t in (key, value))
    theirs = nn.functional.scaled_dot_product_attention(query, *heads, mask, scale=0.3)
    assert torch.allclose(attended_on_card(query, key, value, mask if masked else None, 0.3), theirs)


@pytest.mark.parametrize("act", [SILU, GELU])
def test_the_gates_derivative(act):
    assert gradcheck(lambda both: Gated.apply(both, act), wide(4, 6))


def test_the_norms_derivative_and_value():
    x, weight = wide(4, 6), torch.randn(6, dtype=torch.float64)
    assert torch.allclose(Normed.apply(x, weight, 1e-3), nn.functional.rms_norm(x, (6,), weight, 1e-3))
    assert gradcheck(lambda x: Normed.apply(x, weight, 1e-3), (x,))


# The layers, against the plain ones.


@pytest.mark.parametrize("name", [*families.FAMILIES, *SHAPES])
def test_losses_and_gradients_are_the_plain_ones(name, capsys):
    vlm = families.build(name, SHAPES.get(name))
    samples = Samples(vlm, LESSONS)
    model = moved(lora.attach(vlm.model, rank=4, layers=(2, 3))).train()
    loss, gradients = learned(model, samples)
    with fused(model):
        same_loss, same = learned(model, samples)
        stayed = ["forward" in vars(layer) for layer in decoder_layers(model)]
    said = capsys.readouterr()
    if name in PLAIN:
        assert "takes the plain path" in said.out + said.err and not any(stayed)
        assert (loss, 0.0) == (same_loss, max((same[n] - gradients[n]).abs().max().item() for n in same))
        return
    assert all(stayed) and "plain" not in said.out + said.err
    assert same_loss == pytest.approx(loss, rel=1e-5) and gradients.keys() == same.keys()
    for tensor in gradients:
        assert torch.dist(gradients[tensor], same[tensor]) <= 1e-4 * gradients[tensor].norm(), tensor


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
def test_any_choice_of_targets(tiny_vlm, targets):
    model = moved(
        lora.attach(copy.deepcopy(tiny_vlm.model), rank=3, alpha=7, layers=(1, 2, 3), targets=targets)
    ).train()
    samples = Samples(tiny_vlm, LESSONS)
    _, gradients = learned(model, samples)
    with fused(model):
        _, same = learned(model, samples)
    for tensor in gradients:
        assert torch.dist(gradients[tensor], same[tensor]) <= 1e-4 * gradients[tensor].norm(), tensor


def test_in_half_precision_the_difference_is_rounding(tiny_vlm, numbers):
    """Both ways differ from float32, and by no more from each other."""
    model = moved(lora.attach(copy.deepcopy(tiny_vlm.model), rank=4, layers=(1, 2, 3))).train()
    samples = Samples(tiny_vlm, LESSONS)
    _, exact = learned(model, samples)
    _, plain = learned(model, samples, half=True)
    numbers("bfloat16")
    with fused(model):
        _, ours = learned(model, samples, half=True)

    def apart(one, other):
        return sum(torch.dist(one[n], other[n]) ** 2 for n in one) ** 0.5

    assert apart(ours, exact) < 1.5 * apart(plain, exact)


@pytest.mark.parametrize(("half", "close"), [(False, 1e-5), (True, 1e-3)])
def test_fifty_steps_have_the_same_losses(tiny_vlm, tmp_path, numbers, half, close):
    numbers("bfloat16" if half else "float32")
    samples, losses = Samples(tiny_vlm, LESSONS), []
    for fast in (False, True):
        model = lora.attach(copy.deepcopy(tiny_vlm.model), rank=4, layers=(1, 2, 3))
        log = fit(model, samples, TrainSettings(steps=50, batch_size=2, fused=fast), tmp_path / f"{fast}")
        losses.append([record["loss"] for record in log.records])
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=close)


def test_the_layers_and_the_base_are_as_they_were(tiny_vlm, tmp_path):
    """And what was trained is an adapter like any other: saved, loaded, answering alike."""
    vlm = tiny_vlm.with_model(copy.deepcopy(tiny_vlm.model))
    before = {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}
    model = lora.attach(vlm.model, rank=4, layers=(1, 2, 3))
    fit(model, Samples(vlm, LESSONS), TrainSettings(steps=3, batch_size=2), tmp_path / "run")
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))
    files.save_adapter(model, tmp_path / "adapter", {})
    said = evaluate(vlm.with_model(model), tinyvlm.PROBLEMS, "likelihood", progress=False)
    base = lora.detach(model)
    base.save_pretrained(tmp_path / "base")
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, tensor in type(base).from_pretrained(tmp_path / "base").state_dict().items():
        assert torch.equal(tensor, before[name])
    again = evaluate(vlm.with_model(files.load_adapter(base, tmp_path / "adapter")), tinyvlm.PROBLEMS, "likelihood",
                     progress=False)  # fmt: skip
    assert [p.scores for p in again] == [p.scores for p in said]


# What does not fit.


def sentence(model, samples, capsys) -> str:
    """What is said when a step is tried; its loss is the plain one in any case."""
    loss, _ = learned(model, samples)
    capsys.readouterr()
    with fused(model):
        assert learned(model, samples)[0] == pytest.approx(loss, rel=1e-5)
        assert ["forward" in vars(layer) for layer in decoder_layers(model)] == [True, True, False, False]
    said = capsys.readouterr()
    return said.out + said.err


def test_dropout_takes_the_plain_path_while_it_drops(tiny_vlm, capsys):
    model, samples = moved(lora.attach(copy.deepcopy(tiny_vlm.model), rank=4, dropout=0.5)), Samples(tiny_vlm, LESSONS)
    model.eval()
    loss, _ = learned(model, samples)
    capsys.readouterr()
    with fused(model):
        assert learned(model, samples)[0] == pytest.approx(loss, rel=1e-5)
        assert all("forward" in vars(layer) for layer in decoder_layers(model)[2:])
        assert "plain path" not in "".join(capsys.readouterr())
        model.train()
        torch.manual_seed(5)
        dropped = learned(model, samples)[0]
    said = capsys.readouterr()
    assert "LlamaDecoderLayer takes the plain path, which is slower: it drops units" in said.out + said.err
    torch.manual_seed(5)  # the same units drop; two threads may add up in another order
    assert learned(model, samples)[0] == pytest.approx(dropped, rel=1e-6) != loss
    assert abs(dropped - loss) > 1e-4


def test_an_adapter_that_moved_is_the_one_that_computes(tiny_vlm):
    """Also where the lowest layer takes the plain path, and where an optimizer steps between two passes."""
    model, samples = (
        moved(lora.attach(copy.deepcopy(tiny_vlm.model), rank=4, layers=(1, 2, 3))),
        Samples(tiny_vlm, LESSONS),
    )
    model.train()
    odd = decoder_layers(model)[1].mlp.act_fn
    odd.__dict__["forward"] = lambda gate: nn.functional.silu(1.01 * gate)
    fast = fused(model)
    for seed in (1, 2, 3):
        moved(model, seed)
        loss, gradients = learned(model, samples)
        with fast:
            same_loss, same = learned(model, samples)
        assert same_loss == pytest.approx(loss, rel=1e-5)
        for tensor in gradients:
            assert torch.dist(gradients[tensor], same[tensor]) <= 1e-4 * gradients[tensor].norm(), tensor


def test_two_adapters_at_once_take_the_plain_path(tiny_vlm, capsys):
    model = moved(lora.attach(copy.deepcopy(tiny_vlm.model), rank=4))
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    assert "more than one plain LoRA" in sentence(model, Samples(tiny_vlm, LESSONS), capsys)


def test_a_disabled_adapter_is_none(tiny_vlm, capsys):
    base = copy.deepcopy(tiny_vlm.model).eval()
    model, samples = moved(lora.attach(copy.deepcopy(base), rank=4)).eval(), Samples(tiny_vlm, LESSONS)
    with torch.no_grad(), model.disable_adapter(), fused(model):
        ours = samples.loss(model, ALL)[0]
        assert all("forward" in vars(layer) for layer in decoder_layers(model))
    with torch.no_grad():
        assert ours.item() == pytest.approx(samples.loss(base, ALL)[0].item(), rel=1e-5)
    assert "plain path" not in capsys.readouterr().out


def test_trained_matrices_take_the_plain_path(tiny_vlm, capsys):
    model = lora.attach(copy.deepcopy(tiny_vlm.model), rank=4)
    for layer in decoder_layers(model)[2:]:
        layer.mlp.down_proj.base_layer.weight.requires_grad_(True)
    assert "its own matrices train" in sentence(model, Samples(tiny_vlm, LESSONS), capsys)


def test_a_layer_that_computes_something_else_is_found_out(tiny_vlm, capsys):
    """All its parts have the names and kinds of Llama's; what it makes of them is its own."""
    model = moved(lora.attach(copy.deepcopy(tiny_vlm.model), rank=4))
    for layer in decoder_layers(model)[2:]:
        layer.mlp.act_fn.__dict__["forward"] = lambda gate: nn.functional.silu(1.01 * gate)
    assert "its states differ by" in sentence(model, Samples(tiny_vlm, LESSONS), capsys)


def test_generation_inside_says_what_the_plain_way_says(tiny_vlm, tmp_path):
    vlm = tiny_vlm.with_model(moved(lora.attach(copy.deepcopy(tiny_vlm.model), rank=4)))
    conversations = [asked(problem) for problem in tinyvlm.PROBLEMS]
    vlm.model.eval()
    with torch.inference_mode():
        plain = generate(vlm, conversations, 8)
    assert not any("forward" in vars(layer) for layer in decoder_layers(vlm.model))
    with evaluating(vlm):
        assert generate(vlm, conversations, 8) == plain
        assert all("forward" in vars(layer) for layer in decoder_layers(vlm.model)[2:]), (
            "none went back to the plain way"
        )
