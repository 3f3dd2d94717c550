"""Several adapters on one base: each computes what it computes alone, and nothing of another is left behind."""

import copy
import time

import families
import pytest
import tiny
import tinyvlm
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from mmlora.adapters import files, lora, named, wrapping
from mmlora.adapters.fused import fused
from mmlora.adapters.wrapping import AdapterError
from mmlora.encoding.prompts import asked
from mmlora.encoding.sample import reply_tokens
from mmlora.evaluation.answering import evaluate
from mmlora.inference.generate import generate
from mmlora.inference.likelihood import log_likelihoods
from mmlora.inference.session import evaluating
from mmlora.models.vlm import decoder_layers
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

#: Of other rank, alpha and places each, so that one adapter's factors in another's place would be noticed.
KINDS = {
    "first": {"rank": 4, "layers": (2, 3)},
    "second": {"rank": 6, "alpha": 3, "layers": (1, 2), "targets": ("q_proj", "down_proj")},
    "third": {"config": LoraConfig(r=3, lora_alpha=9, use_rslora=True)},
}


def moved(model, name: str, std: float = 0.3):
    """The adapter as if trained: its B matrices are no longer zero."""
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for full, parameter in model.named_parameters():
            if ".lora_B." in full and f".{name}." in full:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def three(base):
    """A model with all three adapters, `third` active."""
    model = base
    for name, options in KINDS.items():
        model = moved(lora.attach(model, name=name, **options), name)
    return model


def alone(base, name: str):
    return moved(lora.attach(base, name=name, **KINDS[name]), name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of each adapter, attached to and saved from a base of its own."""
    place = tmp_path_factory.mktemp("adapters")
    return {name: files.save_adapter(alone(tiny.decoder(), name), place / name, {}) for name in KINDS}


# Attached, listed, switched.


def test_adapters_attached_side_by_side_are_those_attached_alone():
    model = three(tiny.decoder())
    seen = []
    for name in ("second", "first", "third", "first"):
        assert named.switch(model, name) is model
        seen.append(tiny.logits(model))
        assert torch.equal(seen[-1], tiny.logits(alone(tiny.decoder(), name))), name
    assert torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[1])


def test_the_list_tells_names_ranks_and_which_one_is_active():
    model = three(tiny.decoder())
    named.switch(model, "second")
    rows = named.adapters(model)
    assert [(row.name, row.rank, row.alpha, row.active) for row in rows] == [
        ("first", 4, 8, False),
        ("second", 6, 3, True),
        ("third", 3, 9, False),
    ]
    assert [row.trains for row in rows] == [False, True, False]
    alone_sizes = [named.adapters(alone(tiny.decoder(), name))[0].parameters for name in KINDS]
    assert [row.parameters for row in rows] == alone_sizes


def test_the_table_of_a_further_adapter_is_its_own(capsys):
    model = moved(lora.attach(tiny.decoder(), name="first", **KINDS["first"]), "first")
    capsys.readouterr()
    lora.attach(model, name="second", **KINDS["second"])
    (second,) = [row for row in named.adapters(model) if row.name == "second"]
    assert f"{second.parameters:,}" in capsys.readouterr().out.splitlines()[-1]


def test_only_the_active_adapter_learns(tmp_path):
    model = three(tiny.decoder())
    named.switch(model, "second")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, tiny.Tokens(), TrainSettings(steps=3, batch_size=8, learning_rate=1e-2), tmp_path / "run")
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {name for name in before if ".second." not in name} == still


def test_a_model_goes_on_with_an_adapter_it_was_trained_beside(tmp_path):
    """Training one adapter beside others is training it alone."""
    models = (lora.attach(tiny.decoder(), name="second", **KINDS["second"]), three(tiny.decoder()))
    named.unload(models[1], "second")
    lora.attach(models[1], name="second", **KINDS["second"])
    for number, model in enumerate(models):
        settings = TrainSettings(steps=3, batch_size=8, learning_rate=1e-2)
        fit(model, tiny.Tokens(), settings, tmp_path / str(number))
    assert torch.equal(*(tiny.logits(model) for model in models))


# Files.


def test_a_named_adapter_is_saved_as_the_one_it_is_alone(saved, tmp_path):
    model = three(tiny.decoder())
    for name in KINDS:
        folder = files.save_adapter(model, tmp_path / name, {}, name=name)
        ours, theirs = (load_file(place / files.ADAPTER) for place in (folder, saved[name]))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert f"| {KINDS[name].get('rank', 3)}, " in (folder / "README.md").read_text().replace(
            "rank, alpha, dropout ", ""
        )
        assert torch.equal(
            tiny.logits(files.load_adapter(tiny.decoder(), folder)), tiny.logits(alone(tiny.decoder(), name))
        )


def test_adapters_loaded_beside_each_other_are_those_loaded_alone(saved):
    model = tiny.decoder()
    for name, folder in saved.items():
        model = files.load_adapter(model, folder, name=name)
        assert torch.equal(tiny.logits(model), tiny.logits(files.load_adapter(tiny.decoder(), folder)))
    assert not any(p.requires_grad for p in model.parameters())
    for name in ("first", "third", "second"):
        named.switch(model, name)
        assert torch.equal(tiny.logits(model), tiny.logits(files.load_adapter(tiny.decoder(), saved[name])))
    assert not any(p.requires_grad for p in model.parameters()), "what was loaded stays frozen"


def test_what_cannot_be_loaded_beside_leaves_everything_as_it_was(saved, tmp_path):
    model = files.load_adapter(tiny.decoder(), saved["first"], name="first")
    lora.attach(model, name="learning", rank=2)
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    modules = [name for name, _ in model.named_modules()]
    before = tiny.logits(model)
    with pytest.raises(AdapterError, match="already that is called 'first'"):
        files.load_adapter(model, saved["second"], name="first")
    other = files.save_adapter(lora.attach(tiny.decoder(seed=1)), tmp_path / "other", {})
    with pytest.raises(AdapterError, match="was trained on other weights"):
        files.load_adapter(model, other, name="other")
    damaged = files.save_adapter(alone(tiny.decoder(), "third"), tmp_path / "damaged", {})
    config = damaged / files.CONFIG
    config.write_text(config.read_text().replace('"lora_alpha": 9', '"lora_alpha": 10'))
    with pytest.raises(AdapterError, match="is not as it was saved"):
        files.load_adapter(model, damaged, name="damaged")
    config.write_text(config.read_text().replace('"r": 3', '"r": 5'))
    with pytest.raises(AdapterError, match="has shape"):
        files.load_adapter(model, damaged, name="damaged")
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learning
    assert [name for name, _ in model.named_modules()] == modules and list(model.peft_config) == ["first", "learning"]
    assert torch.equal(tiny.logits(model), before)


def test_adapters_beside_each_other_share_one_connector(tiny_vlm, tmp_path):
    base = families.save(tiny_vlm, tmp_path / "base")

    def fresh():
        return copy.deepcopy(stored)

    stored = files.load_base(base).model
    folders = {}
    for name, factor in (("one", 1.5), ("same", 1.5), ("another", 2.0), ("none", None)):
        model = moved(lora.attach(fresh(), rank=4), "default")
        for full, parameter in model.named_parameters():
            if factor and ".connector." in full:
                parameter.requires_grad_(True).data.mul_(factor)
        folders[name] = files.save_adapter(model, tmp_path / name, {})
    model = files.load_adapter(fresh(), folders["one"], name="one")
    model = files.load_adapter(model, folders["same"], name="same")
    for name in ("another", "none"):
        with pytest.raises(AdapterError, match="was trained with another model.connector"):
            files.load_adapter(model, folders[name], name=name)
    bare = files.load_adapter(fresh(), folders["none"], name="none")
    with pytest.raises(AdapterError, match="was trained with another model.connector"):
        files.load_adapter(bare, folders["one"], name="one")
    again = files.save_adapter(model, tmp_path / "again", {}, name="same")
    assert load_file(again / files.TRAINED).keys() == load_file(folders["one"] / files.TRAINED).keys()
    own = {name: tensor.clone() for name, tensor in stored.state_dict().items()}
    assert all(torch.equal(tensor, own[name]) for name, tensor in lora.detach(model).state_dict().items())


# Removed, merged, taken off.


def test_an_unloaded_adapter_leaves_nothing_and_the_others_stay(saved):
    model = three(tiny.decoder())
    named.unload(model, "third")  # the active one
    assert [(row.name, row.active) for row in named.adapters(model)] == [("first", True), ("second", False)]
    assert torch.equal(tiny.logits(model), tiny.logits(alone(tiny.decoder(), "first")))
    named.unload(model, "second")
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in alone(tiny.decoder(), "first").named_parameters()]
    with pytest.raises(AdapterError, match="only adapter; take it off with detach"):
        named.unload(model, "first")
    files.load_adapter(model, saved["second"], name="second")
    assert torch.equal(tiny.logits(model), tiny.logits(alone(tiny.decoder(), "second")))


def test_all_are_taken_off_without_a_trace():
    base = tiny.decoder()
    names = [name for name, _ in base.named_modules()]
    bare = lora.detach(three(base))
    assert bare is base and [name for name, _ in bare.named_modules()] == names and not wrapping.is_wrapped(bare)
    assert torch.equal(tiny.logits(bare), tiny.logits(tiny.decoder()))


def test_the_active_one_is_merged_and_several_active_ones_are_merged_as_their_sum(capsys):
    model = three(tiny.decoder())
    named.switch(model, "second")
    expected = tiny.logits(model)
    assert (tiny.logits(lora.merge(model)) - expected).abs().max() < 1e-4
    assert "second merged; first, third taken off" in capsys.readouterr().out
    model = three(tiny.decoder())
    model.base_model.set_adapter(["first", "second"])
    both = tiny.logits(model)
    assert (tiny.logits(lora.merge(model)) - both).abs().max() < 1e-4
    assert "first, second merged; third taken off" in capsys.readouterr().out
    assert (both - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    "what", [named.switch, named.unload, lambda m, name: files.save_adapter(m, "nowhere", {}, name=name)]
)
def test_an_unknown_name_is_a_sentence_that_lists_the_known_ones(what):
    with pytest.raises(AdapterError, match="no adapter called 'fourth'; it has first, second, third"):
        what(three(tiny.decoder()), "fourth")


@pytest.mark.parametrize("name", ["", "a.b", "layers", "weight", "0", "keys", "lora_A", "lora_", "__base__", "q_proj"])
def test_names_that_peft_would_confuse_are_refused(name):
    for model in (tiny.decoder(), tiny.adapted()):
        with pytest.raises(AdapterError, match="an adapter cannot be called"):
            lora.attach(model, name=name)


def test_nothing_is_switched_while_one_is_merged():
    model = three(tiny.decoder())
    model.merge_adapter()
    for what in (named.switch, named.unload):
        with pytest.raises(AdapterError, match="third is added to the weights now: call unmerge_adapter"):
            what(model, "first")


@pytest.mark.parametrize("options", [{"init_lora_weights": "pissa"}, {"bias": "lora_only"}])
def test_adapters_that_change_the_base_stay_alone(options):
    config = LoraConfig(r=4, target_modules=["q_proj"], **options)
    model = lora.attach(tiny.decoder(), rank=2)
    before = {name: p.clone() for name, p in model.get_base_model().named_parameters()}
    with pytest.raises(AdapterError, match="changes the base that all adapters share"):
        lora.attach(model, name="second", config=config)
    assert all(torch.equal(p, before[name]) for name, p in model.get_base_model().named_parameters())
    with pytest.raises(AdapterError, match="default .* changes the base that all adapters share"):
        lora.attach(lora.attach(tiny.decoder(), config=config), name="second")


# Fused layers.


def fast_logits(model, layers):
    with torch.inference_mode(), layers:
        return tiny.logits(model)


def test_fused_layers_follow_every_switch(one_thread, monkeypatch):
    """Also to an adapter whose factors have been written as often, which a count of writes alone would not tell apart."""
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    model = three(tiny.decoder())
    layers = fused(model)
    expected = {}
    for name in KINDS:
        named.switch(model, name)
        expected[name] = tiny.logits(model)
    for name in ("first", "second", "first", "third", "second", "third", "first"):
        named.switch(model, name)
        found = fast_logits(model, layers)
        assert (found - expected[name]).abs().max() < 1e-4, name
        assert torch.equal(found, fast_logits(model, fused(model))), name
    assert all(layers.made.values()), "no layer went to the plain path"


def test_fused_layers_notice_another_adapter_under_the_same_name_another_scale_and_a_merge(monkeypatch, saved):
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    model = three(tiny.decoder())
    layers = fused(model)
    fast_logits(model, layers)
    named.unload(model, "third")
    moved(lora.attach(model, name="third", rank=5, layers=(0, 1, 2, 3), seed=9), "third")
    assert (fast_logits(model, layers) - tiny.logits(model)).abs().max() < 1e-4
    for change in (
        lambda: [m.set_scale("third", 0.5) for m in model.modules() if hasattr(m, "set_scale")],
        model.disable_adapter_layers,
        model.enable_adapter_layers,
        model.merge_adapter,
        model.unmerge_adapter,
        lambda: named.switch(model, "second"),
    ):
        before = fast_logits(model, layers)
        change()
        assert (fast_logits(model, layers) - tiny.logits(model)).abs().max() < 1e-4
        assert torch.equal(fast_logits(model, layers), fast_logits(model, layers)) and before is not None
    assert all(layers.made.values())


def test_fused_training_follows_a_switch(monkeypatch):
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    model = three(tiny.decoder())
    layers = fused(model)
    for name in ("first", "second", "first"):
        named.switch(model, name)
        gradients = []
        for inside in (False, True):
            model.zero_grad()
            if inside:
                with layers:
                    tiny.Tokens().loss(model, [0, 1, 2])[0].backward()
            else:
                tiny.Tokens().loss(model, [0, 1, 2])[0].backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        plain, fast = gradients
        assert plain.keys() == fast.keys() and all(f".{name}." in key for key in plain)
        assert all(torch.dist(plain[key], fast[key]) <= 1e-4 * plain[key].norm() for key in plain)


def test_what_is_more_than_one_lora_takes_the_plain_path_when_it_becomes_active(monkeypatch, capsys):
    monkeypatch.setenv("MMLORA_PRECISION", "float32")
    model = moved(lora.attach(tiny.decoder(), name="plain", rank=4), "plain")
    config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "v_proj"])
    moved(lora.attach(model, name="weighted", config=config), "weighted")
    named.switch(model, "plain")
    layers = fused(model)
    assert (fast_logits(model, layers) - tiny.logits(model)).abs().max() < 1e-4
    assert "plain path" not in "".join(capsys.readouterr())
    named.switch(model, "weighted")
    assert torch.allclose(fast_logits(model, layers), tiny.logits(model), atol=1e-5)
    assert "takes the plain path, which is slower: its adapter weighted is DoRA" in "".join(capsys.readouterr())


# Another adapter for each row of a batch.


@pytest.mark.parametrize("family", ["smolbridge", "smolvlm", "text-only"])
def test_each_row_is_answered_by_its_adapter_as_alone(family, tiny_vlm, capsys):
    vlm = tiny_vlm if family == "smolbridge" else families.build(family)
    model = copy.deepcopy(vlm.model)
    for name, layers in (("first", (2, 3)), ("second", (1, 3))):
        model = moved(lora.attach(model, rank=4, layers=layers, name=name), name, 0.1)
    vlm = vlm.with_model(model)
    conversations = [asked(problem) for problem in tinyvlm.PROBLEMS]
    names = [("first", "second", None)[i % 3] for i in range(len(conversations))]
    words = [[reply_tokens(vlm.processor, text) for text in ("red", "green or blue")]] * len(conversations)
    expected, scores = {}, {}
    for name in ("first", "second", None):
        with evaluating(vlm):
            if name is None:
                with model.disable_adapter():
                    expected[name] = generate(vlm, conversations, 8)[0]
                    scores[name] = log_likelihoods(vlm, conversations, words)
            else:
                named.switch(model, name)
                expected[name] = generate(vlm, conversations, 8)[0]
                scores[name] = log_likelihoods(vlm, conversations, words)
    assert expected["first"] != expected["second"] != expected[None]
    capsys.readouterr()
    with evaluating(vlm):
        mixed = generate(vlm, conversations, 8, adapters=names)[0]
        likely = log_likelihoods(vlm, conversations, words, adapters=names)
    assert mixed == [expected[name][i] for i, name in enumerate(names)]
    for i, name in enumerate(names):
        assert likely[i] == pytest.approx(scores[name][i], abs=1e-3)
    assert "".join(capsys.readouterr()).count("each row of the batch has an adapter of its own") == 1


@pytest.mark.parametrize("method", ["likelihood", "generate"])
def test_problems_are_evaluated_by_an_adapter_each(tiny_vlm, method):
    model = copy.deepcopy(tiny_vlm.model)
    for name in ("first", "second"):
        model = moved(lora.attach(model, rank=4, name=name), name, 0.1)
    vlm = tiny_vlm.with_model(model)
    problems = tinyvlm.PROBLEMS
    names = ["first" if i % 2 else "second" for i in range(len(problems))]
    expected = {}
    for name in ("first", "second"):
        named.switch(model, name)
        expected[name] = evaluate(vlm, problems, method, progress=False, max_new_tokens=8)
    mixed = evaluate(vlm, problems, method, progress=False, max_new_tokens=8, adapters=names)
    for answer, name, i in zip(mixed, names, range(len(problems)), strict=True):
        assert (answer.id, answer.choice, answer.text) == (
            expected[name][i].id, expected[name][i].choice, expected[name][i].text)  # fmt: skip
        assert answer.scores == pytest.approx(expected[name][i].scores, abs=1e-3)


def test_what_cannot_be_mixed_is_refused(tiny_vlm):
    conversations = [asked(problem) for problem in tinyvlm.PROBLEMS[:2]]

    def mix(model, names):
        vlm = tiny_vlm.with_model(model)
        with evaluating(vlm):
            return generate(vlm, conversations, 2, adapters=names)

    model = lora.attach(copy.deepcopy(tiny_vlm.model), rank=2, name="first")
    with pytest.raises(AdapterError, match="no adapter called 'other'; it has first"):
        mix(model, ["first", "other"])
    with pytest.raises(AdapterError, match="carries no adapter"):
        mix(copy.deepcopy(tiny_vlm.model), ["first", None])
    with pytest.raises(AdapterError, match="2 conversations and 1 adapters"):
        mix(model, ["first"])
    lora.attach(model, name="weighted", config=LoraConfig(r=2, use_dora=True))
    with pytest.raises(AdapterError, match="weighted is more than plain LoRA"):
        mix(model, ["first", "weighted"])
    model.merge_adapter(["first"])
    with pytest.raises(AdapterError, match="first is added to the weights now"):
        mix(model, ["first", None])
    seeing = lora.attach(copy.deepcopy(tiny_vlm.model), rank=2, name="seeing", within=("vision",))
    with pytest.raises(AdapterError, match="only LoRA in the decoder's layers can be mixed"):
        mix(seeing, ["seeing", None])


# The real weights.


def test_three_adapters_on_smolbridge_are_switched_and_mixed(real_vlm, tmp_path):
    """Random adapters with the strength of trained ones: loaded, switched in under 100 ms, mixed in one batch."""
    names = ("one", "two", "three")
    folders = {}
    for seed, name in enumerate(names):
        model = moved(lora.attach(copy.deepcopy(real_vlm.model), rank=4 * (seed + 1), seed=seed), "default", 0.02)
        folders[name] = files.save_adapter(model, tmp_path / name, {})
    conversations = [asked(problem) for problem in tinyvlm.PROBLEMS]
    alone = {}
    for name, folder in folders.items():
        vlm = real_vlm.with_model(files.load_adapter(copy.deepcopy(real_vlm.model), folder))
        with evaluating(vlm):
            alone[name] = generate(vlm, conversations, 8)[0]
    model = copy.deepcopy(real_vlm.model)
    for name, folder in folders.items():
        model = files.load_adapter(model, folder, name=name)
    vlm = real_vlm.with_model(model)
    seconds = []
    for name in reversed(names):
        before = time.perf_counter()
        named.switch(model, name)
        seconds.append(time.perf_counter() - before)
        with evaluating(vlm):
            assert generate(vlm, conversations, 8)[0] == alone[name]
    assert min(seconds) < 0.1, seconds  # the least: another program may have had the core
    assert len({tuple(texts) for texts in alone.values()}) == 3
    rows = [names[i % 3] for i in range(len(conversations))]
    with evaluating(vlm):
        mixed = generate(vlm, conversations, 8, adapters=rows)[0]
    assert mixed == [alone[name][i] for i, name in enumerate(rows)]
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))
