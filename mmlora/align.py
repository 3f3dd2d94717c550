"""The alignment run: teach SmolBridge's connector to speak the decoder's language, once, from picture captions.

    python -m mmlora.align --minutes 40

Stage one of LLaVA (arXiv 2304.08485): the model sees a picture and must write its caption. The connector trains in
full, the decoder's upper layers through a low-rank update that ships with it; no question and no answer is ever seen.
The pictures are drawn with another seed than any MiniSQA split. Writes `weights/smolbridge/bridge.safetensors`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from mmlora import minisqa
from mmlora.cache import BATCH, base_model, collate
from mmlora.lora import attach
from mmlora.loss import IGNORED, supervised_loss
from mmlora.models import VLM, load_vlm, smolbridge
from mmlora.paths import RUNS, WEIGHTS
from mmlora.prompts import encode_texts
from mmlora.scienceqa import Problem
from mmlora.train import TrainSettings, fit

SEED = 1_000_003  # far from the seeds that people use for MiniSQA
PROMPT = "Describe the picture."
RANK = 32  # the decoder's update is folded into the shipped base, so it may be larger than an adapter


class Captions:
    """Pictures and captions as a training source: frozen cells and lower hidden states are computed once.

    Cells are float16 (pictures, cells, cell_size) on disk; hidden states at the entry layer float16 (tokens, width).
    """

    def __init__(self, vlm: VLM, problems: list[Problem], folder: Path):
        core, self.entry = vlm.model.model, vlm.model.config.entry_layer
        self.ids = [p.id for p in problems]
        self.fingerprint = f"captions {SEED} {len(problems)} entry {self.entry}"
        folder.mkdir(parents=True, exist_ok=True)
        config = vlm.model.config
        side = config.image_size // 32
        size = core.connector.norm_in.normalized_shape[0]
        self.cells = np.memmap(folder / "cells.f16", np.float16, "w+", shape=(len(problems), side**2, size))
        self.hidden, self.labels, self.slots = ([None] * len(problems) for _ in range(3))
        for start in tqdm(range(0, len(problems), BATCH), desc="frozen parts", unit_scale=BATCH):
            self._fill(vlm, problems, start)
        self.lengths = [len(x) for x in self.labels]

    @torch.inference_mode()
    def _fill(self, vlm: VLM, problems: list[Problem], start: int) -> None:
        core, chosen = vlm.model.model, problems[start : start + BATCH]
        batch = collate([encode_texts(vlm.processor, p.id, PROMPT, p.image, p.caption) for p in chosen])
        self.cells[start : start + len(chosen)] = core.get_image_cells(batch["pixel_values"]).numpy()
        hidden = core.decode(
            core.embed(batch["input_ids"], None), batch["mm_token_type_ids"], batch["attention_mask"], last=self.entry
        )
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            self.hidden[start + row] = hidden[row, :length].half()
            self.labels[start + row] = batch["labels"][row, :length].clone()
            self.slots[start + row] = batch["mm_token_type_ids"][row, :length].clone()

    def __len__(self) -> int:
        return len(self.ids)

    def loss(self, model, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss over the caption tokens; gradients reach the connector and the upper layers."""
        core = base_model(model).model
        visual = core.connector(torch.from_numpy(self.cells[indices]).float())
        hidden = pad_sequence([self.hidden[i].float() for i in indices], batch_first=True)
        labels = pad_sequence([self.labels[i] for i in indices], batch_first=True, padding_value=IGNORED)
        slots = pad_sequence([self.slots[i] for i in indices], batch_first=True)
        mask = pad_sequence([torch.ones(len(self.hidden[i]), dtype=torch.long) for i in indices], batch_first=True)
        hidden = hidden.masked_scatter(slots.bool().unsqueeze(-1), visual)
        hidden = core.decode(hidden, slots, mask, first=self.entry)
        return supervised_loss(hidden, base_model(model).lm_head, labels)


def start_scale(vlm: VLM, source: Captions) -> None:
    """Let fresh visual tokens be as large as the hidden states they join, or the decoder sees noise or nothing."""
    sample = torch.cat([h[~s.bool()][1:] for h, s in zip(source.hidden[:64], source.slots[:64])]).float()
    vlm.model.model.connector.norm_out.weight.data.fill_(float(sample.pow(2).mean(-1).sqrt().median()))


def bridge_tensors(model) -> dict[str, torch.Tensor]:
    """The connector and, per adapted projection, `up` (scaled) and `down` of the decoder's update; float16."""
    core = base_model(model).model
    tensors = {f"connector.{name}": p.detach().half() for name, p in core.connector.state_dict().items()}
    for name, module in core.named_modules():
        if hasattr(module, "lora_A"):
            tensors[f"{name}.down"] = module.lora_A["default"].weight.detach().half()
            tensors[f"{name}.up"] = (module.lora_B["default"].weight * module.scaling["default"]).detach().half()
    return {name: t.contiguous() for name, t in tensors.items()}


def align(minutes: float = 40.0, pictures: int = 6000, out: Path = WEIGHTS / "smolbridge", entry: int = 20,
          merge: int = 2, learning_rate: float = 1e-3, resume: bool = False, work: Path = RUNS / "align"):
    """Align a fresh bridge on `pictures` captions for `minutes` of training and write it to `out`."""
    settings = TrainSettings(minutes=minutes, learning_rate=learning_rate, batch_size=16)
    vlm = load_vlm(str(smolbridge(bridge=None, entry_layer=entry, merge=merge)))
    skills = [s.name for s in minisqa.SKILLS.values() if next(minisqa.generate("train", 1, skills=[s.name])).image]
    made = minisqa.generate("train", pictures, seed=SEED, skills=skills)
    problems = list(tqdm(made, total=pictures, desc="pictures"))
    source = Captions(vlm, problems, work)
    layers = vlm.model.config.text_config.num_hidden_layers
    torch.manual_seed(settings.seed)
    start_scale(vlm, source)
    model = attach(vlm.model, rank=RANK, alpha=RANK, layers=range(entry, layers))
    base_model(model).model.connector.requires_grad_(True)
    log = fit(model, source, settings, work, resume=resume)
    out.mkdir(parents=True, exist_ok=True)
    save_file(bridge_tensors(model), out / "bridge.safetensors")
    shutil.copy(work / "log.jsonl", out / "align.jsonl")
    facts = {"settings": asdict(settings), "rank": RANK, "entry_layer": entry, "merge": merge, "pictures": pictures,
             "samples_seen": log.samples_seen, "seconds": round(log.seconds), "loss": log.records[-1]["loss"],
             "seed": SEED, "prompt": PROMPT}
    (out / "align.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(align)
