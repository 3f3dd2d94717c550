"""The adapter's life as a chain of theorems, and every way to ask for the wrong one."""

import copy
import json

import families
import pytest
import tiny
import torch
from peft import PeftModel
from peft.import_utils import is_torchao_available
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from mmlora.adapters import files, lora, towers, wrapping
from mmlora.adapters.wrapping import AdapterError
from mmlora.models import base as bases
from mmlora.models import vlm as models
from mmlora.models.vlm import load_base
from mmlora.smolbridge.model import SmolBridgeConfig
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model, base weights before, adapter before) after a few real steps."""
    model = tiny.adapted()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = TrainSettings(steps=6, batch_size=8, learning_rate=1e-2)
    fit(model, tiny.Tokens(), settings, tmp_path_factory.mktemp("run"))
    return model, before


@pytest.fixture
def saved(trained, tmp_path):
    return files.save_adapter(trained[0], tmp_path / "adapter", {"test accuracy": 0.5, "seed": 0})


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
    merged = tiny.logits(lora.merge(model)).float()
    assert (merged - apart).abs().max() < tolerance
    assert (merged - tiny.logits(tiny.decoder())).abs().max() > 0.1, "the adapter does nothing, so this shows nothing"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_unmerged_it_is_the_base_again_within_tolerance(saved, dtype, tolerance):
    """Adding a product and taking it off again rounds twice; `detach` after a training without merging rounds nothing."""
    base = {n: p.detach().clone() for n, p in tiny.decoder().to(dtype).named_parameters()}
    model = files.load_adapter(tiny.decoder().to(dtype), saved)
    own = {n.replace(".base_layer", ""): p for n, p in lora.base_model(model).named_parameters()}
    model.merge_adapter()
    assert any(not torch.equal(own[n], p) for n, p in base.items())
    model.unmerge_adapter()
    assert max((own[n] - p).abs().max().item() for n, p in base.items()) < tolerance


def test_an_adapter_in_the_vision_tower_lives_the_same_life(tiny_vlm, tmp_path):
    """EfficientNet has no linear modules: there the convolutions of one pixel are adapted."""
    model = lora.attach(copy.deepcopy(tiny_vlm.model), rank=2, within=("vision",))
    adapted = [m for m in model.modules() if hasattr(m, "lora_A")]
    assert adapted and all(m.base_layer.kernel_size == (1, 1) and m.base_layer.groups == 1 for m in adapted)
    assert torch.equal(picture_logits(model), picture_logits(tiny_vlm.model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3)
    moved = picture_logits(model)
    assert not torch.equal(moved, picture_logits(tiny_vlm.model))
    again = files.load_adapter(copy.deepcopy(tiny_vlm.model), files.save_adapter(model, tmp_path / "adapter", {}))
    assert torch.equal(picture_logits(again), moved)
    assert (picture_logits(lora.merge(again)) - moved).abs().max() < 1e-4
    assert torch.equal(picture_logits(lora.detach(model)), picture_logits(tiny_vlm.model))


def test_peft_alone_loads_it_too(trained, saved):
    assert torch.equal(tiny.logits(PeftModel.from_pretrained(tiny.decoder(), saved).eval()), tiny.logits(trained[0]))


def test_the_files_are_the_same_every_time_and_the_card_is_filled(trained, saved, tmp_path):
    again = files.save_adapter(trained[0], tmp_path / "again", {"seed": 1})
    assert (again / "adapter_config.json").read_bytes() == (saved / "adapter_config.json").read_bytes()
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in (saved, again)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0] | tensors[1])
    card = (saved / "README.md").read_text()
    assert "# LoRA adapter for LlamaForCausalLM" in card and "| test accuracy | 0.5 |\n| seed | 0 |" in card
    assert 'license: "other"' in card and "base_model:" not in card and "More Information Needed" not in card


@pytest.mark.filterwarnings("error:Unable to fetch remote file")  # what is saved here is known here
def test_the_card_and_the_configuration_name_the_base_as_the_hub_does(tmp_path):
    model = tiny.decoder()
    bases.mark(model, bases.Base("someone/tiny", "abc123", "apache-2.0", "f" * 64))
    folder = files.save_adapter(lora.attach(model), tmp_path, {"a|b": "c|d"}, data_licence="cc-by-nc-sa-4.0")
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nbase_model: "someone/tiny"\nlibrary_name: "peft"\nlicense: "cc-by-nc-sa-4.0"\n')
    for row in (
        "its revision | abc123",
        "licence | cc-by-nc-sa-4.0 (base apache-2.0, data cc-by-nc-sa-4.0)",
        "a|b | c/d",
    ):
        assert f"| {row} |" in card
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny", "abc123")


@pytest.fixture
def old_torchao(tmp_path, monkeypatch):
    """A torchao that is older than what peft wants, as it lay on Colab."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("")
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text("Name: torchao\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in (wrapping.lora_torchao, wrapping.quantization_utils):
        monkeypatch.setattr(module, "is_torchao_available", is_torchao_available)
    is_torchao_available.cache_clear()
    yield
    is_torchao_available.cache_clear()


def test_a_torchao_that_is_too_old_for_peft_is_in_nobodys_way(old_torchao, tmp_path):
    with pytest.raises(ImportError, match="incompatible version of torchao"):
        is_torchao_available()
    folder = files.save_adapter(lora.attach(tiny.decoder()), tmp_path / "adapter", {})
    assert lora.merge(files.load_adapter(tiny.decoder(), folder)) is not None


# Taken off again.


@pytest.mark.parametrize("through", ["the adapted model", "the base inside it"])
def test_an_adapter_is_taken_off_without_a_trace(through):
    base = tiny.decoder()
    names = [name for name, _ in base.named_modules()]
    model = lora.attach(base, layers=(1, 3))
    bare = lora.detach(model if through == "the adapted model" else base)
    assert bare is base and not wrapping.is_wrapped(bare) and not hasattr(bare, "peft_config")
    assert [name for name, _ in bare.named_modules()] == names
    assert torch.equal(tiny.logits(bare), tiny.logits(tiny.decoder()))
    again = lora.attach(bare, rank=4, layers=(2, 3), dropout=0.1)
    assert set(again.peft_config) == {"default"}
    fresh = tiny.adapted()
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}
    assert all(torch.equal(p, fresh.get_parameter(n)) for n, p in again.named_parameters())


def test_a_bare_model_is_detached_as_it_is():
    base = tiny.decoder()
    assert lora.detach(base) is base and torch.equal(tiny.logits(base), tiny.logits(tiny.decoder()))


def test_what_was_learned_is_taken_off_too(trained):
    model = copy.deepcopy(trained[0])
    assert torch.equal(tiny.logits(lora.detach(model)), tiny.logits(tiny.decoder()))


# Where it goes.


def test_the_table_counts_by_tower(capsys):
    model = tiny.adapted()
    language = towers.towers(model).rows[2]
    assert (language.tower, language.modules) == ("language", 2 * 7)
    assert language.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{language.trainable:,}" in capsys.readouterr().out


def test_the_default_layers_are_the_upper_half():
    names = lora.attach(tiny.decoder()).peft_config["default"].target_modules
    assert {name.split(".")[2] for name in names} == {"2", "3"}


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


def test_a_second_attach_needs_a_name_and_the_adapted_model():
    model = tiny.adapted()
    with pytest.raises(AdapterError, match="carries an adapter already that is called 'default'.* give another name="):
        lora.attach(model)
    with pytest.raises(AdapterError, match="the base inside an adapted model"):
        lora.attach(model.get_base_model(), name="second")


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


# What was trained beside an adapter.


def picture_logits(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 200, (2, 12), generator=generator)
    ids[:, 2:6] = model.config.image_token_id
    with torch.inference_mode():
        return model(input_ids=ids, pixel_values=torch.randn(2, 3, 128, 128, generator=generator)).logits


@pytest.fixture(params=["made by hand", "in a folder"])
def fresh(request, tiny_vlm, tmp_path):
    """`fresh()`: another copy of the tiny SmolBridge, known by its values or by its files."""
    if request.param == "made by hand":
        return lambda: copy.deepcopy(tiny_vlm.model)
    tiny_vlm.model.save_pretrained(tmp_path / "base")
    tiny_vlm.processor.save_pretrained(tmp_path / "base")
    return lambda: load_base(tmp_path / "base").model


def with_connector(model):
    """An adapter, and a connector that was trained with it."""
    model = lora.attach(model, rank=4)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if towers.tower_of(name) == "connector":
                parameter.requires_grad_(True).mul_(1.5)
            elif ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_a_trained_connector_is_saved_and_loaded(fresh, tmp_path):
    model, bare = with_connector(fresh()), picture_logits(fresh())
    folder = files.save_adapter(model, tmp_path / "adapter", {})
    kept = load_file(folder / "trained.safetensors")
    assert kept.keys() == {n for n, _ in model.get_base_model().named_parameters() if towers.tower_of(n) == "connector"}
    assert f"{len(kept)} tensors in trained.safetensors" in (folder / "README.md").read_text()
    again = files.load_adapter(fresh(), folder)
    assert torch.equal(picture_logits(again), picture_logits(model)) and not torch.equal(picture_logits(again), bare)
    assert not any(p.requires_grad for p in again.parameters())
    adapter_alone = files.load_adapter(fresh(), files.save_adapter(lora.attach(fresh(), rank=4), folder, {}))
    assert not (folder / "trained.safetensors").exists() and torch.equal(picture_logits(adapter_alone), bare)


def test_what_was_loaded_beside_an_adapter_goes_where_it_goes(fresh, tmp_path):
    folder = files.save_adapter(with_connector(fresh()), tmp_path / "adapter", {})
    loaded = files.load_adapter(fresh(), folder)
    again = files.load_adapter(fresh(), files.save_adapter(loaded, tmp_path / "again", {}))
    assert torch.equal(picture_logits(again), picture_logits(loaded))
    assert torch.equal(picture_logits(lora.detach(loaded)), picture_logits(fresh()))


def test_what_was_trained_beside_keeps_its_numbers_between_halves(fresh, tmp_path):
    model = fresh().to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if towers.tower_of(name) == "connector":
            parameter.data = parameter.data.float()
    trained = with_connector(model)
    folder = files.save_adapter(trained, tmp_path / "adapter", {})
    loaded = files.load_adapter(fresh().to(torch.bfloat16), folder).get_base_model()
    for name, parameter in trained.get_base_model().named_parameters():
        if towers.tower_of(name) == "connector":
            assert torch.equal(loaded.get_parameter(name), parameter) and parameter.dtype == torch.float32, name
    assert {parameter.dtype for parameter in lora.detach(loaded).parameters()} == {torch.bfloat16}


def test_what_was_trained_beside_stays_in_a_merged_model(fresh, tmp_path):
    loaded = files.load_adapter(fresh(), files.save_adapter(with_connector(fresh()), tmp_path / "adapter", {}))
    merged = lora.merge(loaded)
    whole = picture_logits(merged)
    assert torch.equal(picture_logits(lora.detach(merged)), whole)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: t.update(extra=torch.zeros(1)), "1 tensors are unexpected, such as extra"),
        (lambda t: t.update({min(t): torch.zeros(3)}), "has shape"),
    ],
)
def test_what_was_trained_beside_must_fit_too(tiny_vlm, tmp_path, change, sentence):
    base = copy.deepcopy(tiny_vlm.model)
    folder = files.save_adapter(with_connector(copy.deepcopy(base)), tmp_path, {})
    _edit(folder, change, "trained.safetensors")
    with pytest.raises(AdapterError, match=sentence):
        files.load_adapter(base, folder)
    assert torch.equal(picture_logits(base), picture_logits(tiny_vlm.model)) and not wrapping.is_wrapped(base)


def test_smolbridges_adapter_folder_gives_back_what_was_trained(tiny_vlm, tmp_path):
    base = load_base(families.save(tiny_vlm, tmp_path / "base"))
    base.processor.chat_template = "Look. " + base.processor.chat_template
    model = with_connector(base.model)
    again = files.load_vlm(files.save_adapter(model, tmp_path / "adapter", {}, processor=base.processor))
    assert torch.equal(picture_logits(again.model), picture_logits(model))
    assert (
        type(again.processor) is type(base.processor) and again.processor.chat_template == base.processor.chat_template
    )


# Which base.


@pytest.fixture
def stored(tmp_path):
    """The folder of a tiny text-only model."""
    return families.save(families.build("text-only"), tmp_path / "stored")


def test_the_same_files_are_the_same_base_in_any_numbers(stored, tmp_path, monkeypatch, capsys):
    model = lora.attach(load_base(stored).model)
    with torch.no_grad():
        model.get_parameter(next(n for n, _ in model.named_parameters() if ".lora_B." in n)).fill_(0.1)
    folder = files.save_adapter(model, tmp_path / "adapter", {})
    capsys.readouterr()
    assert torch.equal(tiny.logits(files.load_adapter(load_base(stored).model, folder)), tiny.logits(model.eval()))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(models, "weights_dtype", lambda: torch.bfloat16)
    halves = load_base(stored).model
    assert halves.dtype == torch.bfloat16 and bases.base_of(halves) == bases.base_of(model)
    loaded = files.load_adapter(halves, folder)
    assert capsys.readouterr().out.splitlines() == [
        f"the adapter in {folder} was trained on weights in float32, these are in bfloat16: a few answers may differ"
    ]
    assert torch.allclose(tiny.logits(loaded).float(), tiny.logits(model), atol=0.1)


def test_another_folders_weights_are_refused(stored, tmp_path):
    folder = files.save_adapter(lora.attach(load_base(stored).model), tmp_path / "adapter", {})
    vlm = families.build("text-only")
    with torch.no_grad():
        vlm.model.model.layers[0].mlp.up_proj.weight[3, 4] += 1e-3
    other = load_base(families.save(vlm, tmp_path / "other")).model
    with pytest.raises(AdapterError, match="was trained on other weights"):
        files.load_adapter(other, folder)
    assert not wrapping.is_wrapped(other)
    moved = load_base(stored.rename(tmp_path / "moved")).model
    assert files.load_adapter(moved, folder)


def test_a_merged_model_is_another_base(stored, tmp_path):
    folder = files.save_adapter(lora.attach(load_base(stored).model), tmp_path / "adapter", {})
    model = lora.attach(load_base(stored).model)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    with pytest.raises(AdapterError, match="was trained on other weights"):
        files.load_adapter(lora.merge(model), folder)


# Errors of files.


def _edit(folder, change, name="adapter_model.safetensors"):
    path = folder / name
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
