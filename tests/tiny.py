"""Tiny random models and data for tests, importable from child processes too."""

from __future__ import annotations

import os
import signal

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mmlora.adapters import files, lora
from mmlora.training import checkpoint
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

VOCABULARY, PROMPT = 61, 4


def decoder(seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 4 layers and 25,000 parameters, in evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def adapted(**options):
    """The tiny decoder with an adapter on its upper two layers and dropout, so that random states matter."""
    return lora.attach(decoder(), **{"rank": 4, "layers": (2, 3), "dropout": 0.1, **options})


class Tokens:
    """A source of random token sequences; the first four tokens of each are its prompt."""

    def __init__(self, count: int = 40, seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(6, 24, (count,), generator=generator).tolist()
        self.rows = [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in self.lengths]
        self.ids, self.fingerprint = [f"sample-{i}" for i in range(count)], f"tokens {count} {seed}"

    def __len__(self):
        return len(self.rows)

    def loss(self, model, indices):
        ids = torch.nn.utils.rnn.pad_sequence([self.rows[i] for i in indices], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence([self.rows[i] for i in indices], batch_first=True, padding_value=-100)
        labels[:, :PROMPT] = -100
        logits, targets = model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), int((targets >= 0).sum())


SETTINGS = TrainSettings(steps=12, batch_size=8, learning_rate=5e-3, checkpoint_minutes=0)  # saves at every step


def train_here(folder, *, resume: bool = False, on_step=None):
    torch.set_num_threads(1)
    model = adapted()
    return model, fit(model, Tokens(), SETTINGS, folder, resume=resume, on_step=on_step)


def train_and_die(folder, moment: str, count: int):
    """Train until SIGKILL: at step `count`, or when a save calls `fsync` or `replace` for the `count`-th time."""

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "step":
        return train_here(folder, on_step=lambda record: record["step"] == count and die())
    calls, original = iter(range(1, 10**6)), getattr(os, moment)

    def dying(*arguments):
        if next(calls) == count:
            die()
        return original(*arguments)

    setattr(checkpoint.os, moment, dying)
    train_here(folder)


def logits(model, seed: int = 5) -> torch.Tensor:
    ids = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model(input_ids=ids).logits


def write_logits(adapter, file):
    """What a stranger gets from a saved adapter, written for comparison."""
    torch.set_num_threads(1)
    save_file({"logits": logits(files.load_adapter(decoder(), adapter))}, file)
