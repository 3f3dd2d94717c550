"""The alignment run: teach SmolBridge's connector to speak the decoder's language, once, from picture captions.

    python -m mmlora.align --minutes 40

Stage one of LLaVA (arXiv 2304.08485): the model sees a picture and must write its caption. The connector trains in
full, the decoder's upper layers through a low-rank update that ships with it; no question and no answer is ever seen.
The pictures are drawn with another seed than any MiniSQA split. Writes `weights/smolbridge/bridge.safetensors`.
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
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from mmlora import minisqa
from mmlora.cache import BATCH, PrefixCache, Samples, base_model
from mmlora.lora import attach
from mmlora.loss import supervised_loss
from mmlora.models import load_vlm, smolbridge
from mmlora.paths import RUNS, WEIGHTS
from mmlora.prompts import Sample
from mmlora.train import TrainSettings, fit

SEED = 1_000_003  # far from the seeds that people use for MiniSQA
RANK = 32  # the decoder's update is folded into the shipped base, so it may be larger than an adapter


class _Texts(Samples):
    """Captions without their pictures: the slots stay empty, because their tokens change as the connector learns."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), pixel_values=None)


class Captions(PrefixCache):
    """Captions with hidden states cached up to the entry layer and pictures cached as the connector's input.

    `cells` is float16 (pictures, cells, cell_size), memory-mapped; `loss` puts fresh visual tokens into the slots.
    """

    cells: np.ndarray

    def loss(self, model, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss over the caption tokens; gradients reach the connector and the upper layers."""
        core = base_model(model).model
        hidden, slots, mask, labels = self.batch(model, indices)
        visual = core.connector(torch.from_numpy(self.cells[indices]).float())
        hidden = hidden.masked_scatter(slots.bool().unsqueeze(-1), visual)
        hidden = core.decode(hidden, slots, mask, first=self.boundary)
        return supervised_loss(hidden, base_model(model).lm_head, labels)


@torch.inference_mode()
def image_cells(vlm, pictures: list, file: Path) -> np.ndarray:
    """The connector's frozen input for every picture, computed once into `file`."""
    core = vlm.model.model
    shape = (len(pictures), core.connector.side**2, core.connector.norm_in.normalized_shape[0])
    if not file.is_file():
        aside = np.memmap(file.with_suffix(".part"), np.float16, "w+", shape=shape)
        for start in tqdm(range(0, len(pictures), BATCH), desc="pictures", unit_scale=BATCH, unit="picture"):
            pixels = vlm.processor.image_processor(pictures[start : start + BATCH], return_tensors="pt")["pixel_values"]
            aside[start : start + BATCH] = core.get_image_cells(pixels).numpy()
        aside.flush()
        file.with_suffix(".part").replace(file)
    return np.memmap(file, np.float16, "r", shape=shape)


def start_fresh(model, captions: Captions) -> None:
    """Let fresh visual tokens be as large as the hidden states they join, or the decoder sees noise or nothing."""
    hidden, slots, mask, _ = captions.batch(model, range(64))
    scale = hidden[mask.bool() & ~slots.bool()].pow(2).mean(-1).sqrt().median()
    base_model(model).model.connector.norm_out.weight.data.fill_(float(scale))


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


def align(
    minutes: Annotated[float, typer.Option(help="of training; preparing 5,000 pictures takes about ten more")] = 34.0,
    pictures: int = 5000, learning_rate: float = 1e-3,
    start: Annotated[Path | None, typer.Option(help="go on from this bridge.safetensors")] = None,
    seed: Annotated[int, typer.Option(help="of the pictures; another one when going on")] = SEED,
    entry: Annotated[int, typer.Option(help="decoder layer that the visual tokens enter at")] = 20,
    merge: Annotated[int, typer.Option(help="cells a side that make one visual token: 1, 2 or 4")] = 2,
    out: Path = WEIGHTS / "smolbridge", work: Path = RUNS / "align", resume: bool = False,
):
    """Align the bridge on `pictures` captions and write bridge.safetensors, its log and its settings to `out`."""
    vlm = load_vlm(str(smolbridge(bridge=None, entry_layer=entry, merge=merge)))
    seeing = [s for s in minisqa.SKILLS if next(minisqa.generate("train", 1, skills=[s])).image]
    problems = list(tqdm(minisqa.generate("train", pictures, seed=seed, skills=seeing), total=pictures, desc="drawing"))
    cells = image_cells(vlm, [p.image for p in problems], _made(work) / f"cells-{seed}-{pictures}.f16")
    model = attach(vlm.model, rank=RANK, alpha=RANK, layers=range(entry, vlm.model.config.text_config.num_hidden_layers))
    captions = Captions.build(model, _Texts(vlm, problems, "caption"), work / f"captions-{seed}-{pictures}")
    captions.cells = cells
    start_from(model, start) if start else start_fresh(model, captions)
    base_model(model).model.connector.requires_grad_(True)
    settings = TrainSettings(minutes=minutes, learning_rate=learning_rate, batch_size=16)
    log = fit(model, captions, settings, work / "training", resume=resume)
    save_file(bridge_tensors(model), _made(out) / "bridge.safetensors")
    shutil.copy(work / "training" / "log.jsonl", out / "align.jsonl")
    facts = {**asdict(settings), "rank": RANK, "entry_layer": entry, "merge": merge, "pictures": pictures, "seed": seed,
             "start": start and str(start), "samples_seen": log.samples_seen, "seconds": round(log.seconds),
             "loss_of_last_50_steps": round(float(np.mean([r["loss"] for r in log.records[-50:]])), 4)}
    (out / "align.json").write_text(json.dumps(facts, indent=1) + "\n")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    typer.run(align)
