"""Combined adapters: the weighted sum of updates, checked against the products themselves; what would be wrong is refused."""

import pytest
import tiny
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from mmlora.adapters import files, lora, named
from mmlora.adapters.combine import APART, SUMS, combine
from mmlora.adapters.wrapping import AdapterError

WEIGHTS = {"first": 0.7, "second": -1.3, "third": 2.0}  # a negative one: task arithmetic
KINDS = {
    "first": LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"]),
    "second": LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "gate_proj"]),
    "third": LoraConfig(r=5, lora_alpha=5, target_modules=["v_proj"], rank_pattern={"layers.2.*v_proj": 2},
                        alpha_pattern={"layers.3.*v_proj": 7}),
}  # fmt: skip


def moved(model, std=0.3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for full, parameter in model.named_parameters():
            if ".lora_B." in full:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def model_with(kinds=KINDS, base=None):
    model = tiny.decoder() if base is None else base
    for name, config in kinds.items():
        model = lora.attach(model, config=config, name=name)
    return moved(model)


def same_places(dtype=torch.float32):
    """Adapters of one rank on the same modules, which every form takes."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    return model_with({"first": config, "second": config}, tiny.decoder().to(dtype))


def updates(model, name):
    """s·B·A of an adapter at every weight, from its own tensors."""
    found = {}
    for place, module in model.named_modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            scale = module.lora_alpha[name] / module.r[name]
            found[place] = scale * module.lora_B[name].weight.double() @ module.lora_A[name].weight.double()
    return found


def weighted(model, weights):
    total = {}
    for name, weight in weights.items():
        for place, update in updates(model, name).items():
            total[place] = total.get(place, 0) + weight * update
    return total


def apart(one, other):
    """Relative distance of two sets of updates."""
    norm = sum(update.norm() ** 2 for update in other.values()) ** 0.5
    return (sum((one[place] - other[place]).norm() ** 2 for place in other) ** 0.5 / norm).item()


# Exact.


def test_cat_is_the_exact_weighted_sum_for_other_ranks_alphas_and_places(capsys):
    model = model_with()
    active = named.active_names(model)
    error = combine(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    exact = weighted(model, WEIGHTS)
    assert updates(model, "sum").keys() == exact.keys()
    assert error < 1e-6 and apart(updates(model, "sum"), exact) < 1e-6
    assert model.peft_config["sum"].r == 4 + 3 + 5
    assert "sum = 0.7 × first + -1.3 × second + 2 × third by cat, rank 12, relative error" in capsys.readouterr().out
    assert named.active_names(model) == active, "what is active stays so"


def test_the_weights_are_those_of_the_base_plus_the_sum():
    """W + Σ w·s·B·A, put together by hand, answers as the combined adapter does, apart and merged."""
    model = model_with()
    combine(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    named.switch(model, "sum")
    by_hand = tiny.decoder()
    with torch.no_grad():
        for place, update in weighted(model, WEIGHTS).items():
            by_hand.get_submodule(place.removeprefix("base_model.model.")).weight += update.float()
    expected = tiny.logits(by_hand)
    assert (tiny.logits(model) - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (expected - tiny.logits(tiny.decoder())).abs().max() > 0.1
    assert (tiny.logits(lora.merge(model)) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_svd_at_full_rank_is_the_sum_and_at_a_lower_one_the_nearest():
    model = model_with()
    exact = weighted(model, WEIGHTS)
    errors = []
    for rank in (48, 8, 3):  # no weight here has a rank above 32, and some have one of 16
        error = combine(model, list(WEIGHTS), list(WEIGHTS.values()), f"svd{rank}", "svd", rank=rank)
        assert error == pytest.approx(apart(updates(model, f"svd{rank}"), exact), rel=1e-3, abs=1e-6)
        errors.append(error)
        left = sum(torch.linalg.svdvals(update)[rank:].square().sum() for update in exact.values())
        norm = sum(update.norm() ** 2 for update in exact.values())
        assert error == pytest.approx((left / norm).sqrt().item(), rel=1e-3, abs=1e-5), "Eckart and Young"
    assert errors[0] < 1e-5 < errors[1] < errors[2]


def test_one_adapter_is_scaled():
    model = model_with()
    combine(model, ["second"], [-0.5], "less")
    assert apart(updates(model, "less"), weighted(model, {"second": -0.5})) < 1e-6


def test_a_base_in_half_precision_does_not_round_the_sum():
    model = same_places(torch.bfloat16)
    assert combine(model, ["first", "second"], [0.3, 0.7], "sum") < 1e-6
    assert apart(updates(model, "sum"), weighted(model, {"first": 0.3, "second": 0.7})) < 1e-6


# Approximations.


@pytest.mark.parametrize("how", [how for how in SUMS if how not in ("cat", "svd")])
def test_approximations_say_how_far_they_are(how):
    model = same_places()
    combine(model, ["first", "second"], [1.0, 0.5], "sum")
    errors = []
    for density in (0.3, 0.9):
        error = combine(model, ["first", "second"], [1.0, 0.5], f"d{100 * density:.0f}", how, rank=8, density=density)
        assert error == pytest.approx(apart(updates(model, f"d{100 * density:.0f}"), updates(model, "sum")), rel=1e-3)
        errors.append(error)
    assert errors[1] < errors[0] and errors[0] > 0.1
    if "ties" not in how:
        assert combine(model, ["first", "second"], [1.0, 0.5], "all", how, rank=8, density=1.0) < 1e-5


@pytest.mark.parametrize("how", ["dare_linear_svd", "dare_ties_svd"])
def test_what_is_dropped_by_chance_is_fixed_by_the_seed(how):
    model = same_places()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        combine(model, ["first", "second"], [1.0, 0.5], name, how, density=0.5, seed=seed)
    assert torch.equal(torch.rand(1), expected), "and changes no other chance"
    one, again, other = (updates(model, name) for name in ("one", "again", "other"))
    assert apart(one, again) < 1e-6 < apart(one, other)


@pytest.mark.parametrize("how", APART)
def test_forms_with_cross_terms_are_asked_for_by_name(how, capsys):
    model = same_places()
    options = {} if how == "linear" else {"density": 0.9}
    with pytest.raises(AdapterError, match=f"{how} combines A and B apart.* no sum of updates; use .*cross_terms=True"):
        combine(model, ["first", "second"], [1.0, 1.0], "mixed", how, **options)
    assert "mixed" not in model.peft_config
    capsys.readouterr()
    error = combine(model, ["first", "second"], [1.0, 1.0], "mixed", how, cross_terms=True, **options)
    assert error > 0.3 and "cross terms that are no sum of updates" in capsys.readouterr().out


# Its life.


def test_a_combined_adapter_lives_as_any_other(one_thread, fresh_process, tmp_path):
    model = model_with()
    combine(model, list(WEIGHTS), list(WEIGHTS.values()), "sum")
    named.switch(model, "sum")
    assert not any(row.trains for row in named.adapters(model) if row.name == "sum")
    expected = tiny.logits(model)
    folder = files.save_adapter(model, tmp_path / "sum", {}, name="sum")
    assert fresh_process(tiny.write_logits, folder, tmp_path / "out") == 0
    assert torch.equal(load_file(tmp_path / "out")["logits"], expected)
    loaded = files.load_adapter(tiny.decoder(), folder)
    assert (tiny.logits(lora.merge(loaded)) - expected).abs().max() < 1e-3 * expected.abs().max()
    again = model_with()
    assert torch.equal(tiny.logits(files.load_adapter(again, folder, name="loaded")), expected)
    assert combine(again, ["loaded", "first"], [1.0, -0.7], "less") < 1e-6
    assert torch.equal(tiny.logits(lora.detach(model)), tiny.logits(tiny.decoder()))


def test_an_adapter_that_learns_goes_on_learning():
    """peft freezes every parameter in whose name the new name occurs."""
    model = same_places()
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    combine(model, ["first", "second"], [1.0, 1.0], "s")
    assert any(learning.values())
    assert learning == {name: p.requires_grad for name, p in model.named_parameters() if ".s." not in name}


def test_a_low_rank_form_of_wide_rank_is_saved_and_loaded(tmp_path):
    """peft leaves fewer columns than the configuration says where a weight has no more; another process could not load that."""
    model = same_places()
    combine(model, ["first", "second"], [1.0, 1.0], "wide", "svd", rank=20)  # v_proj is 16 x 32
    named.switch(model, "wide")
    folder = files.save_adapter(model, tmp_path, {}, name="wide")
    assert torch.equal(tiny.logits(files.load_adapter(tiny.decoder(), folder)), tiny.logits(model))


# What would be wrong without a word.


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"use_rslora": True}, "odd is rsLoRA"),
        ({"use_dora": True}, "odd is DoRA or another variant"),
        ({"lora_bias": True}, "odd is an adapter with biases"),
        ({"modules_to_save": ["lm_head"]}, "odd is an adapter with modules that were trained whole"),
        ({"trainable_token_indices": [1, 2]}, "odd is an adapter with tokens that were trained"),
        ({"layers_to_transform": [1]}, "odd chooses its modules by layers_to_transform"),
        ({"exclude_modules": ["v_proj"]}, "odd chooses its modules by exclude_modules"),
    ],
)
def test_what_peft_would_combine_wrongly_is_refused(options, sentence):
    model = model_with({"first": KINDS["first"], "odd": LoraConfig(r=4, target_modules=["q_proj"], **options)})
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(AdapterError, match=sentence):
        combine(model, ["first", "odd"], [1.0, 1.0], "sum")
    assert [name for name, _ in model.named_modules()] == before and list(model.peft_config) == ["first", "odd"]


@pytest.mark.parametrize("options", [{"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_what_changes_the_base_is_not_combined_even_alone(options):
    model = lora.attach(tiny.decoder(), config=LoraConfig(r=4, target_modules=["q_proj"], **options))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(AdapterError, match="default is "):
        combine(model, ["default"], [0.5], "less")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "arguments, options, sentence",
    [
        ((["first", "fourth"], [1, 1], "sum"), {}, "no adapter called 'fourth'; it has first, second, third"),
        ((["first", "second"], [1, 1], "third"), {}, "already that is called 'third'"),
        ((["first", "second"], [1], "sum"), {}, "2 adapters .first, second. and 1 weights"),
        ((["first", "first"], [1, 1], "sum"), {}, "give each once"),
        ((["first", "second"], [1, float("nan")], "sum"), {}, "give finite numbers"),
        ((["first", "second"], [1, 1], "sum", "mean"), {}, "cannot be combined by 'mean'; there are cat, svd"),
        ((["first"], [1], "sum", "svd"), {}, "at least two adapters; to scale one, use cat"),
        ((["first", "second"], [1, 1], "sum", "ties_svd"), {}, "give density"),
        ((["first", "second"], [1, 1], "sum", "dare_linear_svd"), {"density": 0}, "above 0 and at most 1"),
        ((["first", "second"], [1, 1], "sum"), {"density": 0.5}, "leave density out"),
        ((["first", "second"], [1, 1], "sum"), {"rank": 3}, "rank is for the forms that end in svd"),
        ((["first", "second"], [1, -1], "sum", "ties_svd"), {"density": 0.5}, "elects signs before weights"),
        ((["first", "second"], [1, 1], "sum", "linear"), {"cross_terms": True}, "needs adapters on the same modules"),
    ],
)
def test_calls_that_make_no_sense_are_sentences(arguments, options, sentence):
    model = model_with()
    with pytest.raises(AdapterError, match=sentence):
        combine(model, *arguments, **options)
    assert list(model.peft_config) == list(KINDS)


def test_what_peft_refuses_leaves_the_model_as_it_was():
    config = LoraConfig(r=4, target_modules="model.layers.2.self_attn.q_proj")
    model = model_with({"first": KINDS["first"], "second": config})  # a list of names and an expression
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(AdapterError, match="cannot be combined by cat"):
        combine(model, ["first", "second"], [1.0, 1.0], "sum")
    assert list(model.peft_config) == ["first", "second"]
    assert before.keys() == {name for name, _ in model.named_parameters()}
