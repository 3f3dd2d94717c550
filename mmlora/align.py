"""The alignment run: teach SmolBridge's bridge to speak the decoder's language, once, from picture captions.

    python -m mmlora.align --pictures 40000 --captions 6000 --minutes 25

First the bridge alone learns to read (`mmlora.reader`). Then comes stage one of LLaVA (arXiv 2304.08485): the model sees
a picture and must write its caption; the bridge trains on, the decoder's upper layers through a low-rank update that
ships with it. No question and no answer is ever seen, and the pictures are drawn with another seed than any MiniSQA
split. Writes `weights/smolbridge/bridge.safetensors`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmlora import minisqa
from mmlora.cache import PrefixCache, Samples, base_model
from mmlora.lora import attach
from mmlora.loss import supervised_loss
from mmlora.models import load_vlm, smolbridge
from mmlora.paths import RUNS, WEIGHTS
from mmlora.prompts import Sample
from mmlora.reader import ReadSettings, look, read, word_codes
from mmlora.scienceqa import Problem
from mmlora.train import TrainSettings, fit

SEED = 1_000_003  # far from the seeds that people use for MiniSQA
RANK = 32  # the decoder's update is folded into the shipped base, so it may be larger than an adapter


class _Texts(Samples):
    """Captions without their pictures: the slots stay empty, because their tokens change as the bridge learns."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), pixel_values=None)


class Captions(PrefixCache):
    """Captions with hidden states cached up to the entry layer and pictures cached as the bridge reads them.

    `seen` is float16 (pictures, cells * cell_width), memory-mapped; `loss` puts fresh visual tokens into the slots.
    """

    seen: np.ndarray

    def loss(self, model, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss over the caption tokens; gradients reach the bridge and the upper layers."""
        core = base_model(model).model
        hidden, slots, mask, labels = self.batch(model, indices)
        visual = core.connector.tokens(torch.from_numpy(self.seen[indices].astype(np.float32)))
        hidden = hidden.masked_scatter(slots.bool().unsqueeze(-1), visual)
        hidden = core.decode(hidden, slots, mask, first=self.boundary)
        return supervised_loss(hidden, base_model(model).lm_head, labels)


def introduce(model, captions: Captions) -> None:
    """Make freshly read visual tokens fit for the decoder they join.

    As large as its hidden states, or it sees noise or nothing; and each with a mark of its own as large as what it
    says, or attention cannot ask for the third one: what is read is alike in all of them.
    """
    connector = base_model(model).model.connector
    marks = torch.randn(connector.write.bias.shape, generator=torch.Generator().manual_seed(0))
    connector.write.bias.data += marks
    hidden, slots, mask, _ = captions.batch(model, range(64))
    scale = hidden[mask.bool() & ~slots.bool()].pow(2).mean(-1).sqrt().median()
    connector.norm_out.weight.data.fill_(float(scale))


def start_from(model, file: Path) -> None:
    """Take an earlier alignment's connector and update as the starting point, so that it goes on."""
    core, tensors = base_model(model).model, {name: t.float() for name, t in load_file(file).items()}
    connector = {n.removeprefix("connector."): t for n, t in tensors.items() if n.startswith("connector.")}
    core.connector.load_state_dict(connector)
    for name, module in core.named_modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].weight.data.copy_(tensors[f"{name}.down"])
            module.lora_B["default"].weight.data.copy_(tensors[f"{name}.up"] / module.scaling["default"])


def bridge_tensors(model) -> dict[str, torch.Tensor]:
    """The connector and, per adapted projection, `up` (scaled) and `down` of the decoder's update; float16."""
    core = base_model(model).model
    tensors = {f"connector.{name}": p.detach().half() for name, p in core.connector.state_dict().items()}
    for name, module in core.named_modules():
        if hasattr(module, "lora_A"):
            tensors[f"{name}.down"] = module.lora_A["default"].weight.detach().half()
            tensors[f"{name}.up"] = (module.lora_B["default"].weight * module.scaling["default"]).detach().half()
    return {name: t.contiguous() for name, t in tensors.items()}


def pictures_seen(vlm, count: int, seed: int, folder: Path, settle: bool) -> tuple[np.ndarray, list[str]]:
    """Draw `count` pictures of MiniSQA's image skills; what the bridge sees of each, and their captions.

    Kept in `folder` and used again. With `settle` the first pictures settle how the bridge describes a cell.
    """
    connector, texts = vlm.model.model.connector, []
    kept = load_file(folder / "describe.safetensors") if (folder / "captions.json").is_file() else {}
    if kept and (settle or torch.equal(kept["weight"], connector.describe.weight)):
        connector.describe.load_state_dict(kept)
        seen = np.memmap(folder / "seen.f16", np.float16, "r", shape=(count, connector.read.in_features))
        return seen, json.loads((folder / "captions.json").read_text())

    def drawn():
        skills = [s for s in minisqa.SKILLS if next(minisqa.generate("train", 1, skills=[s])).image]
        for problem in minisqa.generate("train", count, seed=seed, skills=skills):
            texts.append(problem.caption)
            yield problem.image

    seen = look(vlm, drawn(), count, _made(folder) / "seen.f16", settle)
    save_file(connector.describe.state_dict(), folder / "describe.safetensors")
    (folder / "captions.json").write_text(json.dumps(texts))
    return seen, texts


def stage_one(vlm, seen: np.ndarray, texts: list[str], file: Path, resume: bool) -> dict:
    """The bridge as it comes from reading, kept in `file`; with `resume` a kept one is taken. Returns what to record."""
    connector, settings = vlm.model.model.connector, ReadSettings()
    if not (resume and file.is_file()):
        embeddings = vlm.model.get_input_embeddings().weight
        codes = word_codes(vlm.processor.tokenizer, embeddings, texts, vlm.model.config.visual_tokens)
        errors = read(connector, seen, codes, settings)
        save_file(connector.state_dict(), file, metadata={"errors": json.dumps(errors)})
    connector.load_state_dict(load_file(file))
    with safe_open(file, "pt") as saved:
        return {"reading": asdict(settings), **json.loads(saved.metadata()["errors"])}


def align(
    pictures: Annotated[int, typer.Option(help="that the bridge learns to read from, 50 a second")] = 40_000,
    captions: Annotated[int, typer.Option(help="of them that the decoder learns to write, 15 a second to prepare")] = 6000,
    minutes: Annotated[float, typer.Option(help="of writing captions")] = 25.0, learning_rate: float = 1e-3,
    start: Annotated[Path | None, typer.Option(help="go on from this bridge.safetensors: only stage two")] = None,
    seed: Annotated[int, typer.Option(help="of the pictures; another one when going on")] = SEED,
    entry: Annotated[int, typer.Option(help="decoder layer that the visual tokens enter at")] = 20,
    tokens: Annotated[int, typer.Option(help="visual tokens a picture")] = 16,
    out: Path = WEIGHTS / "smolbridge", work: Path = RUNS / "align", resume: bool = False,
):
    """Align the bridge on captions of drawn pictures; bridge.safetensors, its log and its settings go to `out`."""
    vlm = load_vlm(str(smolbridge(bridge=None, entry_layer=entry, visual_tokens=tokens)))
    connector = vlm.model.model.connector
    model = attach(vlm.model, rank=RANK, alpha=RANK, layers=range(entry, vlm.model.config.text_config.num_hidden_layers))
    if start:
        start_from(model, start)
    count = captions if start else pictures
    seen, texts = pictures_seen(vlm, count, seed, work / f"pictures-{seed}-{count}", settle=not start)
    facts = {"rank": RANK, "entry_layer": entry, "visual_tokens": tokens, "pictures": len(seen), "seed": seed,
             "start": start and str(start), "captions": captions}
    if not start:
        facts |= stage_one(vlm, seen, texts, work / "read.safetensors", resume)
    blank = Image.new("RGB", (8, 8))  # only marks that there is a picture
    problems = [Problem(str(i), "", ("yes", "no"), 0, blank, caption=text) for i, text in enumerate(texts[-captions:])]
    source = Captions.build(model, _Texts(vlm, problems, "caption"), work / f"captions-{seed}")
    source.seen = seen[-captions:]
    if not start:
        introduce(model, source)
    for part in (connector.read, connector.write, connector.norm_out):
        part.requires_grad_(True)
    settings = TrainSettings(minutes=minutes, learning_rate=learning_rate, batch_size=4)
    log = fit(model, source, settings, work / "training", resume=resume)
    save_file(bridge_tensors(model), _made(out) / "bridge.safetensors")
    shutil.copy(work / "training" / "log.jsonl", out / "align.jsonl")
    facts |= {"writing": asdict(settings), "samples_seen": log.samples_seen, "seconds": round(log.seconds),
              "loss_of_last_50_steps": round(float(np.mean([r["loss"] for r in log.records[-50:]])), 4)}
    (out / "align.json").write_text(json.dumps(facts, indent=1) + "\n")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    typer.run(align)
