"""What both sides work on: one tiny random model in a folder, one set of problems, one set of settings."""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import families
import torch
from safetensors.torch import load_file
from tinyvlm import picture
from torch import nn

from mmlora.adapters.lora import attach
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.prompts import taught
from mmlora.encoding.sample import Sample
from mmlora.encoding.samples import Samples
from mmlora.models.vlm import VLM, decoder_layers, load_base
from mmlora.problems.load import load_problems

FAMILY, COLOURS = "smolvlm", ("red", "green", "blue", "olive")
STEPS, HALF, BATCH, RATE, RANK = 12, 6, 4, 2e-3, 4
ADAPTER = "adapter_model.safetensors"  # of both sides


@dataclass(frozen=True)
class World:
    """Made once, before any fault; a child works on its own copy."""

    base: Path  # the model's folder
    data: Path  # the problems' folder
    vlm: VLM
    lessons: list[Conversation]

    def samples(self) -> Samples:
        return Samples(self.vlm, self.lessons)

    def adapted(self, dropout: float = 0.1, seed: int = 0, rows: int | None = None) -> nn.Module:
        """The model with a fresh adapter on its upper half: the same for both sides. Only `rows` samples fit in memory."""
        model = attach(self.vlm.model, rank=RANK, layers=(2, 3), dropout=dropout, seed=seed)
        if rows is not None:
            short_of_memory(model, rows)
        return model

    def learned(self, seed: int) -> nn.Module:
        """The same with random products, as if trained."""
        model = self.adapted()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        return model


def make(folder: Path) -> World:
    """The model and the problems, written into `folder` and read from there."""
    families.save(families.build(FAMILY), folder / "base")
    (folder / "data").mkdir()
    rng = random.Random(0)
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        _write(folder / "data", split, count, rng)
    return read(folder)


def read(folder: Path) -> World:
    """What `make` wrote."""
    base, data = folder / "base", folder / "data"
    lessons = [taught(problem, "answer") for problem in load_problems(data, "train")]
    return World(base, data, load_base(base), lessons)


def _write(data: Path, split: str, count: int, rng: random.Random):
    rows = []
    for number in range(count):
        left, right = rng.sample(COLOURS, 2)
        row = {"id": f"{split}-{number}", "question": "Which colour is on the left?", "choices": list(COLOURS)}
        row |= {"answer": COLOURS.index(left), "solution": f"The left one is {left}.", "image": f"{split}-{number}.png"}
        picture(left, right, (60, 48)).save(data / row["image"])
        rows.append(row)
    (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


class Progress:
    """How far a training came, in a file that a kill leaves whole: one number a line."""

    def __init__(self, path: Path):
        self.path = path

    def began_step(self, number: int) -> None:
        self._add(f"step {number}")

    def saved(self, number: int) -> None:
        self._add(f"saved {number}")

    def _add(self, line: str):
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{line}\n".encode())
        os.close(handle)

    def read(self) -> dict[str, list[int]]:
        """The numbers of the steps begun and of the checkpoints finished."""
        found: dict[str, list[int]] = {"step": [], "saved": []}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            name, _, number = line.partition(" ")
            found[name].append(int(number))
        return found


class Poisoned(Samples):
    """The samples with one number of one picture replaced."""

    def __init__(self, world: World, at: int, value: float):
        super().__init__(world.vlm, world.lessons)
        self.at, self.value = at, value

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if index == self.at:
            sample.pictures["pixel_values"].view(-1)[7] = self.value
        return sample


def short_of_memory(model: nn.Module, rows: int) -> None:
    """From now on a forward pass of more than so many rows asks the allocator for more than any machine has."""

    def ask(module: nn.Module, inputs: tuple, named: dict):
        states = inputs[0] if inputs else named["hidden_states"]
        if len(states) > rows:
            torch.empty(2**62, dtype=torch.uint8)

    for layer in decoder_layers(model)[::3]:  # the first, which a cache computes, and the last, which a step does
        layer.register_forward_pre_hook(ask, with_kwargs=True)


def digest(tensors: dict[str, torch.Tensor] | list[torch.Tensor]) -> str:
    """One hash of the bits of all tensors, by name or in order."""
    named = tensors if isinstance(tensors, dict) else {str(i): t for i, t in enumerate(tensors)}
    made = hashlib.sha256()
    for name in sorted(named):
        tensor = named[name].detach().contiguous()
        made.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        made.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def end(adapter: Path) -> str:
    """The hash of an adapter's tensors as stored in its file."""
    return digest(load_file(adapter / ADAPTER))
