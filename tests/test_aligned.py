"""Alignment inside a run: the connector learns to read captions, the model adopts it, and an adapter names what it stands on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import families
import pytest
import tinyvlm
import torch
from PIL import Image

from mmlora import minisqa
from mmlora.adapters.files import load_adapter, load_vlm, save_adapter
from mmlora.adapters.lora import AdapterError, attach, detach
from mmlora.adapters.towers import TowerError, tower_of
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.samples import Samples
from mmlora.experiment import Experiment
from mmlora.models import connector
from mmlora.models.connector import FILE, ConnectorError, adopt, own_way
from mmlora.models.vlm import base_model, load_base
from mmlora.problems.captions import captioned, further_captioned
from mmlora.problems.record import Problem
from mmlora.settings import Settings
from mmlora.smolbridge import aligned, assemble
from mmlora.smolbridge.words import words_read
from mmlora.training import captions
from mmlora.training.captions import ASKED, learn_to_read

COLOURS = ("red", "green", "blue", "white")
PAIRS = [
    (tinyvlm.picture(a, b, size), f"{a} and {b}")
    for a in COLOURS
    for b in COLOURS
    for size in ((90, 70), (80, 80), (70, 90))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SmolBridge that glances and names, as published weights in a folder."""
    vlm = tinyvlm.build(visual_tokens=6, spelling=8, glance_width=12, naming_tokens=2)
    path = tmp_path_factory.mktemp("base")
    vlm.model.save_pretrained(path)
    vlm.processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def learned(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aligned, "ENOUGH", 3 * len(PAIRS))
        torch.manual_seed(0)
        return aligned.learn_to_read(load_base(folder), PAIRS, (), 1, tmp_path_factory.mktemp("work"))


def said(vlm, picture):
    return "".join(word for word, _ in words_read(vlm, picture)).strip()


def test_the_last_visual_tokens_say_what_the_classifier_would():
    vlm = tinyvlm.build(visual_tokens=6, spelling=8, glance_width=12, naming_tokens=2)
    core = vlm.model.model
    core.connector.names.copy_(torch.stack([torch.arange(1000) % 40, torch.arange(1000) % 7], 1))
    pixels = vlm.processor.image_processor([PAIRS[0][0]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        core.namer.classifier.bias[123] += 100.0  # 123 % 40 = 3 and 123 % 7 = 4
        chances = core.get_image_words(pixels)
    assert chances.shape == (1, 6, 40) and torch.allclose(chances.sum(-1), torch.ones(1, 6), atol=1e-5)
    assert chances[0, 4:].argmax(-1).tolist() == [3, 4] and chances[0, 4:].amax(-1).min() > 0.99


def test_the_connector_sees_the_whole_picture_at_a_glance():
    connector = tinyvlm.build(visual_tokens=6, spelling=8, glance_width=12, naming_tokens=2).model.model.connector
    cells, glance = torch.randn(1, 16, connector.describe.in_features), torch.randn(1, len(connector.usual))
    assert (connector(cells, glance) - connector(cells, -glance)).abs().amax(-1).min() > 1e-4


def test_what_was_learned_is_read_and_few_pictures_are_looked_at_in_copies(folder, learned):
    tensors, record = learned
    assert record["captioned"] == len(PAIRS) and record["pictures"] == len(PAIRS) + 3 * (
        len(PAIRS) - record["held_out"]
    )
    vlm = adopt(load_base(folder), tensors)
    assert sum(said(vlm, picture) == text for picture, text in PAIRS) > 40
    assert vlm.processor.visual_tokens == vlm.model.config.visual_tokens == record["visual_tokens"]


def test_an_adapter_brings_the_connector_that_it_stands_on_and_no_other_takes_it(folder, learned, tmp_path):
    vlm = adopt(load_base(folder), learned[0])
    model = attach(vlm.model, rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter", {}, processor=vlm.processor)
    batch = vlm.processor(images=[PAIRS[1][0]], text=["<image> what?"])
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        again = load_vlm(tmp_path / "adapter")
        assert torch.allclose(again.model(**batch).logits, expected, atol=1e-5)
        save_adapter(model, tmp_path / "bare", {})  # as results/ holds one
        again = load_vlm(tmp_path / "bare")  # with the base's own processor, which has the connector's slots
        assert again.processor.visual_tokens == vlm.processor.visual_tokens
    other = {name: t + 0.01 if t.is_floating_point() else t for name, t in learned[0].items()}
    with pytest.raises(AdapterError, match="other weights"):
        load_adapter(adopt(load_base(folder), other).model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="other weights"):
        load_adapter(load_base(folder).model, tmp_path / "adapter")
    save_adapter(attach(load_base(folder).model, rank=2), tmp_path / "adapter", {})
    assert not (tmp_path / "adapter" / FILE).exists(), "a connector of an earlier adapter stays behind"


def test_a_seed_decides_how_the_connector_learns(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(aligned, "ENOUGH", 0)  # copies are made as long as time allows
    monkeypatch.setattr(aligned, "FEWEST", 4)

    def weights(seed):
        tensors, _ = aligned.learn_to_read(load_base(folder), PAIRS, (), 0.1, tmp_path, seed)
        return torch.cat([tensor.flatten().float() for _, tensor in sorted(tensors.items())])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_words_that_both_dictionaries_have_keep_their_spelling(folder):
    vlm = load_base(folder)
    known = vlm.model.model.connector
    fresh = aligned.fitting(vlm.model, torch.tensor([2, 100, 5]), 4)
    aligned._go_on(fresh, known)
    assert torch.equal(fresh.spell.weight[[0, 2]], known.spell.weight[[2, 5]])
    assert torch.equal(fresh.read.weight, known.read.weight) and fresh.said == 4


def test_a_connector_that_writes_words_at_once_learns_too(tmp_path, monkeypatch):
    """As the shipped one does: no narrow layer before the dictionary, no glance."""
    monkeypatch.setattr(aligned, "ENOUGH", len(PAIRS))
    vlm = tinyvlm.build()
    tensors, record = aligned.learn_to_read(vlm, PAIRS, (), 1, tmp_path)
    vlm = adopt(vlm, tensors)
    assert sum(said(vlm, picture) == text for picture, text in PAIRS) > 40
    assert vlm.model.config.visual_tokens == record["visual_tokens"] and not vlm.model.config.glance_width


def test_a_model_in_half_precision_as_on_a_card_learns_too(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(aligned, "ENOUGH", len(PAIRS))
    vlm = load_base(folder)
    vlm.model.to(torch.bfloat16)
    vlm = adopt(vlm, aligned.learn_to_read(vlm, PAIRS, (), 1, tmp_path)[0])
    assert vlm.model.model.connector.read.weight.dtype == torch.bfloat16
    assert sum(said(vlm, picture) == text for picture, text in PAIRS) > 40


def test_captions_are_columns_or_first_sentences_and_what_has_none_is_left_out():
    picture = Image.new("RGB", (8, 8))
    problems = [
        Problem("a", "?", ("x", "y"), 0, picture, caption="a cat", solution="It is a cat. So x."),
        Problem("b", "?", ("x", "y"), 0, picture, solution="It is a dog! So y."),
        Problem("c", "?", ("x", "y"), 0, picture),
        Problem("d", "?", ("x", "y"), 0, solution="No picture."),
    ]
    assert [text for _, text in captioned(problems)] == ["a cat", "It is a dog!"]
    assert list(further_captioned("a folder/of mine")) == []


def test_no_further_picture_is_of_a_skill_that_is_held_out(monkeypatch):
    drawn, generate = [], minisqa.generate

    def few(split, count, *, seed=0, skills):
        if count > 1:  # one is drawn of each skill to see whether it has a picture
            drawn.append(set(skills))
        return generate(split, min(count, 4), seed=seed, skills=skills)

    monkeypatch.setattr(minisqa, "generate", few)
    list(islice(further_captioned("minisqa"), 5))
    assert len(drawn) > 1 and not any(skills & set(minisqa.UNTRAINED) for skills in drawn)


def test_further_pictures_come_with_captions_and_are_no_training_pictures():
    known = {p.image.tobytes() for p in minisqa.generate("train", 60) if p.image is not None}
    drawn = list(islice(further_captioned("minisqa"), 60))
    assert all(picture.size == (256, 256) and text for picture, text in drawn)
    assert not known & {picture.tobytes() for picture, _ in drawn}


def test_a_run_aligns_first_and_keeps_what_was_learned(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(aligned, "ENOUGH", 24)
    monkeypatch.setattr(aligned, "FEWEST", 20)
    problems = [Problem(str(i), "Left?", COLOURS, i % 4, PAIRS[i][0], caption=PAIRS[i][1]) for i in range(36)]
    splits = {"train": problems[:24], "test": problems[24:]}
    monkeypatch.setattr("mmlora.experiment.load_problems", lambda data, split, *args, **kwargs: splits[split])
    monkeypatch.setattr("mmlora.experiment.load_transfer", lambda *args, **kwargs: [])
    monkeypatch.setattr("mmlora.experiment.further_captioned", lambda data: ())
    settings = Settings(model=str(folder), steps=2, align_minutes=0.01, probe_problems=0)
    run = Experiment(settings, tmp_path / "run")
    metrics = run.run()
    record = json.loads((tmp_path / "run" / "align.json").read_text())
    assert record["captioned"] == 24 == len(run.train) and run.budget.spent["align"] > 0
    assert list(run.samples.ids) == [problem.id for problem in splits["train"]], "nothing of the test was learned from"
    assert metrics.base_model["weights"] != load_base(folder).base.weights
    assert (tmp_path / "run" / "adapter" / FILE).is_file()
    resumed = Experiment(settings, tmp_path / "run", resume=True)
    resumed.load_problems()
    resumed.load_model()
    resumed.align()
    assert resumed.vlm.base == run.vlm.base, "taken up again, the same connector is adopted"
    resumed.align()
    assert resumed.vlm.base == run.vlm.base, "and only once"
    assert detach(resumed.vlm.model) is resumed.vlm.model
    other = Experiment(replace(settings, seed=1), tmp_path / "run", resume=True)
    other.load_problems()
    other.load_model()
    with pytest.raises(ConnectorError, match="was aligned with seed 0, not 1; give the same or choose another folder"):
        other.align()


def test_an_interrupted_alignment_leaves_nothing_and_can_be_taken_again(folder, tmp_path, monkeypatch):
    """What it had looked at was left in the run's folder, hundreds of megabytes."""
    monkeypatch.setattr(aligned, "ENOUGH", 24)
    monkeypatch.setattr(aligned, "FEWEST", 20)
    vlm, original = load_base(folder), aligned.read

    def press(*given):
        raise KeyboardInterrupt

    def take():
        return connector.aligned(vlm, PAIRS[:24], (), 0.01, tmp_path, learn_to_read)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(aligned, "read", press)
        take()
    assert not list(tmp_path.iterdir()) and vlm.base == load_base(folder).base
    assert aligned.read is original and take().base != load_base(folder).base
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-3] ^= 4
    (tmp_path / FILE).write_bytes(content)
    vlm = load_base(folder)
    with pytest.raises(ConnectorError, match="connector.safetensors is not what was written: remove it"):
        take()
    (tmp_path / FILE).unlink()
    assert take().base != load_base(folder).base


def test_a_hub_models_connector_learns_through_its_decoder_where_the_settings_ask_for_it(tmp_path, monkeypatch):
    base = families.save(families.build("smolvlm"), tmp_path / "base")
    problems = [Problem(str(i), "Left?", COLOURS, i % 4, PAIRS[i][0], caption=PAIRS[i][1]) for i in range(24)]
    monkeypatch.setattr("mmlora.experiment.load_problems", lambda *args, **kwargs: problems)
    monkeypatch.setattr("mmlora.experiment.load_transfer", lambda *args, **kwargs: [])

    def attached(minutes):
        run = Experiment(Settings(model=str(base), align_minutes=minutes), tmp_path / str(minutes))
        run.load_problems()
        run.load_model()
        run.attach()
        return run

    left, asked = attached(None), attached(0.05)
    assert not (left.folder / FILE).exists(), "hub models are left as they are unless asked for"
    record = json.loads((asked.folder / "align.json").read_text())
    assert record["pictures"] == 24 and record["samples_seen"] >= 8
    read = [Samples(run.vlm, [Conversation("0", ASKED, (PAIRS[0][0],), PAIRS[0][1])]) for run in (left, asked)]
    assert read[1].loss(asked.model, [0])[0] < read[0].loss(left.model, [0])[0], "the caption is likelier"
    before, after = (dict(detach(run.model).named_parameters()) for run in (left, asked))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and {tower_of(name) for name in changed} == {"connector"}
    assert left.vlm.base.weights != asked.vlm.base.weights


def test_alignment_that_breaks_off_leaves_the_published_connector(tmp_path, monkeypatch):
    vlm = families.build("smolvlm")
    vlm.model.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in vlm.model.named_parameters()}

    def broken(model, *_):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(captions, "fit", broken)
    with pytest.raises(KeyboardInterrupt):
        learn_to_read(vlm, PAIRS[:8], (), 1, tmp_path)
    for name, parameter in vlm.model.named_parameters():
        assert torch.equal(parameter, before[name]) and not parameter.requires_grad, name


def test_another_models_connector_is_refused():
    vlm = families.build("smolvlm")
    with pytest.raises(ConnectorError, match="is another model's: .* has no model.bridge.weight"):
        adopt(vlm, {"model.bridge.weight": torch.zeros(2)})


def test_a_connector_learns_in_float32_between_towers_in_half_precision(tmp_path):
    """As on a card, in a process of its own, whose numbers are bfloat16's."""
    script = (
        "from pathlib import Path\n"
        "import families, torch\n"
        "from test_aligned import PAIRS\n"
        "from mmlora.adapters.towers import tower_of\n"
        "from mmlora.training.captions import learn_to_read\n"
        "vlm = families.build('smolvlm')\n"
        "vlm.model.to(torch.bfloat16).requires_grad_(False)\n"
        f"tensors, record = learn_to_read(vlm, PAIRS[:8], (), 0.05, Path({str(tmp_path)!r}))\n"
        "assert record['samples_seen'] >= 8 and {t.dtype for t in tensors.values()} == {torch.bfloat16}\n"
        "assert not any(p.requires_grad for p in vlm.model.parameters())\n"
    )
    paths = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))
    env = {**os.environ, "PYTHONPATH": paths, "MMLORA_PRECISION": "bfloat16"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_connector_of_a_hub_model_comes_back_with_the_adapter(tmp_path):
    base = families.save(families.build("smolvlm"), tmp_path / "base")
    vlm = load_base(base)
    name = next(name for name, _ in vlm.model.named_parameters() if tower_of(name) == "connector")
    other = vlm.model.state_dict()[name] + 1
    vlm = adopt(vlm, {name: other})
    save_adapter(attach(vlm.model, rank=2), tmp_path / "adapter", {}, processor=vlm.processor)
    again = load_vlm(tmp_path / "adapter")
    assert torch.equal(base_model(again.model).state_dict()[name], other)
    with pytest.raises(AdapterError, match="base"):
        load_adapter(load_base(base).model, tmp_path / "adapter")


def test_a_model_without_a_connector_cannot_be_aligned(tmp_path):
    vlm = families.build("text-only")
    with pytest.raises(TowerError, match="no connector that could learn; leave train_connector out"):
        learn_to_read(vlm, PAIRS, (), 1, tmp_path)


def test_the_sizes_of_a_connector_are_told_by_its_tensors(learned):
    sizes = assemble.sizes(assemble.unpacked(learned[0]))
    assert (sizes["spelling"], sizes["glance_width"], sizes["naming_tokens"]) == (8, 12, 0)
    assert own_way(tinyvlm.build()) is not None
