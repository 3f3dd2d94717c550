"""Every supported architecture goes the whole way: labels, gradients, cache, answers, adapter, merge."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from safetensors.torch import load_file, save_file
from tinyvlm import PROBLEMS, picture

from mmlora.adapters import files, lora, towers
from mmlora.encoding.loss import IGNORED, on_device
from mmlora.encoding.prefix import CacheError, PrefixCache, boundary
from mmlora.encoding.prompts import target_text
from mmlora.encoding.sample import PromptError, collate, encode, encode_prompt, show_labels
from mmlora.encoding.samples import Samples
from mmlora.evaluation import answering, controls
from mmlora.models.resolution import ResolutionError, set_side, visual_tokens
from mmlora.models.vlm import VLM, load_vlm

#: Pictures of several shapes and sizes, and text among them.
MIXED = [PROBLEMS[0], PROBLEMS[1], replace(PROBLEMS[2], image=picture("olive", "red", (40, 96))), PROBLEMS[3],
         replace(PROBLEMS[0], id="small", image=picture("green", "black", (20, 24)))]
ALL = list(range(len(MIXED)))
NAMES = list(families.FAMILIES)


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def samples(family):
    return Samples(families.build(family), MIXED, "explanation_answer")


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
    return VLM(vlm.name, model, vlm.processor)


@torch.no_grad()
def logits(vlm: VLM) -> torch.Tensor:
    batch = on_device(vlm.model, collate([encode(vlm.processor, p, "answer") for p in MIXED]))
    mask = batch["attention_mask"].bool()
    del batch["labels"]
    return vlm.model(**batch).logits[mask]


def test_what_is_supervised_is_the_answer_and_its_end(family, vlm):
    tokenizer = vlm.processor.tokenizer
    for problem in MIXED:
        sample = encode(vlm.processor, problem, "explanation_answer")
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
    assert set(towers.gradient_norms(model)) == set(towers_of(family))
    assert all(p.grad.abs().max() > 0 for n, p in model.named_parameters() if p.requires_grad and "layers.3" in n and "language" in n)


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


def test_answers_in_a_batch_are_those_given_one_by_one(vlm):
    together = answering.evaluate(vlm, MIXED, batch_size=5, progress=False)
    alone = answering.evaluate(vlm, MIXED, batch_size=1, progress=False)
    for problem, a, b in zip(MIXED, together, alone, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-3)
        assert a.scores == pytest.approx([whole_row(vlm, problem, i) for i in range(len(problem.choices))], abs=1e-3)
    with pytest.warns(UserWarning, match="cut at 6 tokens"):
        together = answering.evaluate(vlm, MIXED, "generate", batch_size=5, max_new_tokens=6, progress=False)
        assert together == answering.evaluate(vlm, MIXED, "generate", batch_size=1, max_new_tokens=6, progress=False)
    assert len({p.text for p in together}) > 1


@torch.no_grad()
def whole_row(vlm: VLM, problem, choice: int) -> float:
    """The definition: one full row, no cache, no padding."""
    batch = collate([encode(vlm.processor, replace(problem, answer=choice), "answer")])
    labels = batch.pop("labels")[0, 1:]
    found = vlm.model(**batch).logits[0, :-1].log_softmax(-1)
    return float(found.gather(-1, labels.clamp(min=0)[:, None])[:, 0][labels != IGNORED].sum())


def test_what_is_seen_changes_what_is_likely(family, vlm):
    seen, blank = (answering.evaluate(vlm, p, progress=False)[0].scores for p in (MIXED[:1], controls.blanked(MIXED[:1])))
    assert (seen != pytest.approx(blank, abs=1e-6)) == families.FAMILIES[family].sees


def test_merged_it_says_the_same(vlm):
    base, wrapped = logits(vlm), adapted(vlm)
    expected = logits(wrapped)
    merged = VLM(vlm.name, wrapped.model.merge_and_unload(), vlm.processor)
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
    code = f"import sys; sys.path.insert(0, {str(here)!r}); import test_families; test_families.reload({str(tmp_path)!r})"
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
        found[name] = logits(VLM(name, files.load_adapter(vlm.model, Path(folder) / name), vlm.processor))
    save_file(found, Path(folder) / "logits.safetensors")


def test_qwen3_cannot_be_cached_where_it_still_adds_what_it_sees(tmp_path):
    vlm = adapted(families.build("qwen3-vl"), layers=(1, 3))
    with pytest.raises(CacheError, match="first 2 decoder layers too: let the adapter begin at layer 2"):
        PrefixCache.build(vlm.model, Samples(vlm, MIXED, "answer"), tmp_path / "cache")


def test_a_prompt_ends_where_the_answer_begins(vlm):
    for problem in MIXED:
        asked, taught = encode_prompt(vlm.processor, problem), encode(vlm.processor, problem, "answer")
        assert asked.input_ids.tolist() == taught.input_ids[: len(asked)].tolist()
        assert (taught.labels[: len(asked)] == IGNORED).all() and (taught.labels[len(asked) :] != IGNORED).all()


def test_half_precision_weights_train_an_adapter_in_float32(family, vlm, samples):
    """What a card does, done on the CPU: weights in bfloat16, products too, the adapter and its gradient in float32."""
    wrapped = adapted(replace(vlm, model=vlm.model.to(torch.bfloat16)), within=towers_of(family))
    with torch.autocast("cpu", torch.bfloat16):
        loss, tokens = samples.loss(wrapped.model, ALL)
    (loss / tokens).backward()
    for name, parameter in wrapped.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    assert min(towers.gradient_norms(wrapped.model).values()) > 0
    whole, _ = samples.loss(adapted(families.build(family), within=towers_of(family)).model, ALL)
    assert loss.item() == pytest.approx(whole.item(), rel=0.02)


# The size of pictures.


@pytest.mark.parametrize("name", ["smolvlm", "smolvlm2", "qwen2.5-vl", "qwen3-vl"])
def test_the_side_is_obeyed(name):
    large = replace(PROBLEMS[0], image=picture("red", "blue", (120, 96)))
    counts = []
    for side in (24, 64):
        vlm = families.build(name)
        set_side(vlm.processor, side)
        sample = encode(vlm.processor, large, "answer")
        counts.append(sample.input_ids.tolist().count(vlm.processor.image_token_id))
        assert counts[-1] == visual_tokens(vlm.processor, 120, 96)
        assert Samples(vlm, [large], "answer").loss(vlm.model, [0])[0].isfinite()
    assert 0 < counts[0] < counts[1]


def test_a_loaded_model_says_what_a_picture_costs(tmp_path, capsys):
    vlm = families.build("smolvlm")
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    counts = [visual_tokens(load_vlm(str(tmp_path), side=side).processor) for side in (32, 96)]
    assert counts[0] < counts[1]
    assert [line for line in capsys.readouterr().out.splitlines() if "takes" in line] == [
        f"a picture of 512 x 384 pixels takes {count} tokens" for count in counts]


@pytest.mark.parametrize("name", ["llava-1.5", "paligemma2"])
def test_a_fixed_side_says_so(name):
    with pytest.raises(ResolutionError, match="reads pictures at 32 x 32 pixels only"):
        set_side(families.build(name).processor, 64)


def test_what_does_not_fit_is_named_and_never_cut(vlm):
    long = replace(MIXED[0], id="long", hint="much " * 2500)
    with pytest.raises(PromptError, match=r"1 of 2 problems do not fit in the model's 2048 tokens: long \(\d+ tokens\)"):
        Samples(vlm, [MIXED[0], long], "answer")
