"""peft's kinds of LoRA, attached by their configuration: they start as they should, train, are saved, loaded and taken off."""

import pytest
import tiny
import torch
from peft import EvaConfig, LoraConfig, PeftModel, initialize_lora_eva_weights
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from mmlora.adapters import files, lora
from mmlora.adapters.fused import fused
from mmlora.adapters.wrapping import AdapterError
from mmlora.models import base as bases
from mmlora.training.fit import fit
from mmlora.training.order import by_rate
from mmlora.training.settings import TrainSettings

KINDS = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "biases": {"bias": "lora_only"},
    "EVA": {"init_lora_weights": "eva", "eva_config": EvaConfig()},
    "whole head": {"modules_to_save": ["lm_head"]},
}
FUSED = {"plain", "rsLoRA", "PiSSA", "OLoRA", "gaussian", "patterns", "EVA", "whole head"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """`base()`: another copy of a tiny decoder with biases, known by its files."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, attention_bias=True,
                         attn_implementation="eager")  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)

    def fresh():
        model = LlamaForCausalLM.from_pretrained(folder).eval()
        bases.mark(model, bases.of_folder(folder))
        return model

    return fresh


def config_of(kind):
    return LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_the_base_learns_and_comes_back(base, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    model = base()
    bare, values = tiny.logits(model), {name: p.clone() for name, p in model.named_parameters()}
    adapted = lora.attach(model, config=config_of(kind))
    assert (tiny.logits(adapted.eval()) - bare).abs().max() < 1e-4, "a fresh adapter changes nothing"
    capsys.readouterr()
    log = fit(adapted, tiny.Tokens(), TrainSettings(steps=6, batch_size=8, learning_rate=1e-2), tmp_path / "run")
    said = "".join(capsys.readouterr())
    assert ("plain path" in said) == (kind not in FUSED)
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    learned = tiny.logits(adapted)
    assert (learned - bare).abs().max() > 0.01
    with torch.inference_mode(), fused(adapted):
        assert (tiny.logits(adapted) - learned).abs().max() < 1e-4
    folder = files.save_adapter(adapted, tmp_path / "adapter", {})
    assert torch.equal(tiny.logits(files.load_adapter(base(), folder)), learned)
    if kind != "PiSSA":  # whose base other kinds of tensors hold: plain peft computes it anew, to rounding
        assert torch.allclose(tiny.logits(PeftModel.from_pretrained(base(), folder).eval()), learned, atol=1e-5)
    assert (tiny.logits(lora.merge(files.load_adapter(base(), folder))) - learned).abs().max() < 1e-4
    assert lora.detach(adapted) is model
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())


def test_rslora_scales_by_the_root_of_the_rank(base):
    model = lora.attach(base(), config=config_of("rsLoRA"))
    scales = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
    assert scales == {6 / 4**0.5}


def test_eva_begins_with_what_goes_through_the_layers(base):
    """peft's own helper reads batches; A then has orthonormal rows, B stays zero."""
    model = lora.attach(base(), config=config_of("EVA"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.randint(0, tiny.VOCABULARY, (8, 4, 24), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert moved and all(".lora_A." in name for name in moved)
    first = model.get_parameter(moved[0]).double()
    assert torch.allclose(first @ first.T, torch.eye(len(first), dtype=torch.float64), atol=1e-4)
    assert torch.equal(tiny.logits(model.eval()), tiny.logits(base()))


def test_a_configuration_without_targets_goes_where_attach_says(base):
    config = LoraConfig(r=3, lora_alpha=9, use_rslora=True)
    names = lora.attach(base(), layers=[1], targets=("q_proj",), config=config).peft_config["default"].target_modules
    assert set(names) == {"model.layers.1.self_attn.q_proj"}
    assert config.target_modules is None, "the caller's configuration is as it was"


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"rank": 8}, "given beside a config"),
        ({"dropout": 0.1}, "given beside a config"),
        ({"layers": [1]}, "target_modules of its own"),
        ({"targets": ("q_proj",)}, "target_modules of its own"),
        ({"within": ("vision",)}, "target_modules of its own"),
    ],
)
def test_what_is_said_twice_is_refused(base, options, sentence):
    with pytest.raises(AdapterError, match=sentence):
        lora.attach(base(), config=config_of("plain"), **options)


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"r": 4}, "config is a dict; give a peft.LoraConfig"),
        (LoraConfig(target_modules=["nowhere"]), "peft cannot put this adapter on the model: Target modules"),
        (LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[1]), "use peft alone"),
        (LoraConfig(r=3, init_lora_weights="orthogonal", target_modules=["q_proj"]), "rank to be even"),
    ],
)
def test_what_peft_refuses_leaves_the_base_as_it_was(base, config, sentence):
    model = base()
    with pytest.raises(AdapterError, match=sentence):
        lora.attach(model, config=config)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in base().named_modules()]
    assert all(p.requires_grad for p in model.parameters())


# LoRA+.


def test_loraplus_takes_the_rates_of_pefts_optimizer():
    model = tiny.adapted()
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=16)
    expected = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    ours = {id(p): 2e-3 * group["share"] for group in by_rate(model, 16.0) for p in group["params"]}
    assert ours.keys() == expected.keys()
    assert all(ours[key] == pytest.approx(expected[key]) for key in ours) and len(set(ours.values())) == 2


def test_without_loraplus_there_is_one_group():
    (group,) = by_rate(tiny.adapted(), 1.0)
    assert group["share"] == 1.0 and len(group["params"]) == 2 * 2 * 7


def test_loraplus_moves_b_farther(tmp_path):
    lengths = {}
    for b_rate in (1.0, 8.0):
        model = tiny.adapted(dropout=0.0)
        settings = TrainSettings(steps=2, batch_size=8, learning_rate=1e-4, b_rate=b_rate)
        fit(model, tiny.Tokens(), settings, tmp_path / str(b_rate))
        lengths[b_rate] = sum(p.norm() for n, p in model.named_parameters() if ".lora_B." in n).item()
    assert lengths[8.0] == pytest.approx(8 * lengths[1.0], rel=0.05)
