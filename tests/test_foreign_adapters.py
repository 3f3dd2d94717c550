"""Adapters that peft or another version of it made: the same numbers as plain peft gives, or a sentence; never a part of it."""

import copy
import json
import shutil

import families
import pytest
import tiny
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mmlora.adapters import files, identity, lora, wrapping
from mmlora.adapters.fused import fused
from mmlora.adapters.wrapping import AdapterError
from mmlora.models import base as bases
from mmlora.models import connector
from mmlora.models.vlm import load_base

QV = ["q_proj", "v_proj"]
#: What peft can be told, each loaded, run, saved, taken off and merged.
KINDS = {
    "task type": {"target_modules": QV, "task_type": "CAUSAL_LM"},
    "expression": {"target_modules": r".*\.[23]\..*(q|v)_proj"},
    "all linear": {"target_modules": "all-linear"},
    "patterns": {"target_modules": QV, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "layers": {"target_modules": QV, "layers_to_transform": [1, 2]},
    "rsLoRA": {"target_modules": QV, "use_rslora": True},
    "DoRA": {"target_modules": QV, "use_dora": True},
    "biases": {"target_modules": QV, "bias": "lora_only"},
    "all biases": {"target_modules": QV, "bias": "all"},
    "its own biases": {"target_modules": QV, "lora_bias": True},
    "tied head": {"target_modules": ["q_proj", "lm_head"]},
    "tied embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole head": {"target_modules": QV, "modules_to_save": ["lm_head"]},
    "whole norms": {"target_modules": QV, "modules_to_save": ["input_layernorm"]},
    "tokens": {"target_modules": QV, "trainable_token_indices": [3, 4]},
    "PiSSA": {"target_modules": QV, "init_lora_weights": "pissa"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """`base()`: another copy of a tiny decoder with biases and tied embeddings, known by its files."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=tiny.VOCABULARY, **sizes, num_key_value_heads=2, attention_bias=True,
                         tie_word_embeddings=True, initializer_range=0.2, attn_implementation="eager")  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)

    model = LlamaForCausalLM.from_pretrained(folder).eval()
    bases.mark(model, bases.of_folder(folder))
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """`made(kind)`: the folder of an adapter that peft made, and the logits that plain peft gives with it."""
    kept: dict = {}

    def make(kind):
        if kind not in kept:
            kept[kind] = _make(base, tmp_path_factory.mktemp("adapter"), KINDS[kind])
        folder, expected = kept[kind]
        return shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "adapter"), expected

    return make


def _make(base, folder, options):
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return folder, tiny.logits(PeftModel.from_pretrained(base(), folder).eval())


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_what_plain_peft_gives(base, made, kind, tmp_path, monkeypatch):
    folder, expected = made(kind)
    model = base()
    bare = tiny.logits(model)
    assert (expected - bare).abs().max() > 0.05, "the adapter does nothing, so this shows nothing"
    loaded = files.load_adapter(model, folder)
    assert torch.equal(tiny.logits(loaded), expected) and not any(p.requires_grad for p in loaded.parameters())
    again = files.save_adapter(loaded, tmp_path / "again", {})
    assert torch.equal(tiny.logits(files.load_adapter(base(), again)), expected)
    assert torch.equal(tiny.logits(PeftModel.from_pretrained(base(), again).eval()), expected)
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    with torch.inference_mode(), fused(loaded):
        assert (tiny.logits(loaded) - expected).abs().max() < 1e-4
    assert lora.detach(loaded) is model and torch.equal(tiny.logits(model), bare)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in base().named_modules()]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_gives_the_same_or_is_refused(base, made, kind):
    folder, expected = made(kind)
    loaded = files.load_adapter(base(), folder)
    if kind in ("tied head", "tied embeddings"):
        with pytest.raises(AdapterError, match="shares its weight with another module"):
            lora.merge(loaded)
        assert torch.equal(tiny.logits(loaded), expected)
    else:
        assert (tiny.logits(lora.merge(loaded)) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_in_half_precision(base, made, dtype):
    folder, _ = made("rsLoRA")
    file = folder / files.ADAPTER
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    plain = PeftModel.from_pretrained(base(), folder).eval()
    assert torch.equal(tiny.logits(files.load_adapter(base(), folder)), tiny.logits(plain))


def test_another_name_than_default_is_saved_and_merged(base, made, tmp_path):
    folder, expected = made("rsLoRA")
    model = PeftModel.from_pretrained(base(), folder, adapter_name="mine").eval()
    assert torch.equal(tiny.logits(files.load_adapter(base(), files.save_adapter(model, tmp_path, {}))), expected)
    assert (tiny.logits(lora.merge(model)) - expected).abs().max() < 1e-4


# LLaVA as transformers named it before 4.52.


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.save(families.build("llava-1.5"), tmp_path_factory.mktemp("llava"))


def _llava_adapter(llava, folder, targets, renamed):
    model = get_peft_model(type(load_base(llava).model).from_pretrained(llava), LoraConfig(r=4, target_modules=targets))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    file = folder / files.ADAPTER
    tensors = load_file(file)
    for now, then in renamed.items():
        tensors = {name.replace(now, then): tensor for name, tensor in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    return model.eval()


def test_older_names_of_a_family_are_known(llava, tmp_path):
    renamed = {"model.model.language_model.": "model.language_model.model."}
    model = _llava_adapter(llava, tmp_path, r".*language_model.*\.(q_proj|v_proj)", renamed)
    assert torch.equal(tiny.logits(files.load_adapter(load_base(llava).model, tmp_path)), tiny.logits(model))


def test_names_that_peft_would_leave_out_are_refused(llava, tmp_path):
    _llava_adapter(llava, tmp_path, ["q_proj", "lm_head"], {"model.lm_head.": "model.language_model.lm_head."})
    base = load_base(llava).model
    bare = tiny.logits(base)
    with pytest.raises(
        AdapterError, match=r"13 of its 15 tensors fit, 2 tensors are unexpected, such as .*language_model.lm_head"
    ):
        files.load_adapter(base, tmp_path)
    assert not wrapping.is_wrapped(base) and torch.equal(tiny.logits(base), bare)


# What does not fit.


def _rewrite(folder, change):
    tensors = load_file(folder / files.ADAPTER)
    save_file(change(tensors) or tensors, folder / files.ADAPTER, {"format": "pt"})


def _configure(folder, **changes):
    said = json.loads((folder / files.CONFIG).read_text())
    said |= changes
    (folder / files.CONFIG).write_text(json.dumps({name: value for name, value in said.items() if value != "DROPPED"}))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: {f"other.{name}": tensor for name, tensor in t.items()}, "none of its 16 tensors fit, 16 tensors are unexpected"),
        (lambda t: [t.pop(min(t))] and None, "1 tensors are missing, such as base_model.model.model.layers.0"),
        (lambda t: t.update(extra=torch.zeros(1)), "16 of its 17 tensors fit, 1 tensors are unexpected, such as extra"),
        (lambda t: t.update({min(t): torch.zeros(3, 3)}), "has shape \\[3, 3\\], not \\[4, 32\\]"),
        (lambda t: t.update({min(t): torch.full((4, 32), torch.nan)}), "numbers that are not finite"),
        (lambda t: t.update({min(t): torch.ones(4, 32, dtype=torch.int8)}), "is int8, not floating-point numbers"),
    ],
)  # fmt: skip
def test_a_part_of_an_adapter_is_never_loaded(base, made, change, sentence):
    folder, _ = made("rsLoRA")
    _rewrite(folder, change)
    model = base()
    with pytest.raises(AdapterError, match=sentence) as refused:
        files.load_adapter(model, folder)
    assert "fetch it again" not in str(refused.value)
    assert not wrapping.is_wrapped(model) and torch.equal(tiny.logits(model), tiny.logits(base()))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"peft_type": "DROPPED"}, "names no peft_type"),
        ({"peft_type": "NEWEST"}, "names the kind 'NEWEST'; only LoRA"),
        ({"task_type": "SEQ_CLS"}, "trained for the task SEQ_CLS"),
        ({"target_modules": ["of_another"]}, "does not fit this model: Target modules"),
        ({"target_modules": "("}, "does not fit this model"),
        ({"r": "four"}, "adapter_config.json has r = .four., which is not a whole number"),
        ({"r": 0}, "has r = .0., which is not a whole number above 0"),
        ({"lora_alpha": "32"}, "has lora_alpha = .32., which is not a finite number"),
        ({"lora_alpha": float("nan")}, "has lora_alpha = .nan., which is not a finite number"),
        ({"alpha_pattern": {"q_proj": None}}, "has alpha_pattern = .None., which is not a finite number"),
        ({"use_rslora": "false"}, "has use_rslora = .false., which is not true or false"),
        ({"base_model_name_or_path": ["x"]}, "has base_model_name_or_path = .* which is not text or null"),
        ({"alora_invocation_tokens": [1]}, "uses alora_invocation_tokens"),
        ({"use_newest": True}, "use_newest = True, which peft .* does not know: update peft"),
        ({"newest_config": {"a": 1}}, "newest_config = "),
    ],
)
def test_a_configuration_that_cannot_be_used_is_a_sentence(base, made, changes, sentence):
    folder, _ = made("rsLoRA")
    _configure(folder, **changes)
    model = base()
    with pytest.raises(AdapterError, match=sentence):
        files.load_adapter(model, folder)
    assert not wrapping.is_wrapped(model) and torch.equal(tiny.logits(model), tiny.logits(base()))


@pytest.mark.parametrize("text", ["{oops", "[]", "", "\udcff"])
def test_a_configuration_that_is_none_is_a_sentence(base, made, text):
    folder, _ = made("rsLoRA")
    (folder / files.CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    for load in (lambda: files.load_adapter(base(), folder), lambda: files.load_vlm(folder)):
        with pytest.raises(AdapterError, match=r"adapter_config.json .*JSON"):
            load()


def test_what_a_newer_peft_adds_and_leaves_off_is_nothing(base, made, capsys):
    folder, expected = made("rsLoRA")
    _configure(folder, newest_config=None, use_newest=False, newest_size=16)
    assert torch.equal(tiny.logits(files.load_adapter(base(), folder)), expected)
    assert "newest_size = 16, which peft" in capsys.readouterr().out


def test_other_kinds_pickles_and_folders_of_adapters(base, made, tmp_path):
    get_peft_model(base(), IA3Config(target_modules=["v_proj"], feedforward_modules=[])).save_pretrained(
        tmp_path / "ia3"
    )
    with pytest.raises(AdapterError, match="names the kind 'IA3'"):
        files.load_adapter(base(), tmp_path / "ia3")
    folder, _ = made("rsLoRA")
    shutil.copytree(folder, tmp_path / "many" / "first")
    for load in (lambda: files.load_adapter(base(), tmp_path / "many"), lambda: files.load_vlm(tmp_path / "many")):
        with pytest.raises(AdapterError, match="there are adapters in its subfolders first: give one of these"):
            load()
    (folder / files.ADAPTER).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickles are not read, .* if you trust it, load it with peft"):
        files.load_adapter(base(), folder)
    (folder / files.ADAPTER).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(AdapterError, match="git lfs pull"):
        files.load_adapter(base(), folder)


# A base that moved.


@pytest.fixture
def moved(tmp_path):
    """(adapter, the place where its base lies now)."""
    vlm = families.build("smolvlm")
    stored = families.save(vlm, tmp_path / "base")
    model = lora.attach(load_base(stored).model, rank=4)
    folder = files.save_adapter(model, tmp_path / "adapter", {}, processor=vlm.processor)
    return folder, stored.rename(tmp_path / "elsewhere")


def test_a_base_that_moved_can_be_named(moved):
    folder, place = moved
    with pytest.raises(
        AdapterError, match=r"the adapter in .*adapter was trained on .*base, which cannot be loaded .*base=…\)"
    ):
        files.load_vlm(folder)
    assert wrapping.is_wrapped(files.load_vlm(folder, base=place).model)


def test_a_base_that_is_named_is_still_checked(moved, tmp_path):
    folder, place = moved
    other = families.build("smolvlm")
    with torch.no_grad():
        other.model.lm_head.weight[3, 4] += 1
    with pytest.raises(AdapterError, match="was trained on other weights"):
        files.load_vlm(folder, base=families.save(other, tmp_path / "other"))
    with pytest.raises(
        AdapterError, match="and .*nowhere, which was given for it, cannot be loaded: no model is called"
    ):
        files.load_vlm(folder, base=tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="is not an adapter's folder"):
        files.load_vlm(place, base=place)


def test_a_foreign_adapters_base_by_another_name_is_the_callers_word(moved, capsys):
    folder, place = moved
    _rewrite(folder, lambda tensors: None)  # without marks, as others write it
    with pytest.raises(AdapterError, match=r"if the two are the same under different names, call load_vlm\("):
        files.load_adapter(load_base(place).model, folder)
    assert (
        wrapping.is_wrapped(files.load_vlm(folder, base=place).model) and "was not checked" in capsys.readouterr().out
    )
    _configure(folder, base_model_name_or_path="DROPPED")
    with pytest.raises(AdapterError, match="names no base: give it"):
        files.load_vlm(folder)


@pytest.mark.parametrize("name, short", [("a/Llava", "llava"), ("/x/y/llava/", "llava"), ("C:\\m\\llava", "llava"),
                                         ("/c/models--a--llava/snapshots/0f", "llava")])  # fmt: skip
def test_a_base_is_known_by_its_own_name(name, short):
    assert identity.short_name(name) == short


def test_a_processor_without_pictures_is_the_bases(moved, capsys):
    folder, place = moved
    for file in folder.glob("*processor*"):
        file.unlink()
    _rewrite(folder, lambda tensors: None)
    assert type(files.load_vlm(folder, base=place).processor).__name__ == "Idefics3Processor"
    assert "no image processor" in capsys.readouterr().out
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(AdapterError, match="the processor in .* cannot be read"):
        files.load_vlm(folder, base=place)


# What was changed since it was saved.


@pytest.mark.parametrize("name", [files.ADAPTER, files.CONFIG, "tokenizer.json", "processor_config.json"])
def test_a_changed_bit_is_noticed(moved, name):
    folder, place = moved
    content = bytearray((folder / name).read_bytes())
    at = content.index(b'"lora_alpha": 8') + 14 if name == files.CONFIG else len(content) - 6
    content[at] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(AdapterError, match="are not those that were saved|is not as it was saved|cannot be read"):
        files.load_vlm(folder, base=place)


def test_where_the_base_lies_and_how_git_ends_lines_may_change(moved):
    folder, place = moved
    _configure(folder, base_model_name_or_path=str(place))
    text = folder / "tokenizer_config.json"
    text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
    assert wrapping.is_wrapped(files.load_vlm(folder).model)


def test_a_damaged_connector_is_a_sentence(moved):
    folder, place = moved
    (folder / connector.FILE).write_bytes(b"no tensors")
    with pytest.raises(connector.ConnectorError, match="cannot be read"):
        files.load_vlm(folder, base=place)


# Merged, taken off and saved: once, and of what is there.


@pytest.mark.parametrize("what", [lora.merge, lambda model: files.save_adapter(model, "nowhere", {})])
def test_what_carries_no_adapter_is_a_sentence(base, made, what):
    merged = lora.merge(files.load_adapter(base(), made("rsLoRA")[0]))
    left_of_merged, left_of_detached = files.load_adapter(base(), made("rsLoRA")[0]), tiny.adapted()
    lora.merge(left_of_merged)
    lora.detach(left_of_detached)
    for bare in (base(), merged, lora.detach(tiny.adapted()), left_of_merged, left_of_detached):
        with pytest.raises(AdapterError, match="carries no adapter"):
            what(bare)
    with pytest.raises(AdapterError, match="use the model that merge or detach returned"):
        lora.attach(left_of_detached)
    assert lora.detach(merged) is merged
    with pytest.raises(AdapterError, match="the base inside an adapted model"):
        what(tiny.adapted().get_base_model())


def test_of_several_adapters_the_active_one_is_merged_and_a_named_one_saved(base, made, tmp_path, capsys):
    folder, expected = made("rsLoRA")
    model = PeftModel.from_pretrained(base(), folder).eval()
    second, other = made("layers")
    model.load_adapter(second, "second")
    with pytest.raises(AdapterError, match="carries 2 adapters, default, second: say which one, with name="):
        files.save_adapter(model, tmp_path / "nowhere", {})
    saved = files.save_adapter(model, tmp_path / "saved", {}, name="second")
    assert torch.equal(tiny.logits(files.load_adapter(base(), saved)), other)
    assert torch.equal(tiny.logits(model), expected)
    capsys.readouterr()
    assert (tiny.logits(lora.merge(model)) - expected).abs().max() < 1e-4
    assert "default merged; second taken off" in capsys.readouterr().out


def test_an_adapter_that_is_switched_off_is_not_merged(base, made):
    folder, expected = made("rsLoRA")
    model = files.load_adapter(base(), folder)
    with model.disable_adapter(), pytest.raises(AdapterError, match="is switched off"):
        lora.merge(model)
    assert torch.equal(tiny.logits(model), expected)


def test_an_adapter_that_is_added_to_the_weights_is_not_taken_off(base, made):
    folder, expected = made("rsLoRA")
    model = files.load_adapter(base(), folder)
    model.merge_adapter()
    with pytest.raises(AdapterError, match="call unmerge_adapter"):
        lora.detach(model)
    assert (tiny.logits(lora.merge(model)) - expected).abs().max() < 1e-4


def test_what_weights_cannot_take_up_is_refused_and_stays(tmp_path):
    """Biases of an adapter's own have no place in a layer that has none."""
    model = get_peft_model(tiny.decoder(), LoraConfig(r=4, target_modules=QV, lora_bias=True)).eval()
    before = tiny.logits(model)
    with pytest.raises(AdapterError, match="cannot be merged into the weights .*bias"):
        lora.merge(model)
    assert torch.allclose(tiny.logits(model), before, atol=1e-5)
