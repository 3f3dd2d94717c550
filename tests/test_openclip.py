"""OpenCLIP with LoRA: the chain on a tiny ViT-B-32, the drawings, the scores, and one clear sentence for bad input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from types import SimpleNamespace

import open_clip
import pytest
import torch
from hubmirror import HubMirror
from PIL import Image

from mmlora.adapters.lora import AdapterError, detach
from mmlora.files import FileError
from mmlora.openclip import adapters, drawings, scores, tower, train
from mmlora.openclip.assemble import Clip, ClipError, assembled, load, save
from mmlora.paths import PACKAGE
from mmlora.problems.record import Problem

TINY = {  # ViT-B-32's own kind of towers, a thousandth of its size
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
WORDS = ["a red circle", "a blue square", "a dog", "a cat"]


@pytest.fixture
def tiny(tmp_path) -> Clip:
    path = tmp_path / "tiny-vit.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    return load("tiny-vit")


def features(clip, pixels):
    with torch.no_grad():
        return clip.model.encode_image(pixels, normalize=True), clip.model.encode_text(
            clip.tokenizer(WORDS), normalize=True
        )


def at_hub(url, home, program):
    """A program of its own whose hub is at `url`."""
    env = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, cwd=PACKAGE.parent)


def write_features(folder, config):
    """In a fresh process: what the saved weights make of the saved pictures and of `WORDS`."""
    path = folder / "tiny-vit.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    clip = load("tiny-vit", str(folder / "merged.safetensors"))
    torch.save(features(clip, torch.load(folder / "pixels.pt", weights_only=True)), folder / "features.pt")


def test_an_adapter_on_fused_attention_starts_as_nothing_gets_gradients_moves_and_merges(tiny):
    pixels, names = torch.rand(4, 3, 32, 32), torch.arange(4)
    before = features(tiny, pixels)
    base = {n: p.detach().clone() for n, p in tiny.model.named_parameters()}
    adapted = adapters.attach(tiny.model, rank=4)
    clip = tiny._replace(model=adapted)
    assert all(torch.equal(a, b) for a, b in zip(features(clip, pixels), before)), "B = 0: nothing changes"
    kinds = {n.split(".lora_")[0] for n, p in adapted.named_parameters() if p.requires_grad}
    assert any(n.endswith("visual.transformer.resblocks.0.attn") for n in kinds), "the fused projection is adapted"
    assert all(".lora_" in n for n, p in adapted.named_parameters() if p.requires_grad)
    train.tune(clip, pixels, names, tiny.tokenizer(WORDS), steps=2)
    moved = {n: p for n, p in adapted.named_parameters() if "lora_" in n}
    assert [n for n, p in moved.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert [n for n, p in moved.items() if "lora_B" in n and not p.abs().sum() > 0] == []
    after = features(clip, pixels)
    assert not torch.allclose(after[0], before[0], atol=1e-4) and not torch.allclose(after[1], before[1], atol=1e-4)
    merged = tiny._replace(model=adapted.merge_and_unload())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features(merged, pixels), after))
    assert base.keys() == dict(merged.model.named_parameters()).keys()


def test_saved_and_loaded_in_a_fresh_process_the_features_are_equal(tiny, tmp_path, fresh_process):
    from safetensors.torch import save_file

    pixels = torch.rand(4, 3, 32, 32)
    adapted = adapters.attach(tiny.model, rank=2)
    train.tune(tiny._replace(model=adapted), pixels, torch.arange(4), tiny.tokenizer(WORDS), steps=1)
    merged = tiny._replace(model=adapted.merge_and_unload())
    save_file(merged.model.state_dict(), tmp_path / "merged.safetensors")
    torch.save(pixels, tmp_path / "pixels.pt")
    assert fresh_process(write_features, tmp_path, TINY) == 0
    again = torch.load(tmp_path / "features.pt", weights_only=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(again, features(merged, pixels)))


def write_adapted_features(folder, config):
    """In a fresh process: what the base and the adapter in the folder make of the saved pictures and of `WORDS`."""
    path = folder / "tiny-vit.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    clip = adapters.load(folder / "adapter")
    torch.save(features(clip, torch.load(folder / "pixels.pt", weights_only=True)), folder / "features.pt")


def test_an_adapter_alone_is_saved_and_loaded_in_a_fresh_process_and_knows_its_base(tiny, tmp_path, fresh_process):
    from safetensors.torch import save_file

    base = tmp_path / "base.safetensors"
    save_file(tiny.model.state_dict(), base)
    pixels, before = torch.rand(4, 3, 32, 32), {n: p.clone() for n, p in tiny.model.state_dict().items()}
    adapted = adapters.attach(tiny.model, rank=2)
    train.tune(tiny._replace(model=adapted), pixels, torch.arange(4), tiny.tokenizer(WORDS), steps=2)
    adapters.save(adapted, tmp_path / "adapter", "tiny-vit", str(base))
    torch.save(pixels, tmp_path / "pixels.pt")
    assert {file.suffix for file in (tmp_path / "adapter").iterdir()} == {".json", ".safetensors"}
    assert fresh_process(write_adapted_features, tmp_path, TINY) == 0
    again, trained = torch.load(tmp_path / "features.pt", weights_only=True), features(tiny, pixels)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(again, trained))
    detach(adapted)
    assert before.keys() == tiny.model.state_dict().keys(), "off without a trace, the inner of attention's two as well"
    assert all(torch.allclose(p, before[n], atol=1e-6) for n, p in tiny.model.state_dict().items())
    assert not torch.allclose(features(tiny, pixels)[0], trained[0], atol=1e-4)
    save_file({name: 2 * tensor for name, tensor in before.items()}, base)
    with pytest.raises(AdapterError, match="was trained on other weights"):
        adapters.load(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="has no adapter_config.json"):
        adapters.load(tmp_path)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_an_adapter_in_one_tower_leaves_the_other_alone(tiny, part):
    adapted = adapters.attach(tiny.model, rank=2, within=(part,))
    assert {adapters.part_of(n) for n, p in adapted.named_parameters() if p.requires_grad} == {part}


def test_what_cannot_be_attached_or_loaded_says_so(tiny, tmp_path):
    with pytest.raises(ClipError, match="nothing in the towers vision is called q_proj"):
        adapters.attach(tiny.model, within=("vision",), targets=("q_proj",))
    adapted = adapters.attach(tiny.model)
    with pytest.raises(AdapterError, match="carries an adapter already"):
        adapters.attach(adapted)
    with pytest.raises(ClipError, match="knows no model 'ViT-B-33'; near it are .*ViT-B-32"):
        load("ViT-B-33")
    with pytest.raises(ClipError, match="no weights 'laion9b' for ViT-B-32; it has .*openai"):
        load("ViT-B-32", "laion9b")
    torch.save({"visual.conv1.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ClipError, match="another architecture than tiny-vit"):
        load("tiny-vit", str(tmp_path / "other.pt"))
    config = tmp_path / "wider-vit.json"
    config.write_text(json.dumps({**TINY, "text_cfg": {**TINY["text_cfg"], "width": 64, "context_length": 8}}))
    open_clip.add_model_config(config)
    torch.save(load("wider-vit").model.state_dict(), tmp_path / "wider.pt")
    with pytest.raises(ClipError, match="another architecture than tiny-vit"):
        load("tiny-vit", str(tmp_path / "wider.pt"))
    with pytest.raises(ClipError, match="only the CLIP of `assembled` is saved whole"):
        save(tiny, tmp_path / "whole")


# -- drawings ------------------------------------------------------------------------------------------------------------


def test_every_hand_has_its_licence_and_the_share_alike_one_is_never_learned_from():
    licences = {
        hand: drawings.licence(hand)["licence"] for hand in (*drawings.TRAIN, drawings.VALIDATION, drawings.TEST)
    }
    assert licences["openmoji"] == "CC-BY-SA-4.0" and drawings.TEST == "openmoji"
    assert "CC-BY-SA-4.0" not in {licences[hand] for hand in drawings.TRAIN}
    found = drawings.drawings("openmoji")
    assert len(found) > 1000 and {each.image.mode for each in found} == {"RGB"}
    out = drawings.kept_out([each.name for each in found], 200)
    assert out == drawings.kept_out([each.name for each in reversed(found)], 200) and len(set(out)) == 200


def test_bad_drawings_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("cat.webp", b"no picture")
    with pytest.raises(drawings.DrawingError, match="mine.zip: cat.webp is no picture"):
        drawings.drawings("mine", tmp_path)
    with pytest.raises(drawings.DrawingError, match="no hand called 'yours' .*choose among mine"):
        drawings.drawings("yours", tmp_path)
    cat = drawings.Drawing("cat", "mine", Image.new("RGB", (8, 8)))
    with pytest.raises(drawings.DrawingError, match="mine has two pictures called 'cat'"):
        drawings.unique([cat, cat])
    with pytest.raises(drawings.DrawingError, match="'cat' has fewer pictures than 2 shots need: 1;"):
        drawings.shots([cat], ["cat"], 2, seed=0)
    with pytest.raises(drawings.DrawingError, match="2 of 2 names cannot be kept out, for none would be learned"):
        drawings.kept_out(["cat", "dog"], 2)
    data = io.BytesIO()
    cat.image.save(data, "PNG")
    assert drawings.readable(data.getvalue(), "x").mode == "RGB"


def colours(path, column="image"):
    """A parquet file of a data set for image classification: three pictures of two classes."""
    import datasets

    kinds = {column: datasets.Image(), "label": datasets.ClassLabel(names=["red_thing", "blue"])}
    rows = {column: [Image.new("RGBA", (32, 32), colour) for colour in ("red", "blue", "red")], "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows, datasets.Features(kinds)).to_parquet(path)
    return path.read_bytes()


FROM_HUB = """
import sys
from mmlora.openclip.drawings import DrawingError, from_hub
found = from_hub("acme/colours", "train", 2)
print([(d.name, d.hand, d.image.mode, d.image.getpixel((0, 0))) for d in found], len(from_hub("acme/colours")))
for data, split in (("acme/colours", "exam"), ("acme/texts", "train"), ("acme/nothing", "train")):
    try:
        from_hub(data, split)
    except DrawingError as error:
        print("DrawingError", error)
"""


def test_a_hubs_data_set_gives_pictures_with_their_classes_names(tmp_path):
    import datasets

    texts = tmp_path / "texts.parquet"
    datasets.Dataset.from_dict({"text": ["a"], "page": [1]}).to_parquet(texts)
    with HubMirror() as hub:
        hub.dataset("acme/colours", {"data/train-00000-of-00001.parquet": colours(tmp_path / "colours.parquet")})
        hub.dataset("acme/texts", {"data/train-00000-of-00001.parquet": texts.read_bytes()})
        done = at_hub(hub.url, tmp_path, FROM_HUB)
    assert done.returncode == 0, done.stderr[-2000:]
    found, *errors = done.stdout.splitlines()
    red, blue = (f"('{n}', 'acme/colours', 'RGB', {c})" for n, c in (("red thing", (255, 0, 0)), ("blue", (0, 0, 255))))
    assert found == f"[{blue}, {red}] 3", "by lot, the last two of three"
    assert [error.startswith("DrawingError") for error in errors] == [True] * 3
    assert "acme/colours" in errors[0] and "train" in errors[0]
    assert "a column of pictures and one of classes, and has text, page" in errors[1]
    assert "acme/nothing cannot be had" in errors[2]
    alone = at_hub(
        "http://127.0.0.1:9", tmp_path / "empty", "from mmlora.openclip.drawings import from_hub as f; f('a/b')"
    )
    assert "DrawingError: a/b cannot be had from http://127.0.0.1:9; check its name and the network" in alone.stderr


LESSON = """
import nbformat
from mmlora.paths import NOTEBOOKS
cells = nbformat.read(NOTEBOOKS / "09_open_clip.ipynb", as_version=4).cells
names = {}
for cell in cells:
    if cell.cell_type == "code":
        exec(cell.source, names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= SMALL
print("LEARNED", names["fresh"], names["silent"], names["KINDS"])
print("MIXED", sorted(names["mix"]), "ANSWERED", len(names["problems"]), names["yardstick"].n)
"""


def test_the_lessons_cells_run_with_a_hubs_vit_photos_and_scienceqa(tiny, tmp_path):
    from safetensors.torch import save as as_bytes

    from mmlora.problems import parquet

    picture = Image.new("RGB", (32, 32), "red")
    questions = [Problem(str(i), "What is it?", ("a dog", "a red thing"), 1, picture if i else None) for i in range(4)]
    parquet.write(tmp_path / "test.parquet", questions)
    photos = colours(tmp_path / "colours.parquet", "img")
    config = json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}).encode()
    weights = as_bytes(dict(tiny.model.state_dict()))
    small = {"MODEL": "hf-hub:acme/tiny-clip", "PHOTOS": "acme/colours", "QUESTIONS": "derek-thomas/ScienceQA", "HANDS": 1,
             "NAMES": 60, "OUT": 40, "SHOTS": 1, "SEEDS": 2, "STEPS": 1}  # fmt: skip
    with HubMirror() as hub:
        hub.model("acme/tiny-clip", {"open_clip_config.json": config, "open_clip_model.safetensors": weights})
        hub.dataset("acme/colours", {f"data/{split}-00000-of-00001.parquet": photos for split in ("train", "test")})
        table = (tmp_path / "test.parquet").read_bytes()
        hub.dataset("derek-thomas/ScienceQA", {"data/test-00000-of-00001.parquet": table})
        done = at_hub(hub.url, tmp_path, f"SMALL = {small}\n{LESSON}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "LEARNED 0.0 [] ['blue', 'red thing']" in done.stdout
    assert "MIXED [0.0, 0.25, 0.5, 0.75, 1.0] ANSWERED 3 3" in done.stdout


# -- scores --------------------------------------------------------------------------------------------------------------


def test_scores_count_what_is_nearest():
    names = torch.eye(40)
    pictures = names.clone()
    pictures[0] = names[1]
    assert scores.top(pictures, names, torch.arange(40)).correct == 39
    assert scores.among(pictures, names).n == 40 and scores.among(pictures, names).correct == 39
    found = scores.retrieval(pictures, names)
    assert (found.text_at_1.correct, found.image_at_1.n) == (39, 40) and found.text_at_5.correct >= 39


def test_the_tower_gives_mean_maximum_and_quarters_of_each_map_in_this_order():
    torch.manual_seed(0)
    eye = tower.efficientnet_lite0_maps().eval()
    with torch.no_grad():
        found, at = eye(torch.rand(2, 3, 128, 128)), 0
    assert found.shape == (2, eye.num_features)
    for width in (40, 112, 320):  # which benchmarks/clip_heads.py relies on
        mean, quarters = found[:, at : at + width], found[:, at + 2 * width : at + 6 * width].view(2, width, 4)
        assert torch.cosine_similarity(quarters.mean(2), mean).min() > 0.9999
        assert torch.cosine_similarity(quarters[..., 0], quarters[..., 3]).max() < 0.9999, "they say where things are"
        at += 6 * width


def test_a_folded_tower_gives_the_same_numbers_without_norms():
    torch.manual_seed(0)
    eye = tower.efficientnet_lite0_maps().eval()
    for module in eye.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for numbers in (module.running_mean, module.running_var, module.weight, module.bias):
                numbers.data.uniform_(0.5, 1.5)
    quick, pictures = tower.folded(eye), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(quick(pictures), eye(pictures), atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in quick.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in eye.modules()), "a copy"


def test_an_interval_counts_the_luck_of_draws_and_of_pictures():
    lot = torch.Generator().manual_seed(0)
    alike = (torch.rand(1, 400, generator=lot) < 0.5).float().repeat(3, 1)  # three runs that say the same
    low, high = scores.interval(alike)
    mean = 100 * alike.mean().item()
    assert low < mean < high and high - low == pytest.approx(4 * 50 / 20, rel=0.15), (
        "as wide as one run's pictures make it"
    )
    apart = torch.tensor([[0.0], [1.0]]).repeat(1, 400)  # two runs that say the opposite of each other
    assert scores.interval(apart) == (0.0, 100.0)
    assert scores.interval(alike - alike) == (0.0, 0.0)


def test_both_ways_gives_a_picture_and_its_mirror_image_the_same(tiny):
    from PIL import ImageOps

    picture = Image.new("RGB", (32, 32), "red")
    picture.paste("blue", (0, 0, 8, 16))
    found = scores.both_ways(tiny, [picture, ImageOps.mirror(picture)])
    alone = scores.image_features(tiny, [picture, ImageOps.mirror(picture)])
    assert torch.allclose(found[0], found[1], atol=1e-6) and not torch.allclose(alone[0], alone[1], atol=1e-4)
    assert torch.allclose(found.norm(dim=1), torch.ones(2))


def test_a_problem_without_a_picture_is_left_out(tiny):
    picture = Image.new("RGB", (32, 32), "red")
    problems = [Problem("1", "What?", ("a dog", "a red circle"), 1, picture), Problem("2", "What?", ("yes", "no"), 0)]
    found = scores.choose(tiny, problems)
    assert [each.id for each in found] == ["1"] and len(found[0].scores) == 2
    assert found[0].correct == (found[0].choice == 1)


def test_pairs_of_one_name_are_no_rivals():
    same, other = torch.zeros(2, dtype=torch.long), torch.arange(2)
    pictures, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # each other's
    loss = [train.contrastive(pictures, texts, torch.tensor(10.0), names).item() for names in (same, other)]
    assert loss[0] == pytest.approx(5, abs=0.01) and loss[1] == pytest.approx(10, abs=0.01)


def test_the_projection_is_the_same_whenever_it_is_trained():
    heads = []
    for _ in range(2):
        torch.manual_seed(len(heads))  # what came before shall not count
        visual = SimpleNamespace(head=torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 4)))
        with torch.no_grad():
            for each in visual.head.parameters():
                each.copy_(torch.linspace(-1, 1, each.numel()).view_as(each))
        clip = Clip(SimpleNamespace(visual=visual, logit_scale=torch.nn.Parameter(torch.zeros(()))), None, None)
        seen, said = torch.linspace(0, 1, 120).sin().view(1, 20, 6), torch.linspace(0, 9, 80).cos().view(1, 20, 4)
        train.train_heads(clip, seen, torch.arange(20), said)
        heads.append([each.detach().clone() for each in visual.head.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*heads))


def test_a_head_for_standardised_features_takes_them_as_they_are():
    torch.manual_seed(0)
    head, mean, spread = torch.nn.Linear(6, 4), torch.randn(6), torch.rand(6) + 0.5
    features = torch.randn(3, 6)
    wanted = head((features - mean) / spread).detach()
    train._fold(head, mean, spread)
    torch.testing.assert_close(head(features).detach(), wanted)


def test_from_a_hub_the_same_line_loads_it(tiny, tmp_path):
    from safetensors.torch import save as as_bytes

    config = json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}).encode()
    files = {"open_clip_config.json": config, "open_clip_model.safetensors": as_bytes(dict(tiny.model.state_dict()))}
    program = (
        "from mmlora.openclip.assemble import load; clip = load('hf-hub:acme/tiny-clip'); "
        "print(clip.model.encode_text(clip.tokenizer(['a dog']), normalize=True)[0, :4].tolist())"
    )
    with HubMirror() as hub:
        hub.model("acme/tiny-clip", files)
        done = at_hub(hub.url, tmp_path, program)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        ours = tiny.model.encode_text(tiny.tokenizer(["a dog"]), normalize=True)[0, :4]
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), ours, atol=1e-5)


def test_the_published_towers_meet_in_open_clip_and_are_saved_by_it(tmp_path):
    clip = assembled()
    assert "lite0-minilm" in open_clip.list_models()
    image = clip.preprocess(Image.new("RGB", (96, 96), "red"))[None]
    again = load(str(save(clip, tmp_path / "kept")))
    assert {path.suffix for path in (tmp_path / "kept").iterdir()} <= {".json", ".safetensors", ".txt"}, "no pickles"
    with torch.no_grad():
        assert torch.equal(clip.model.encode_image(image), again.model.encode_image(image))
        words = [each.model.encode_text(each.tokenizer(["a drawing of a dog"])) for each in (clip, again)]
    assert torch.equal(*words), "asked the very same, they agree to the last bit"
    norm = next(step for step in again.preprocess.transforms if hasattr(step, "mean"))
    assert tuple(norm.mean) == tuple(norm.std) == (0.5, 0.5, 0.5), "as the tower was trained"
    (tmp_path / "kept").rename(tmp_path / "moved")
    with torch.no_grad():
        assert torch.equal(
            load(str(tmp_path / "moved")).model.encode_text(again.tokenizer(["a drawing of a dog"])), words[0]
        )


def test_texts_longer_than_the_text_tower_reads_are_named(tiny):
    long = "a drawing of " + "a very " * 20 + "old ship"
    with pytest.warns(UserWarning, match=r"2 of 3 texts are longer than the 16 tokens .* such as 'a drawing of a very"):
        found = scores.text_features(tiny, ["a dog", long, long + " at sea"])
    assert torch.equal(found[1], found[2]), "which is why it is said"
    with pytest.warns(UserWarning, match="1 of 2 texts"):
        problem = Problem("1", "What?", ("a dog", long), 0, Image.new("RGB", (32, 32), "red"))
        scores.choose(tiny, [problem])
    fourteen = " ".join(["a"] * 14)  # with a start and an end token, sixteen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores.text_features(tiny, [fourteen, "a dog"])
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        scores.text_features(tiny, [fourteen + " a"])
    with pytest.raises(ClipError, match="cannot be encoded as UTF-8"):
        scores.text_features(tiny, ["a \ud83d dog"])


def test_tied_scores_are_no_answer(tiny):
    same = torch.ones(3, 4)
    assert scores.top(same, same, torch.arange(3)).correct == 0
    assert scores.top(torch.full((3, 4), torch.nan), same, torch.arange(3)).correct == 0
    assert scores.top(same, same, torch.arange(3), k=3).correct == 3
    long = "a very " * 20
    problem = Problem("1", "What?", (long + "old ship", long + "new ship"), 0, Image.new("RGB", (32, 32), "red"))
    with pytest.warns(UserWarning, match="2 of 2 texts"):
        found = scores.choose(tiny, [problem])[0]
    assert (found.choice, found.correct, found.text) == (None, False, "") and found.scores[0] == found.scores[1]


@pytest.mark.parametrize("name, pretrained", [
    ("hf-hub:nobody/of-ours", None), ("hf-hub:", None), ("local-dir:/nowhere", None), ("n" * 5000, None), ("ViT-B-32:x", None),
    ("tiny-vit", "junk.safetensors"), ("tiny-vit", "junk.pt"), ("tiny-vit", "code.pt"),
])  # fmt: skip
def test_what_cannot_be_had_or_read_is_a_sentence(tiny, tmp_path, monkeypatch, name, pretrained):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.pt").write_bytes(b"")
    torch.save({"a": SimpleNamespace()}, tmp_path / "code.pt")
    with pytest.raises(ClipError) as refused:
        load(name, pretrained)
    assert len(str(refused.value)) < 1000
    assert pretrained != "code.pt" or "code in it is never run" in str(refused.value)


@pytest.mark.parametrize("said", ["{", "[]", "{}", '{"model_cfg": 5}', json.dumps({"model_cfg": TINY})])
def test_a_folder_that_is_damaged_or_lacks_its_weights_is_a_sentence(tmp_path, said):
    """Without weights open_clip would draw some by lot."""
    (tmp_path / "open_clip_config.json").write_text(said)
    with pytest.raises(ClipError, match="no weights"):
        load(str(tmp_path))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"x")
    with pytest.raises(ClipError, match="is not a configuration of open_clip|cannot be loaded"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "said", ["{", "[]", "{}", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": "none"}']
)
def test_an_adapter_whose_configuration_is_damaged_is_a_sentence(tmp_path, said):
    (tmp_path / "adapter_config.json").write_text(said)
    with pytest.raises((AdapterError, ClipError)):
        adapters.load(tmp_path)


def test_an_adapter_that_cannot_be_written_or_has_no_rank_is_a_sentence(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="rank is 0; give a whole number"):
        adapters.attach(tiny.model, rank=0)
    with pytest.raises(FileError, match="file cannot be used"):
        adapters.save(adapters.attach(tiny.model), tmp_path / "file", "tiny-vit")


def test_pictures_and_prompts_that_cannot_be_used_are_named(tiny):
    red = Image.new("RGB", (32, 32), "red")
    for prompt in ("a thing", "a {name}", "{} {}", "{"):
        with pytest.raises(ClipError, match="has no place for a name"):
            scores.name_features(tiny, ["a dog"], [prompt])
        with pytest.raises(ClipError, match="has no place for a name"):
            scores.choose(tiny, [Problem("p7", "What?", ("a dog", "a cat"), 0, red)], prompt)
    with pytest.raises(ClipError, match="no prompt"):
        scores.name_features(tiny, ["a dog"], [])
    for odd in ("a.png", None, Image.new("RGB", (0, 0))):
        with pytest.raises(ClipError, match="picture 1 cannot be read"):
            scores.image_features(tiny, [red, odd])
    with pytest.raises(ClipError, match="the picture of p7 cannot be read"):
        scores.choose(tiny, [Problem("p7", "What?", ("a dog", "a cat"), 0, Image.new("RGB", (0, 0)))])
    with pytest.raises(ClipError, match="no pictures"):
        scores.image_features(tiny, [])
    with pytest.raises(ClipError, match="5 is not text"):
        scores.text_features(tiny, [5])
    assert scores.choose(tiny, [Problem("p7", "What?", ("a dog", "a cat"), 0)]) == []
