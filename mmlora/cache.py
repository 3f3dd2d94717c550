"""Sources of training batches, one of which never computes a frozen activation twice.

Everything before the first trainable parameter is a pure function of the sample: the vision tower, the connector, the
embeddings and the decoder layers below the first adapter. `PrefixCache` runs them once per sample, keeps the hidden
states on disk (16 bits, memory-mapped) and trains from that boundary up. `Samples` is the same without the cache.

It works for any decoder of transformers, because the model's own forward does both halves: the lower one is stopped
at the boundary, the upper one finds its lower layers replaced by the states that were kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mmlora.errors import MMLoraError
from mmlora.memory import give_back, in_parts
from mmlora.models import base_model, decoder_layers
from mmlora.precision import mixed
from mmlora.samples import Samples, batch_loss, collate, on_device

STRIDE = 16  # tokens; batches' lengths are multiples of it, so that the memory of one step fits the next
BATCH = 32  # samples a forward pass while filling the cache: enough to keep two cores busy
FILES = ("hidden", "manifest.json")


class CacheError(MMLoraError):
    """A prefix cache that cannot be written or used; the message names the folder."""


def boundary(model) -> int:
    """The first decoder layer that holds a trainable parameter; everything before it can be cached.

    Raises `CacheError` when something outside the decoder's layers trains, or nothing does.
    """
    number = {id(p): i for i, layer in enumerate(decoder_layers(model)) for p in layer.parameters()}
    first = None
    for name, parameter in base_model(model).named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in number:
            raise CacheError(f"{name} is trainable and lies outside the decoder's layers: "
                             "train without the prefix cache")
        first = number[id(parameter)] if first is None else min(first, number[id(parameter)])
    if first is None:
        raise CacheError("no parameter is trainable, so there is no boundary: attach an adapter first")
    return first


class PrefixCache:
    """Hidden states at the boundary for every sample of a `Samples`, on disk in 16 bits.

    In float16, which has more digits, but in bfloat16 where a state is too large for it or the model computes in bfloat16.
    `build` fills or reuses a folder; `loss` trains from the boundary up and agrees with `Samples.loss`.
    """

    def __init__(self, folder: Path, manifest: dict, samples: Samples):
        self.fingerprint, self.boundary = manifest["key"], manifest["boundary"]
        self.ids, self.lengths, self.rows = samples.ids, samples.lengths, samples.rows
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.file, self.shape = folder / "hidden", (int(self.starts[-1]), manifest["width"])
        self.dtype = getattr(torch, manifest["dtype"])
        if self.file.stat().st_size != 2 * self.shape[0] * self.shape[1]:
            raise ValueError(f"{self.file.name} is cut short")

    @classmethod
    def build(cls, model, samples: Samples, folder: Path | str) -> PrefixCache:
        """Compute what is missing under `folder`; a cache of the same weights and samples is used again.

        Raises `CacheError` on a full or unwritable disk, or when the folder holds anything else; a half-written cache
        is never used, and an old one stays until the new one is complete.
        """
        folder, first = Path(folder), boundary(model)
        deep = getattr(getattr(base_model(model).config, "vision_config", None), "deepstack_visual_indexes", ())
        if first < len(deep):
            raise CacheError(f"this model adds what it sees to its first {len(deep)} decoder layers too: let the "
                             f"adapter begin at layer {len(deep)} or later, or train without the prefix cache")
        key = _key(model, samples, first)
        if found := cls._found(folder, key, samples):
            return found
        aside, training = folder.with_name(folder.name + ".part"), model.training
        try:
            if others := [p.name for p in folder.iterdir() if p.name not in FILES] if folder.exists() else []:
                raise CacheError(f"{folder} holds {others[0]}, so it is no prefix cache: name a new folder for it")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            if not _fill(model.eval(), samples, first, aside, key):
                print("some states are too large for float16; keeping all of them in bfloat16, which has fewer digits")
                _fill(model, samples, first, aside, key, torch.bfloat16)
            shutil.rmtree(folder, ignore_errors=True)
            aside.replace(folder)
        except CacheError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            need = sum(samples.lengths) * base_model(model).config.get_text_config().hidden_size * 2 / 1e6
            raise CacheError(
                f"could not write the prefix cache to {folder}: {error.strerror or error}; it needs {need:.0f} MB, "
                "free some space or use fewer training problems"
            ) from error
        finally:
            model.train(training)
        return cls(folder, json.loads((folder / "manifest.json").read_text()), samples)

    @classmethod
    def _found(cls, folder: Path, key: str, samples: Samples) -> PrefixCache | None:
        """The cache in `folder` if it is whole and of these weights and samples; says so if it is not."""
        if not (folder / "manifest.json").is_file():
            return None
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if manifest["key"] == key:
                return cls(folder, manifest, samples)
            reason = "was made from other weights or samples"
        except (OSError, ValueError, KeyError) as error:
            reason = f"is damaged ({error})"
        print(f"the prefix cache in {folder} {reason}; building it anew")
        return None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hidden(self) -> np.memmap:
        """The bits of the hidden states, int16 (all tokens, width); mapped anew, so that pages read leave the memory."""
        return np.memmap(self.file, np.int16, "r", shape=self.shape)

    def states(self, indices: list[int]) -> list[torch.Tensor]:
        """What was kept of these samples, (length, width) each."""
        kept = self.hidden
        return [torch.from_numpy(np.array(kept[self.starts[i] : self.starts[i + 1]])).view(self.dtype) for i in indices]

    def loss(self, model, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss over the supervised tokens of these samples, and their number."""
        batch = on_device(model, collate([self.rows[i] for i in indices], stride=STRIDE))
        batch["input_ids"].zero_()  # only its shape counts: what it said is in the states that were kept
        states = pad_sequence(self.states(indices), batch_first=True).to(batch["labels"].device)
        states = nn.functional.pad(states, (0, 0, 0, batch["labels"].shape[1] - states.shape[1]))
        with _resuming(model, self.boundary, states):
            return batch_loss(model, batch)


class _Reached(Exception):
    """Ends a forward pass at the boundary; carries the hidden states."""


def _lower(model, batch: dict[str, torch.Tensor], first: int) -> torch.Tensor:
    """Hidden states (batch, length, width) that come to decoder layer `first`."""

    def stop(layer, inputs, named):
        raise _Reached(inputs[0] if inputs else named["hidden_states"])

    hook = decoder_layers(model)[first].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        base_model(model).model(**batch, use_cache=False)
    except _Reached as reached:
        return reached.args[0]
    finally:
        hook.remove()


class _Passed(nn.Module):
    """Stands for a decoder layer whose work is done."""

    def forward(self, hidden_states, *_, **__):
        return hidden_states


@contextmanager
def _resuming(model, first: int, states: torch.Tensor):
    """Inside, the model's forward passes begin at decoder layer `first` with `states` (batch, length, width)."""
    layers = decoder_layers(model)
    lower = list(layers[:first])

    def resume(layer, inputs, named):
        hidden = inputs[0] if inputs else named.pop("hidden_states")
        return (states.to(hidden.dtype), *inputs[1:]), named

    hook = layers[first].register_forward_pre_hook(resume, with_kwargs=True)
    for index in range(first):
        layers[index] = _Passed()
    try:
        yield
    finally:
        hook.remove()
        for index, layer in enumerate(lower):
            layers[index] = layer


def _key(model, samples: Samples, first: int) -> str:
    """Hash of the samples and of every frozen tensor below the boundary."""
    digest = hashlib.sha256(f"{samples.fingerprint} {first}".encode())
    core = base_model(model).model
    upper = {id(t) for layer in decoder_layers(model)[first:] for t in (*layer.parameters(), *layer.buffers())}
    for tensor in (*core.parameters(), *core.buffers()):
        if id(tensor) not in upper:
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.inference_mode()
def _fill(model, samples: Samples, first: int, folder: Path, key: str, dtype=torch.float16) -> bool:
    """Write the states of all samples; False, and an unfinished folder, where one is too large for `dtype`."""
    width = base_model(model).config.get_text_config().hidden_size
    starts = np.concatenate([[0], np.cumsum(samples.lengths)])
    order = sorted(range(len(samples)), key=lambda i: samples.lengths[i])
    if base_model(model).dtype == torch.bfloat16:
        dtype = torch.bfloat16

    def prefix(chosen: list[int]) -> torch.Tensor:
        batch = on_device(model, collate([samples[i] for i in chosen]))
        del batch["labels"]
        with mixed(batch["input_ids"].device):
            return _lower(model, batch, first).cpu()

    with open(folder / "hidden", "wb") as file, tqdm(total=len(samples), desc="frozen prefix", unit="sample") as bar:
        for chosen, hidden in in_parts(prefix, order, BATCH):
            if not hidden.isfinite().all():
                named = ", ".join(samples.ids[i] for i in chosen[:8])
                raise CacheError(f"states of one of the samples {named}, … are not finite in {hidden.dtype}: set "
                                 "MMLORA_PRECISION=float32 in the environment and begin anew, or choose another model")
            hidden = hidden.to(dtype)
            if not hidden.isfinite().all():
                return False
            hidden = hidden.view(torch.int16).numpy()
            for row, i in enumerate(chosen):
                file.seek(int(starts[i]) * width * 2)
                file.write(hidden[row, : samples.lengths[i]].tobytes())
            bar.update(len(chosen))
            give_back()
    (folder / "manifest.json").write_text(json.dumps(
        {"key": key, "boundary": first, "width": width, "dtype": str(dtype).removeprefix("torch.")}))
    return True
