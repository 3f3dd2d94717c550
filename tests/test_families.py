"""Every supported architecture goes the whole way: labels, gradients, cache, answers, adapter, merge."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tinyvlm import PROBLEMS, picture

from mmlora.adapters import files, lora, towers
from mmlora.encoding.conversation import EncodingError
from mmlora.encoding.loss import IGNORED, on_device
from mmlora.encoding.prefix import CacheError, PrefixCache, boundary
from mmlora.encoding.prompts import asked, target_text, taught
from mmlora.encoding.sample import collate, encode, show_labels
from mmlora.encoding.samples import Samples
from mmlora.evaluation import answering, controls
from mmlora.inference import generate as generation
from mmlora.models.resolution import ResolutionError, set_side, visual_tokens
from mmlora.models.vlm import VLM, load_base

#: Pictures of several shapes and sizes, and text among them.
MIXED = [
    PROBLEMS[0],
    PROBLEMS[1],
    replace(PROBLEMS[2], image=picture("olive", "red", (40, 96))),
    PROBLEMS[3],
    replace(PROBLEMS[0], id="small", image=picture("green", "black", (20, 24))),
]
ALL = list(range(len(MIXED)))
LESSONS = [taught(problem, "explanation_answer") for problem in MIXED]
NAMES = list(families.FAMILIES)
SIZED = ["smolvlm", "smolvlm2", "qwen2.5-vl", "qwen3-vl"]  # read pictures of more than one size


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def samples(family):
    return Samples(families.build(family), LESSONS)


@pytest.fixture
def vlm(family) -> VLM:
    return families.build(family)


def towers_of(family: str) -> tuple[str, ...]:
    return ("vision", "connector", "language") if families.FAMILIES[family].sees else ("language",)


def adapted(vlm: VLM, **options) -> VLM:
    """The model with an adapter that already does something."""
    model = lora.attach(vlm.model, rank=4, **{"layers": (families.FAMILIES[vlm.name].first, 3), **options})
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return vlm.with_model(model)


@torch.no_grad()
def logits(vlm: VLM) -> torch.Tensor:
    batch = on_device(vlm.model, collate([encode(vlm.processor, taught(p, "answer")) for p in MIXED]))
    mask = batch["attention_mask"].bool()
    del batch["labels"]
    return vlm.model(**batch).logits[mask]


def test_what_is_supervised_is_the_answer_and_its_end(family, vlm):
    tokenizer = vlm.processor.tokenizer
    for problem in MIXED:
        sample = encode(vlm.processor, taught(problem, "explanation_answer"))
        said = sample.labels[sample.labels != IGNORED]
        assert int(said[-1]) == tokenizer.eos_token_id
        assert tokenizer.decode(said[:-1]).strip() == target_text(problem, "explanation_answer").strip()
        slots = sample.input_ids.tolist().count(vlm.processor.image_token_id)
        assert (slots > 0) == (problem.image is not None and families.FAMILIES[family].sees)
        assert problem.question in show_labels(vlm.processor, sample)


def test_the_loss_is_the_models_own(vlm, samples):
    batch = collate([samples[i] for i in ALL])
    with torch.no_grad():
        reference = vlm.model(**batch).loss
        loss, tokens = samples.loss(vlm.model, ALL)
    assert torch.allclose(loss / tokens, reference, rtol=1e-4)


def test_a_step_reaches_every_chosen_tower(family, vlm, samples):
    model = adapted(vlm, within=towers_of(family)).model.train()
    loss, tokens = samples.loss(model, ALL)
    (loss / tokens).backward()
    norms = towers.gradient_norms(model)
    assert set(norms) == set(towers_of(family)) and min(norms.values()) > 0
    assert all(
        p.grad.abs().max() > 0
        for n, p in model.named_parameters()
        if p.requires_grad and "layers.3" in n and "language" in n
    )


def test_cached_and_plain_losses_and_gradients_agree(vlm, samples, tmp_path):
    model = adapted(vlm).model
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    assert cached.boundary == boundary(model) == families.FAMILIES[vlm.name].first
    for indices in (ALL, [3, 0], [1]):
        found = []
        for source in (samples, cached):
            model.zero_grad()
            loss, tokens = source.loss(model, indices)
            (loss / tokens).backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
            found.append(((loss / tokens).item(), gradient))
        (plain, direction), (ours, ours_direction) = found
        assert ours == pytest.approx(plain, rel=1e-4)
        assert torch.cosine_similarity(direction, ours_direction, dim=0) > 0.999


@pytest.mark.filterwarnings("ignore:.*generations were cut")
def test_answers_in_a_batch_are_those_given_one_by_one(vlm, monkeypatch):
    together = answering.evaluate(vlm, MIXED, batch_size=5, progress=False)
    alone = answering.evaluate(vlm, MIXED, batch_size=1, progress=False)
    for problem, a, b in zip(MIXED, together, alone, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-3)
        assert a.scores == pytest.approx([whole_row(vlm, problem, i) for i in range(len(problem.choices))], abs=1e-3)
    with pytest.warns(UserWarning, match="cut at 6 tokens"):
        together = answering.evaluate(vlm, MIXED, "generate", batch_size=5, max_new_tokens=6, progress=False)
        assert together == answering.evaluate(vlm, MIXED, "generate", batch_size=1, max_new_tokens=6, progress=False)
    assert len({p.text for p in together}) > 1
    monkeypatch.setattr(generation, "PREFILL_ROWS", 2)
    settings = {"max_new_tokens": 18, "progress": False}  # more than a cache first has room for
    together = answering.evaluate(vlm, MIXED, "generate", batch_size=5, **settings)
    assert together == answering.evaluate(vlm, MIXED, "generate", batch_size=1, **settings)
    assert len({p.text for p in together}) > 1


@torch.no_grad()
def whole_row(vlm: VLM, problem, choice: int) -> float:
    """The definition: one full row, no cache, no padding."""
    batch = collate([encode(vlm.processor, taught(replace(problem, answer=choice), "answer"))])
    labels = batch.pop("labels")[0, 1:]
    found = vlm.model(**batch).logits[0, :-1].log_softmax(-1)
    return float(found.gather(-1, labels.clamp(min=0)[:, None])[:, 0][labels != IGNORED].sum())


def test_what_is_seen_changes_what_is_likely(family, vlm):
    seen, blank = (
        answering.evaluate(vlm, p, progress=False)[0].scores for p in (MIXED[:1], controls.blanked(MIXED[:1]))
    )
    assert (seen != pytest.approx(blank, abs=1e-6)) == families.FAMILIES[family].sees


def test_merged_it_says_the_same(vlm):
    base, wrapped = logits(vlm), adapted(vlm)
    expected = logits(wrapped)
    merged = vlm.with_model(lora.merge(wrapped.model))
    assert torch.allclose(logits(merged), expected, atol=1e-3)
    assert (expected - base).abs().max() > 0.05


def test_saved_adapters_are_the_same_in_a_fresh_process(tmp_path):
    """One child for all families: it costs an import."""
    expected = {}
    for name in NAMES:
        wrapped = adapted(families.build(name), within=towers_of(name))
        files.save_adapter(wrapped.model, tmp_path / name, {})
        expected[name] = logits(wrapped)
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(here)!r}); import test_families; test_families.reload({str(tmp_path)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here.parent, stdout=subprocess.DEVNULL)
    found = load_file(tmp_path / "logits.safetensors")
    assert found.keys() == expected.keys()
    for name in NAMES:
        assert torch.allclose(found[name], expected[name], atol=1e-5), name


def reload(folder: str):
    """What a stranger gets from the saved adapters."""
    found = {}
    for name in NAMES:
        vlm = families.build(name)
        found[name] = logits(vlm.with_model(files.load_adapter(vlm.model, Path(folder) / name)))
    save_file(found, Path(folder) / "logits.safetensors")


def test_an_adapters_folder_gives_back_what_was_trained(family, tmp_path):
    """The base lies in a folder; the adapter's folder brings the weights, the template and the side of pictures."""
    plain = load_base(families.save(families.build(family), tmp_path / "base"))
    vlm = replace(load_base(tmp_path / "base"), name=family)
    if vlm.processor.chat_template:
        words = vlm.processor if families.FAMILIES[family].sees else vlm.processor.tokenizer
        words.chat_template = vlm.processor.chat_template = "Look. " + vlm.processor.chat_template
    if family in SIZED:
        set_side(vlm.processor, 24)
    wrapped = adapted(vlm)
    again = files.load_vlm(files.save_adapter(wrapped.model, tmp_path / "adapter", {}, processor=vlm.processor))
    assert type(again.processor) is type(vlm.processor) and not again.model.training
    assert again.processor.chat_template == vlm.processor.chat_template
    lessons = Samples(again, LESSONS), Samples(vlm, LESSONS)
    assert lessons[0].lengths == lessons[1].lengths and lessons[0].fingerprint == lessons[1].fingerprint
    if vlm.processor.chat_template:
        assert lessons[0].lengths != Samples(plain, LESSONS).lengths
    if family in SIZED:
        assert (
            visual_tokens(again.processor, 120, 96)
            == visual_tokens(vlm.processor, 120, 96)
            < visual_tokens(plain.processor, 120, 96)
        )
        assert visual_tokens(files.load_vlm(tmp_path / "adapter", side=64).processor, 120, 96) > visual_tokens(
            vlm.processor, 120, 96
        )
    assert torch.equal(logits(again), logits(wrapped))


@pytest.mark.parametrize("family", [name for name in NAMES if families.FAMILIES[name].sees], indirect=True)
def test_a_conversation_may_hold_several_pictures(vlm, tmp_path):
    """Their slots stand one after the other, each picture counts, and neither a batch nor the cache mixes them up."""
    one, shape = LESSONS[0], (90, 70)
    pairs = [
        replace(one, id=f"and {colour}", pictures=(*one.pictures, picture(colour, size=shape)))
        for colour in ("green", "olive")
    ]
    turned = replace(pairs[0], id="turned", pictures=pairs[0].pictures[::-1])
    several = Samples(vlm, [one, *pairs, turned, LESSONS[1]])

    def slots(sample) -> int:
        return sample.input_ids.tolist().count(vlm.processor.image_token_id)

    single, *doubles, _, none = map(slots, (several[i] for i in range(len(several))))
    assert single > 0 and doubles == [2 * single] * 2 and none == 0
    model = adapted(vlm).model
    cached = PrefixCache.build(model, several, tmp_path / "cache")
    with torch.no_grad():
        alone = [several.loss(model, [i])[0].item() for i in range(len(several))]
        assert len({round(loss, 3) for loss in alone}) == len(several), "a picture or its place does not count"
        for source in (several, cached):
            assert [source.loss(model, [i])[0].item() for i in range(len(several))] == pytest.approx(alone, rel=1e-3)
            assert source.loss(model, [3, 0, 4, 1, 2])[0].item() == pytest.approx(sum(alone), rel=1e-3)


def test_qwen3_cannot_be_cached_where_it_still_adds_what_it_sees(tmp_path):
    vlm = adapted(families.build("qwen3-vl"), layers=(1, 3))
    with pytest.raises(CacheError, match="first 2 decoder layers too: let the adapter begin at layer 2"):
        PrefixCache.build(vlm.model, Samples(vlm, LESSONS), tmp_path / "cache")


def test_a_prompt_ends_where_the_answer_begins(vlm):
    for problem in MIXED:
        question, lesson = (encode(vlm.processor, said) for said in (asked(problem), taught(problem, "answer")))
        assert question.input_ids.tolist() == lesson.input_ids[: len(question)].tolist()
        assert (lesson.labels[: len(question)] == IGNORED).all() and (lesson.labels[len(question) :] != IGNORED).all()


def test_half_precision_weights_train_an_adapter_in_float32(family, vlm, samples):
    """What a card does, done on the CPU: weights in bfloat16, products too, the adapter and its gradient in float32."""
    wrapped = adapted(vlm.with_model(vlm.model.to(torch.bfloat16)), within=towers_of(family))
    with torch.autocast("cpu", torch.bfloat16):
        loss, tokens = samples.loss(wrapped.model, ALL)
    (loss / tokens).backward()
    for name, parameter in wrapped.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    assert min(towers.gradient_norms(wrapped.model).values()) > 0
    whole, _ = samples.loss(adapted(families.build(family), within=towers_of(family)).model, ALL)
    assert loss.item() == pytest.approx(whole.item(), rel=0.02)


# The size of pictures.


@pytest.mark.parametrize("name", SIZED)
def test_the_side_is_obeyed(name):
    large = replace(PROBLEMS[0], image=picture("red", "blue", (120, 96)))
    counts = []
    for side in (24, 64):
        vlm = families.build(name)
        set_side(vlm.processor, side)
        sample = encode(vlm.processor, taught(large, "answer"))
        counts.append(sample.input_ids.tolist().count(vlm.processor.image_token_id))
        assert counts[-1] == visual_tokens(vlm.processor, 120, 96)
        assert Samples(vlm, [taught(large, "answer")]).loss(vlm.model, [0])[0].isfinite()
    assert 0 < counts[0] < counts[1]


def test_a_loaded_model_says_what_a_picture_costs(tmp_path, capsys):
    vlm = families.build("smolvlm")
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    counts = [visual_tokens(load_base(tmp_path, side=side).processor) for side in (32, 96)]
    assert counts[0] < counts[1]
    assert [line for line in capsys.readouterr().out.splitlines() if "takes" in line] == [
        f"a picture of 512 x 384 pixels takes {count} tokens" for count in counts
    ]


@pytest.mark.parametrize("name", ["llava-1.5", "paligemma2"])
def test_a_fixed_side_says_so(name):
    with pytest.raises(ResolutionError, match="reads pictures at 32 x 32 pixels only"):
        set_side(families.build(name).processor, 64)


def test_a_wide_picture_is_seen_from_side_to_side(tmp_path):
    vlm = families.build("llava-1.5")
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    picture = Image.new("RGB", (96, 32))
    picture.paste("white", (0, 0, 16, 32))  # outside the middle square, which is all that the processor would take
    pixels = load_base(tmp_path).processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (32, 32) and pixels[..., 0].min() > pixels[..., -1].max()


def test_what_does_not_fit_is_named_and_never_cut(vlm, tmp_path):
    samples = Samples(vlm, [LESSONS[0], taught(replace(MIXED[0], id="long", hint="much " * 2500), "answer")])
    assert len(samples[0]) <= samples.room == 2048
    refused = pytest.raises(
        EncodingError, match=r"problem long takes \d+ tokens and does not fit in the model's 2048; leave it out"
    )
    with refused:
        samples[1]
    with refused:
        samples.lengths  # noqa: B018
    with refused:
        PrefixCache.build(adapted(vlm).model, samples, tmp_path / "cache")
    assert not any(tmp_path.iterdir())
