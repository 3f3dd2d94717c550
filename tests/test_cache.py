"""Training from cached prefixes is training, losses and gradients alike; no cache is used for the wrong data."""

import copy
import errno
import io
import os
from dataclasses import replace
from types import SimpleNamespace

import families
import numpy as np
import pytest
import tinyvlm
import torch
from PIL import Image

from mmlora.adapters import lora
from mmlora.encoding import prefix as cache
from mmlora.encoding import samples as encoding
from mmlora.encoding.conversation import EncodingError
from mmlora.encoding.prefix import CacheError, PrefixCache, boundary
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import collate
from mmlora.encoding.samples import Samples, without_pixels
from mmlora.models import vlm as models
from mmlora.models.resolution import set_side
from mmlora.models.vlm import load_base
from mmlora.problems import pictures
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

ALL = list(range(len(tinyvlm.PROBLEMS)))
LESSONS = [taught(problem, "explanation_answer") for problem in tinyvlm.PROBLEMS]
ANSWERS = [taught(problem, "answer") for problem in tinyvlm.PROBLEMS]


@pytest.fixture(scope="module")
def samples(tiny_vlm):
    return Samples(tiny_vlm, LESSONS)


@pytest.fixture
def adapted(tiny_vlm):
    """`adapted(layers)`: a copy of the tiny model with an adapter that already does something."""

    def attach(layers=(2, 3)):
        model = lora.attach(copy.deepcopy(tiny_vlm.model), rank=4, layers=layers)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return model

    return attach


@pytest.fixture
def fills(monkeypatch):
    """The folders that were filled, in order."""
    folders, original = [], cache._fill

    def counted(model, samples, first, folder, *rest):
        folders.append(folder)
        return original(model, samples, first, folder, *rest)

    monkeypatch.setattr(cache, "_fill", counted)
    return folders


def gradients(model, source, indices):
    model.zero_grad()
    loss, tokens = source.loss(model, indices)
    (loss / tokens).backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    assert all(g.abs().max() > 0 for g in grads)
    return loss.item() / tokens, tokens, torch.cat(grads)


# Agreement.


def test_the_plain_loss_is_the_models_own(tiny_vlm, samples, adapted):
    """Sum over the batch = the mean that transformers' convention gives, times the supervised tokens."""
    model = adapted()
    loss, tokens = samples.loss(model, ALL)
    reference = model(**collate([samples[i] for i in ALL])).loss
    assert torch.allclose(loss / tokens, reference, rtol=1e-5)
    assert tokens == sum(int((samples[i].labels != -100).sum()) for i in ALL)


@pytest.mark.parametrize("layers", [(0, 3), (1, 2), (2, 3), (3,)], ids=lambda layers: f"from-{layers[0]}")
def test_cached_and_plain_losses_and_gradients_agree(samples, adapted, tmp_path, layers):
    model = adapted(layers)
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    assert cached.boundary == boundary(model) == layers[0]
    assert (cached.ids, cached.lengths, len(cached)) == (samples.ids, samples.lengths, len(samples))
    for indices in (ALL, [2, 1], [3]):
        plain, tokens, direction = gradients(model, samples, indices)
        ours, same_tokens, ours_direction = gradients(model, cached, indices)
        assert same_tokens == tokens and ours == pytest.approx(plain, rel=2e-3)
        assert torch.cosine_similarity(direction, ours_direction, dim=0) > 0.999
        assert ours_direction.norm() == pytest.approx(direction.norm().item(), rel=0.02)


@pytest.fixture
def smolvlm():
    """A tiny SmolVLM with an adapter, for transformers does not compute SmolBridge's layers again; and what it is taught."""

    def build():
        vlm = families.build("smolvlm")
        return lora.attach(vlm.model, rank=4, layers=(2, 3)), Samples(vlm, ANSWERS)

    return build


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("from_cache", [False, True])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable. is deprecated")
def test_layers_that_are_computed_again_give_the_same_gradients(smolvlm, tmp_path, one_thread, from_cache, reentrant):
    """Backward computes them again, with the attention of forward, and from the states that were kept."""
    found = []
    for name in ("kept", "again"):
        model, samples = smolvlm()
        if name == "again":
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        source = PrefixCache.build(model, samples, tmp_path / "cache") if from_cache else samples
        log = fit(model, source, TrainSettings(steps=2, batch_size=2, fused=False), tmp_path / name)
        found.append(
            [(r["loss"], r["gradient_norm"]) for r in log.records] + [p.sum().item() for p in model.parameters()]
        )
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable. is deprecated")
def test_fused_layers_step_aside_for_layers_that_are_computed_again(smolvlm, tmp_path, capsys):
    model, samples = smolvlm()
    model.gradient_checkpointing_enable()
    fit(model, samples, TrainSettings(steps=1, batch_size=2), tmp_path)
    said = capsys.readouterr()
    assert "takes the plain path, which is slower: its activations are recomputed" in said.out + said.err


def test_each_sample_gets_its_own_states(samples, adapted, tmp_path):
    model = adapted()
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    with torch.no_grad():
        one_by_one = [cached.loss(model, [i])[0].item() for i in ALL]
        plain = [samples.loss(model, [i])[0].item() for i in ALL]
        assert cached.loss(model, ALL)[0].item() == pytest.approx(sum(one_by_one), rel=1e-4)
    assert one_by_one == pytest.approx(plain, rel=1e-3)
    assert min(abs(a - b) for a in plain for b in plain if a != b) > 0.002 * max(plain)


def test_a_prefix_is_stored_in_half_precision_and_no_padding(samples, adapted, tmp_path):
    PrefixCache.build(adapted(), samples, tmp_path / "cache")
    assert (tmp_path / "cache" / "hidden").stat().st_size == sum(samples.lengths) * 64 * 2
    assert {p.name for p in tmp_path.iterdir()} == {"cache"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_too_large_for_float16_are_kept_in_bfloat16(samples, adapted, tmp_path, capsys, dtype):
    model = adapted().to(dtype)
    model.get_base_model().model.language_model.layers[0].mlp.down_proj.weight.data *= 1e7
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    assert ("too large for float16" in capsys.readouterr().out) == (dtype == torch.float32)
    assert max(states.abs().max() for states in cached.states(ALL)) > 65504
    with torch.no_grad():
        assert cached.loss(model, ALL)[0] == pytest.approx(samples.loss(model, ALL)[0].item(), rel=1e-3)


def test_states_that_are_not_finite_are_an_error(samples, adapted, tmp_path):
    model = adapted()
    model.get_base_model().model.language_model.layers[0].mlp.down_proj.weight.data[0] = float("nan")
    with pytest.raises(CacheError, match="not finite in torch.float32; choose another model"):
        PrefixCache.build(model, samples, tmp_path / "cache")
    assert not any(tmp_path.iterdir())


def test_a_prefix_that_does_not_fit_in_memory_is_computed_in_parts(samples, adapted, tmp_path, monkeypatch, capsys):
    model, lower, sizes = adapted(), cache.lower, []
    whole = PrefixCache.build(model, samples, tmp_path / "whole").hidden.copy()

    def small(model, batch, first):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 2:
            torch.empty(2**60)  # more than any machine has
        return lower(model, batch, first)

    monkeypatch.setattr(cache, "lower", small)
    parts = PrefixCache.build(model, samples, tmp_path / "parts").hidden
    assert sizes == [4, 2, 2] and "from now on 2 samples at a time" in capsys.readouterr().out
    assert np.abs(parts.view(np.float16) - whole.view(np.float16)).max() < 0.01


# The boundary.


def test_the_boundary_follows_from_what_is_trainable(adapted):
    model = adapted((1, 3))
    assert boundary(model) == 1
    for name, parameter in model.named_parameters():
        if "layers.1." in name:
            parameter.requires_grad_(False)
    assert boundary(model) == 3


@pytest.mark.parametrize("part", ["connector", "language_model.embed_tokens", "language_model.norm", "vision_tower"])
def test_what_trains_outside_the_decoders_layers_cannot_be_cached(samples, adapted, tmp_path, part):
    model = adapted()
    model.get_base_model().model.get_submodule(part).requires_grad_(True)
    with pytest.raises(CacheError, match=f"{part}.* is trainable .*train without the prefix cache"):
        PrefixCache.build(model, samples, tmp_path / "cache")
    assert not any(tmp_path.iterdir())


def test_a_model_without_adapter_has_no_boundary(tiny_vlm):
    with pytest.raises(CacheError, match="attach an adapter first"):
        boundary(copy.deepcopy(tiny_vlm.model).requires_grad_(False))


# Using a cache again.


def test_the_same_weights_and_samples_use_the_cache_again(tiny_vlm, samples, adapted, tmp_path, fills, capsys):
    model = adapted()
    first = PrefixCache.build(model, samples, tmp_path / "cache")
    with torch.no_grad():  # above the boundary
        model.get_base_model().model.language_model.layers[3].mlp.up_proj.base_layer.weight.mul_(2)
    fresh = Samples(tiny_vlm, LESSONS)
    again = PrefixCache.build(model, fresh, str(tmp_path / "cache"))
    assert len(fills) == 1 and again.fingerprint == first.fingerprint and "anew" not in capsys.readouterr().out
    assert np.array_equal(again.hidden, first.hidden)


def _embedding(core):
    core.language_model.embed_tokens.weight.data[5, 0] += 1e-3


def _lower_layer(core):
    core.language_model.layers[1].mlp.up_proj.weight.data[0, 0] += 1e-3


def _vision_tower(core):
    next(core.vision_tower.parameters()).data[0] += 1e-3


def _connector(core):
    core.connector.describe.bias.data[0] += 1e-3


@pytest.mark.parametrize("change", [_embedding, _lower_layer, _vision_tower, _connector])
def test_other_weights_below_the_boundary_build_it_anew(samples, adapted, tmp_path, fills, capsys, change):
    model = adapted()
    PrefixCache.build(model, samples, tmp_path / "cache")
    change(model.get_base_model().model)
    PrefixCache.build(model, samples, tmp_path / "cache")
    assert (
        len(fills) == 2
        and "was made from other weights, samples or numbers; building it anew" in capsys.readouterr().out
    )


def test_other_samples_format_or_boundary_build_it_anew(tiny_vlm, samples, adapted, tmp_path, fills):
    model = adapted()
    repainted = [replace(LESSONS[0], pictures=(tinyvlm.picture("red", "black"),)), *LESSONS[1:]]
    PrefixCache.build(model, samples, tmp_path / "cache")
    for other in (Samples(tiny_vlm, LESSONS[:2]), Samples(tiny_vlm, ANSWERS), Samples(tiny_vlm, repainted)):
        built = PrefixCache.build(model, other, tmp_path / "cache")
        assert built.lengths == other.lengths
    PrefixCache.build(adapted((3,)), other, tmp_path / "cache")
    assert len(fills) == 5


@pytest.mark.parametrize("name", cache.FILES)
def test_a_damaged_cache_is_built_anew(samples, adapted, tmp_path, fills, capsys, name):
    model = adapted()
    whole = PrefixCache.build(model, samples, tmp_path / "cache").hidden.copy()
    file = tmp_path / "cache" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = PrefixCache.build(model, samples, tmp_path / "cache")
    assert len(fills) == 2 and "is damaged" in capsys.readouterr().out
    assert np.array_equal(again.hidden, whole)


@pytest.mark.parametrize("name", cache.FILES)
def test_one_changed_bit_is_noticed(samples, adapted, tmp_path, fills, capsys, name):
    model = adapted()
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    whole, file = cached.hidden.copy(), tmp_path / "cache" / name
    content = bytearray(file.read_bytes())
    for place in (len(content) // 3, len(content) - 2):  # within what is said and within what is kept
        harmed = content.copy()
        harmed[place] ^= 4
        file.write_bytes(harmed)
        again = PrefixCache.build(model, samples, tmp_path / "cache")
        assert "is damaged (" in capsys.readouterr().out and np.array_equal(again.hidden, whole)
    assert len(fills) == 3


def test_a_bit_that_changes_before_it_is_read_is_no_lesson(samples, adapted, tmp_path):
    model = adapted()
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    content = bytearray(cached.file.read_bytes())
    content[-2] ^= 4
    cached.file.write_bytes(content)
    cached.states([0])
    with pytest.raises(
        CacheError, match=f"hidden is not what was written, at sample {samples.ids[-1]}: remove .*cache and"
    ):
        cached.states(ALL)


def test_other_numbers_build_it_anew_and_are_no_other_data(samples, adapted, tmp_path, fills, numbers):
    """A bfloat16 machine's states are other bits, but a run that was begun in float32 may go on with them."""
    model = adapted()
    first = PrefixCache.build(model, samples, tmp_path / "cache")
    numbers("bfloat16")
    again = PrefixCache.build(model, samples, tmp_path / "cache")
    assert len(fills) == 2 and again.fingerprint == first.fingerprint == samples.fingerprint
    PrefixCache.build(model, samples, tmp_path / "cache")
    assert len(fills) == 2


def test_every_sample_is_encoded_once_and_never_for_a_cache_that_is_found(tiny_vlm, adapted, tmp_path, monkeypatch):
    encoded, original = [], encoding.encode

    def counted(processor, conversation):
        encoded.append(conversation.id)
        return original(processor, conversation)

    monkeypatch.setattr(encoding, "encode", counted)
    monkeypatch.setattr(cache, "WINDOW", 3)
    model = adapted()
    first = PrefixCache.build(model, Samples(tiny_vlm, LESSONS), tmp_path / "cache")
    assert encoded == [problem.id for problem in tinyvlm.PROBLEMS]
    again = PrefixCache.build(model, Samples(tiny_vlm, LESSONS), tmp_path / "cache")
    assert again.lengths == first.lengths and len(encoded) == len(LESSONS)


# samples and bytes of their pictures that are encoded together, and bytes of those that are in one forward pass
@pytest.mark.parametrize(("limit", "together"), [("WINDOW", 1), ("HELD", 1), ("PASS", 1), ("PASS", 2)])
def test_a_window_at_a_time_is_the_same_cache(samples, adapted, tmp_path, monkeypatch, limit, together):
    model, passes, whole_pass = adapted(), [], cache.lower
    whole = PrefixCache.build(model, samples, tmp_path / "whole")
    largest = max(samples[i].nbytes for i in ALL) if limit == "PASS" else 1
    monkeypatch.setattr(cache, limit, together * largest)
    monkeypatch.setattr(
        cache, "lower", lambda m, batch, first: passes.append(len(batch["input_ids"])) or whole_pass(m, batch, first)
    )
    windows = PrefixCache.build(model, samples, tmp_path / "windows")
    assert max(passes) == together
    assert windows.lengths == whole.lengths == samples.lengths
    assert np.abs(windows.hidden.view(np.float16) - whole.hidden.view(np.float16)).max() < 0.01
    for a, b, i in zip(windows.rows, whole.rows, ALL):
        kept = without_pixels(samples[i])
        for row in (a, b):
            assert (
                row.id == kept.id and torch.equal(row.labels, kept.labels) and row.tokens.keys() == kept.tokens.keys()
            )
            assert all(torch.equal(row.tokens[name], kept.tokens[name]) for name in kept.tokens)


# A full disk.


class FullDisk:
    """A file on a disk that is full after the first write."""

    def __init__(self, path, mode):
        self.file, self.writes = open(path, mode), 0

    def write(self, data):
        self.writes += 1
        if self.writes > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def seek(self, place):
        return self.file.seek(place)

    def tell(self):
        return self.file.tell()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_full_disk_is_one_sentence_and_loses_nothing(tiny_vlm, samples, adapted, tmp_path, monkeypatch):
    model, folder = adapted().train(), tmp_path / "cache"
    PrefixCache.build(model, samples, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    others = Samples(tiny_vlm, ANSWERS)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "open", FullDisk, raising=False)
        with pytest.raises(
            CacheError, match=r"could not write the prefix cache to .*: No space left .*; free some space"
        ):
            PrefixCache.build(model, others, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert model.training and PrefixCache.build(model, samples, folder).ids == samples.ids


def test_what_would_not_fit_on_the_disk_is_trained_on_without_a_cache(
    tiny_vlm, samples, adapted, tmp_path, monkeypatch, capsys, fills
):
    monkeypatch.setattr(cache, "MANY", 1)
    size = 2 * sum(samples.lengths) * tiny_vlm.model.config.get_text_config().hidden_size
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=size - 1))
    assert cache.cached(adapted(), samples, tmp_path / "cache") is samples
    assert "Training goes on without it, which is slower" in capsys.readouterr().out and not fills
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=size))
    assert isinstance(cache.cached(adapted(), samples, tmp_path / "cache"), PrefixCache)


def test_an_old_cache_stays_until_the_new_one_is_complete(tiny_vlm, samples, adapted, tmp_path, monkeypatch):
    model, folder = adapted(), tmp_path / "cache"
    old = PrefixCache.build(model, samples, folder).hidden.copy()
    original, seen, key = cache._fill, [], cache._key(model, samples, boundary(model))

    def looking(model, others, first, aside, new):
        done = original(model, others, first, aside, new)
        seen.append(PrefixCache._found(folder, key, samples) is not None and sorted(p.name for p in aside.iterdir()))
        return done

    monkeypatch.setattr(cache, "_fill", looking)
    new = PrefixCache.build(model, Samples(tiny_vlm, ANSWERS), folder)
    assert seen == [sorted(cache.FILES)] and not np.array_equal(new.hidden, old)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_a_folder_with_something_else_in_it_is_left_alone(samples, adapted, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CacheError, match="holds thesis.txt.*new folder"):
        PrefixCache.build(adapted(), samples, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="could not write"):
        PrefixCache.build(adapted(), samples, tmp_path / "file" / "cache")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_samples_know_what_they_are(tiny_vlm, samples):
    assert samples.ids == [p.id for p in tinyvlm.PROBLEMS]
    assert samples.lengths == [len(samples[i].input_ids) for i in ALL]
    again = Samples(tiny_vlm, LESSONS)
    assert again.fingerprint == samples.fingerprint
    assert Samples(tiny_vlm, ANSWERS).fingerprint != samples.fingerprint


# What a training set is known by.


def fingerprint(vlm, *conversations) -> str:
    return Samples(vlm, conversations or LESSONS).fingerprint


@pytest.fixture
def stored(tmp_path):
    """`stored()`: a tiny SmolVLM, loaded from its folder."""
    folder = families.save(families.build("smolvlm"), tmp_path / "stored")
    return lambda: load_base(folder)


def test_it_follows_the_stored_weights_in_whatever_numbers(stored, tmp_path, monkeypatch):
    first, changed = fingerprint(stored()), families.build("smolvlm")
    next(changed.model.model.vision_model.parameters()).data.view(-1)[7] += 1e-3
    other = load_base(families.save(changed, tmp_path / "other"))
    assert fingerprint(stored().with_model(other.model)) != first
    monkeypatch.setattr(models, "weights_dtype", lambda: torch.bfloat16)
    halves = stored()
    assert halves.model.dtype == torch.bfloat16 and fingerprint(halves) == first
    assert fingerprint(halves.with_model(lora.attach(halves.model))) == first


def test_it_follows_the_chat_template_and_the_side_of_pictures(stored):
    plain, spoken, small = stored(), stored(), stored()
    spoken.processor.chat_template = "Look. " + spoken.processor.chat_template
    set_side(small.processor, 24)
    assert len({fingerprint(vlm) for vlm in (plain, spoken, small)}) == 3
    assert fingerprint(stored()) == fingerprint(plain)


@pytest.mark.parametrize(
    "read", [pictures.decoded, lambda data: Image.open(io.BytesIO(data))], ids=["problems'", "one's own"]
)
def test_it_does_not_depend_on_whether_a_picture_was_decoded(tiny_vlm, read):
    file = io.BytesIO()
    tinyvlm.picture("red", "blue").save(file, "PNG")
    picture = read(file.getvalue())
    lesson = replace(LESSONS[0], pictures=(picture,))
    before = fingerprint(tiny_vlm, lesson)
    assert picture.tile, "it was decoded in place"
    picture.load()
    assert not picture.tile and fingerprint(tiny_vlm, lesson) == before


def test_it_follows_the_colours_of_a_palette(tiny_vlm):
    found = set()
    for colour in ((255, 0, 0), (0, 0, 255)):
        picture = Image.new("P", (8, 8))
        picture.putpalette(colour)
        found.add(fingerprint(tiny_vlm, replace(LESSONS[0], pictures=(picture,))))
    assert len(found) == 2


def test_a_picture_that_cannot_be_read_is_named_before_anything_is_computed(tiny_vlm):
    file = io.BytesIO()
    tinyvlm.picture("red", size=(300, 200)).save(file, "JPEG")
    broken = replace(LESSONS[0], pictures=(Image.open(io.BytesIO(file.getvalue()[:900])),))
    with pytest.raises(EncodingError, match="problem left: its picture cannot be read .*truncated"):
        Samples(tiny_vlm, [broken])
