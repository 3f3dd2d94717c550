"""QLoRA: an adapter over weights of four bits, which bitsandbytes computes with on a CPU too, slowly."""

import pytest
import torch
from tinyvlm import PROBLEMS

from mmlora.adapters.files import load_adapter, load_vlm, save_adapter
from mmlora.adapters.lora import AdapterError, attach, merge
from mmlora.adapters.towers import towers
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.samples import Samples
from mmlora.evaluation.answering import evaluate
from mmlora.models import vlm as models
from mmlora.models.precision import nf4_settings
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

bitsandbytes = pytest.importorskip("bitsandbytes")
ALL = list(range(len(PROBLEMS)))


@pytest.fixture
def load(gpu, monkeypatch, tmp_path):
    """`load()`: a fresh copy of a small SmolVLM in four bits, as on a card; its widths are multiples of NF4's blocks."""
    monkeypatch.setattr(models, "nf4", nf4_settings)
    # A CPU with AVX512-BF16 would repack weights in evaluation, and no gradient passes through these; a card never does.
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    vision = {**gpu.VISION, **small, "num_hidden_layers": 2, "image_size": 128}
    text = {**gpu.TEXT, **small, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16}
    folder = gpu.random_model(tmp_path / "model", vision, text)
    return lambda: load_vlm(str(folder), four_bit=True)


def losses(model, *sources) -> list[float]:
    with torch.no_grad():
        return [source.loss(model, ALL)[0].item() for source in sources]


@pytest.mark.filterwarnings("ignore:.*generations were cut")
def test_an_adapter_learns_over_four_bit_weights(load, tmp_path):
    vlm = load()
    assert sum(isinstance(module, bitsandbytes.nn.Linear4bit) for module in vlm.model.modules()) > 4 * 7
    stored, plain = towers(vlm.model).parameters, load_vlm(vlm.name)
    assert stored == towers(plain.model).parameters  # numbers, not bytes
    model = attach(vlm.model, rank=4, layers=(2, 3))
    samples = Samples(vlm, [taught(problem, "explanation_answer") for problem in PROBLEMS])
    cached = PrefixCache.build(model, samples, tmp_path / "cache")
    plain, ours = losses(model, samples, cached)
    assert ours == pytest.approx(plain, rel=1e-3)
    fit(model, cached, TrainSettings(steps=80, batch_size=4, learning_rate=1e-2), tmp_path / "run")
    learned = losses(model, samples)[0]
    assert learned < 0.9 * plain
    answers = evaluate(vlm.with_model(model), PROBLEMS, "generate", max_new_tokens=8, progress=False)
    assert all(answer.text for answer in answers)
    save_adapter(model, tmp_path / "adapter", {})
    fresh = load_adapter(load().model, tmp_path / "adapter")
    assert losses(fresh, samples)[0] == pytest.approx(learned, rel=1e-5)
    with pytest.raises(AdapterError, match="load the base without four_bit, then merge"):
        merge(model)
