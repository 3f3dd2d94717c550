"""The adapter's life as a chain of theorems, and every way to ask for the wrong one."""

import json

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from mmlora.adapters import files, lora, towers
from mmlora.adapters.lora import AdapterError
from mmlora.smolbridge.model import SmolBridgeConfig
from mmlora.training import fit, settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model, base weights before, adapter before) after a few real steps."""
    model = tiny.adapted()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = settings.TrainSettings(steps=6, batch_size=8, learning_rate=1e-2)
    fit.fit(model, tiny.Tokens(), settings, tmp_path_factory.mktemp("run"))
    return model, before


@pytest.fixture
def saved(trained, tmp_path):
    fields = {"title": "Tiny", "license": "apache-2.0", "test accuracy": 0.5, "seed": 0}
    return files.save_adapter(trained[0], tmp_path / "adapter", fields)


# The chain.


def test_a_fresh_adapter_changes_no_bit():
    assert torch.equal(tiny.logits(tiny.adapted().eval()), tiny.logits(tiny.decoder()))


def test_training_leaves_the_base_bit_identical(trained):
    model, before = trained
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if ".lora_" not in n)


def test_training_moves_every_adapter_tensor(trained):
    model, before = trained
    still = [n for n, p in model.named_parameters() if ".lora_" in n and torch.equal(p, before[n])]
    assert still == []


def test_a_fresh_process_gives_equal_logits(one_thread, fresh_process, trained, saved, tmp_path):
    assert fresh_process(tiny.write_logits, saved, tmp_path / "out") == 0
    assert torch.equal(load_file(tmp_path / "out")["logits"], tiny.logits(trained[0]))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_merged_agrees_within_tolerance(saved, dtype, tolerance):
    model = files.load_adapter(tiny.decoder().to(dtype), saved)
    apart = tiny.logits(model).float()
    merged = tiny.logits(model.merge_and_unload()).float()
    assert (merged - apart).abs().max() < tolerance
    assert (merged - tiny.logits(tiny.decoder())).abs().max() > 0.1, "the adapter does nothing, so this shows nothing"


def test_peft_alone_loads_it_too(trained, saved):
    assert torch.equal(tiny.logits(PeftModel.from_pretrained(tiny.decoder(), saved).eval()), tiny.logits(trained[0]))


def test_the_files_are_the_same_every_time_and_the_card_is_filled(trained, saved, tmp_path):
    again = files.save_adapter(trained[0], tmp_path / "again", {"title": "Tiny"})
    assert (again / "adapter_config.json").read_bytes() == (saved / "adapter_config.json").read_bytes()
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in (saved, again)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0] | tensors[1])
    card = (saved / "README.md").read_text()
    assert "# Tiny" in card and "| test accuracy | 0.5 |" in card and 'license: "apache-2.0"' in card
    assert "More Information Needed" not in card


# Where it goes.


def test_the_table_counts_by_tower(capsys):
    model = tiny.adapted()
    language = towers.towers(model).rows[2]
    assert (language.tower, language.modules) == ("language", 2 * 7)
    assert language.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{language.trainable:,}" in capsys.readouterr().out


def test_the_default_layers_are_the_upper_third():
    assert {name.split(".")[2] for name in lora.attach(tiny.decoder()).peft_config["default"].target_modules} == {"3"}


def test_targets_choose_by_name():
    names = lora.attach(tiny.decoder(), layers=[0], targets=("q_proj", "v_proj")).peft_config["default"].target_modules
    assert sorted(names) == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]


def test_the_seed_decides_the_adapter_and_nothing_else():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    base = tiny.decoder()
    torch.manual_seed(3)
    first = lora.attach(base, seed=1)
    assert torch.equal(torch.rand(1), expected)
    other = lora.attach(tiny.decoder(), seed=2)
    same = lora.attach(tiny.decoder(), seed=1)
    name = next(n for n, p in first.named_parameters() if "lora_A" in n)
    assert torch.equal(first.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize("family", ["llava", "smolvlm", "paligemma", "qwen2_5_vl", "internvl", "smolbridge"])
def test_towers_are_told_apart_in_every_family(family):
    config = SmolBridgeConfig(text_config={}) if family == "smolbridge" else AutoConfig.for_model(family)
    for part in (config.get_text_config(), getattr(config, "vision_config", None)):
        for key in ("num_hidden_layers", "depth"):
            if part is not None and hasattr(part, key):
                setattr(part, key, 2)
    if hasattr(config.get_text_config(), "layer_types"):
        config.get_text_config().layer_types = (config.get_text_config().layer_types or [])[:2] or None
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    rows = towers.towers(model).rows
    assert all(row.parameters > 0 for row in rows), rows
    wrapped = lora.attach(model, layers=[1])
    assert [row.modules for row in towers.towers(wrapped).rows] == [0, 0, 7]


# Errors.


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"layers": range(2, 9)}, "layers 2 to 8 of the decoder were asked for, but it has 0 to 3"),
        ({"layers": []}, "no layers of the decoder"),
        ({"layers": [-1]}, "it has 0 to 3"),
        ({"targets": ("q_prj",)}, "'q_prj' matches no linear module there; choose among q_proj"),
        ({"within": ("vision",)}, "the vision tower has no linear module"),
    ],
)
def test_what_matches_nothing_is_an_error(options, sentence):
    base = tiny.decoder()
    with pytest.raises(AdapterError, match=sentence):
        lora.attach(base, **options)
    assert not any("lora" in name for name, _ in base.named_modules())


def test_a_second_attach_is_refused():
    model = tiny.adapted()
    for again in (model, model.get_base_model()):
        with pytest.raises(AdapterError, match="carries an adapter already"):
            lora.attach(again)


def test_an_adapter_that_could_never_train_is_refused():
    with torch.inference_mode(), pytest.raises(AdapterError, match="attach it outside"):
        lora.attach(tiny.decoder())


def test_gradient_norms_tell_the_towers_apart():
    model = tiny.adapted()
    model.connector = torch.nn.Linear(2, 2)
    tiny.Tokens().loss(model, [0, 1])[0].backward()
    norms = towers.gradient_norms(model)
    expected = torch.cat([p.grad.flatten() for n, p in model.named_parameters() if ".lora_" in n]).norm().item()
    assert norms == {"language": pytest.approx(expected), "connector": 0.0}


def test_what_an_adapter_cannot_hold_is_not_lost_silently(tmp_path):
    model = tiny.adapted()
    model.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.raises(AdapterError, match="lm_head.weight was trained beside the adapter"):
        files.save_adapter(model, tmp_path, {})


def _edit(folder, change):
    path = folder / "adapter_model.safetensors"
    with files.safe_open(path, "pt") as file:
        marks = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=marks)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: t.pop(min(t)), "1 tensors are missing, such as base_model.model.model.layers.2"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 tensors are unexpected, such as extra"),
        (lambda t: t.update({min(t): torch.zeros(3, 3)}), "has shape"),
    ],
)
def test_tensors_that_do_not_fit_are_errors_and_leave_the_model_alone(saved, change, sentence):
    _edit(saved, change)
    base = tiny.decoder()
    with pytest.raises(AdapterError, match=sentence):
        files.load_adapter(base, saved)
    assert torch.equal(tiny.logits(base), tiny.logits(tiny.decoder()))
    assert not any("lora" in name for name, _ in base.named_modules())


def test_another_base_is_refused(saved):
    with pytest.raises(AdapterError, match="was trained on other weights"):
        files.load_adapter(tiny.decoder(seed=1), saved)


def test_a_foreign_adapter_is_known_by_its_base_name(saved):
    save_file(load_file(saved / "adapter_model.safetensors"), saved / "adapter_model.safetensors")
    files.load_adapter(tiny.decoder(seed=1), saved)
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "someone/else"}))
    with pytest.raises(AdapterError, match="other weights .someone/else."):
        files.load_adapter(tiny.decoder(), saved)


def test_pickles_truncated_and_missing_files_are_refused(saved):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="is damaged"):
        files.load_adapter(tiny.decoder(), saved)
    path.rename(saved / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickles are not read"):
        files.load_adapter(tiny.decoder(), saved)


def test_loading_onto_a_wrapped_model_is_refused(saved):
    with pytest.raises(AdapterError, match="carries an adapter already"):
        files.load_adapter(tiny.adapted(), saved)
