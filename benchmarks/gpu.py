"""Does the whole chain work on this card, and how fast? On SmolVLM-256M's true architecture with random weights.

    python benchmarks/gpu.py

Trains with and without the cached prefix, is interrupted and resumed, answers, saves, loads and merges: in bfloat16 where the
card has it, and in float16 with the loss scaler. Writes results/gpu/CARD-PRECISION.json. Random weights make the speed and the
memory of the real ones, but no accuracy, so none is recorded. The words come from SmolBridge's tokenizer, which has to be here
(`mmlora weights fetch`), because the machines with a card are often those without a network.
"""

from __future__ import annotations

import mmlora  # noqa: F401 - before torch, so that its threads share the cores

# isort: split
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Idefics3ImageProcessor,
    Idefics3Processor,
)

from mmlora import minisqa
from mmlora.adapters.files import load_adapter, load_vlm, save_adapter
from mmlora.adapters.lora import attach, merge
from mmlora.encoding.loss import on_device
from mmlora.encoding.prefix import PrefixCache
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import collate
from mmlora.encoding.samples import Samples
from mmlora.evaluation.answering import evaluate
from mmlora.models.precision import mixed
from mmlora.models.vlm import VLM
from mmlora.paths import RESULTS
from mmlora.reporting import machine as metrics
from mmlora.smolbridge import folder as smolbridge
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

#: huggingface.co/HuggingFaceTB/SmolVLM-256M-Instruct, config.json: 256 million parameters.
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": 49280,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CHAT = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:{% for part in m.content %}"
    "{{ '<image>' if part.type == 'image' else ' ' + part.text }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    train: int = 512  # problems: enough that speed no longer depends on them
    test: int = 64
    steps: int = 96  # twelve times eight: past the warm-up of the card and of the scaler


class Interrupted(Exception):
    """The run is stopped on purpose."""


def random_model(folder: Path, vision: dict = VISION, text: dict = TEXT) -> Path:
    """SmolVLM with random weights and its processor, as `load_vlm` takes it."""
    words = AutoTokenizer.from_pretrained(smolbridge())
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *cells]
    words.add_special_tokens({"additional_special_tokens": marks})
    words.eos_token = "<end_of_utterance>"
    pixels, scale = vision["image_size"], 4
    size = {"size": {"longest_edge": pixels}, "max_image_size": {"longest_edge": pixels}}
    pictures = Idefics3ImageProcessor(**size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    tokens = (pixels // vision["patch_size"] // scale) ** 2
    processor = Idefics3Processor(pictures, words, image_seq_len=tokens, chat_template=CHAT)
    config = AutoConfig.for_model(
        "idefics3",
        scale_factor=scale,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
        vision_config=vision,
        text_config=text,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(vlm: VLM, samples: Samples) -> torch.Tensor:
    batch = on_device(vlm.model, collate([samples[i] for i in range(min(8, len(samples)))]))
    mask = batch["attention_mask"].bool()
    del batch["labels"]
    with mixed(vlm.model.device):
        return vlm.model.eval()(**batch).logits[mask].float()


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return round(((first - second).abs().max() / first.abs().max()).item(), 5)


def measure(folder: Path, work: Path, sizes: Sizes) -> dict:
    """The chain from the model in `folder`; `work` is for what it writes."""
    vlm = load_vlm(str(folder))
    parameters = sum(p.numel() for p in vlm.model.parameters())
    model = attach(vlm.model)
    trained = vlm.with_model(model)
    samples = Samples(
        vlm, [taught(problem, "explanation_answer") for problem in minisqa.generate("train", sizes.train)]
    )
    print(f"{sum(samples.lengths)} tokens")  # encoded now, so that neither training pays for it
    cached = PrefixCache.build(model, samples, work / "cache")
    settings = TrainSettings(steps=sizes.steps, checkpoint_minutes=0.2)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def begin_again():
        with torch.no_grad():
            for name, value in start.items():
                model.get_parameter(name).copy_(value)

    def interrupt(record: dict):
        if record["step"] == sizes.steps // 2:
            raise Interrupted

    plain = fit(model, samples, settings, work / "plain")
    begin_again()
    whole = fit(model, cached, settings, work / "whole")
    begin_again()
    try:
        fit(model, cached, settings, work / "resumed", on_step=interrupt)
    except Interrupted:
        resumed = fit(model, cached, settings, work / "resumed", resume=True)
    peak = metrics.peak_memory_gb()  # of training
    answers = {
        method: evaluate(trained, list(minisqa.generate("test", sizes.test)), method, max_new_tokens=64)
        for method in ("likelihood", "letter", "generate")
    }
    ours = logits(trained, samples)
    save_adapter(model, work / "adapter", {})
    fresh = load_vlm(str(folder))
    loaded = logits(fresh.with_model(load_adapter(fresh.model, work / "adapter")), samples)
    merged = logits(vlm.with_model(merge(model)), samples)
    return {
        "model": "SmolVLM-256M's architecture, random weights",
        "parameters": parameters,
        "samples_per_second": {
            "cached": round(whole.samples_per_second, 2),
            "plain": round(plain.samples_per_second, 2),
        },
        "loss": {
            "first": whole.records[0]["loss"],
            "last": whole.records[-1]["loss"],
            "last, interrupted and resumed": resumed.records[-1]["loss"],
        },
        "skipped_steps": sum(record["gradient_norm"] is None for record in whole.records),
        "answered": {method: len(found) for method, found in answers.items()},
        "logits_apart": {"loaded": apart(ours, loaded), "merged": apart(ours, merged)},
        "peak_memory_gb": peak,
        "settings": {**asdict(sizes), **asdict(settings)},
    }


def record(git: dict):
    """Measure in the precision that MMLORA_PRECISION names, and write the file."""
    with tempfile.TemporaryDirectory() as work:
        found = measure(random_model(Path(work) / "model"), Path(work), Sizes()) | metrics.circumstances(git)
    card = found["machine"]["gpu"].replace(" ", "_")
    target = RESULTS / "gpu" / f"{card}-{found['machine']['precision']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def main():
    if not torch.cuda.is_available():
        sys.exit("this measures a card, and torch finds none here")
    state = json.dumps(metrics.git_state())  # before the first record changes it
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    for name in (
        ("bfloat16", "float16") if native else ("float16",)
    ):  # in processes: accelerate keeps one precision in each
        command = [sys.executable, __file__, "record", state]
        subprocess.run(command, env={**os.environ, "MMLORA_PRECISION": name}, check=True)


if __name__ == "__main__":
    record(json.loads(sys.argv[2])) if sys.argv[1:2] == ["record"] else main()
