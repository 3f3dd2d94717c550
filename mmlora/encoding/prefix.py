"""A training set that never computes a frozen activation twice.

Everything before the first trainable parameter is a pure function of the sample: the vision tower, the connector, the
embeddings and the decoder layers below the first adapter. `PrefixCache` runs them once per sample, keeps the hidden
states on disk (16 bits, memory-mapped) and trains from that boundary up. `Samples` is the same without the cache.

Where that boundary is, and how the model's own forward stops and begins there, is `boundary.py`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mmlora.encoding import rows
from mmlora.encoding.boundary import CacheError, boundary, lower, resuming
from mmlora.encoding.loss import Supervised, forward, needs_own_loss, on_device, sft
from mmlora.encoding.sample import Sample, collate
from mmlora.encoding.samples import Samples, without_pixels
from mmlora.files import REFUSALS, ROOM
from mmlora.models import processes
from mmlora.models.base import tensor_bytes
from mmlora.models.memory import HELD, give_back, in_parts
from mmlora.models.precision import finite, mixed, precision
from mmlora.models.vlm import base_model, decoder_layers

STRIDE = 4  # tokens; batches' lengths are multiples of it, so that the memory of one step fits the next
BATCH = 32  # samples a forward pass while filling the cache: enough to keep two cores busy
PASS = 2**26  # bytes of them: what a vision tower computes of large pictures would take more memory than training
WINDOW = 256  # samples that are encoded and sorted by length at a time; fewer where their pictures are large (`HELD`)
MANY, TOLD = 1000, 32  # samples that could fill a disk, and how many of them tell how large the cache will be
FILES = ("hidden", "rows.safetensors", "manifest.json")


class NoRoom(CacheError):
    """A prefix cache that would be larger than what the disk has free."""


class PrefixCache:
    """Hidden states at the boundary for every sample of a `Samples`, on disk in 16 bits.

    In float16, which has more digits, but in bfloat16 where a state is too large for it or the model computes in bfloat16.
    `build` fills or reuses a folder; `loss` trains from the boundary up and agrees with `Samples.loss`.
    """

    def __init__(self, folder: Path, manifest: dict, samples: Samples):
        self.samples, self.ids, self.fingerprint = samples, samples.ids, samples.fingerprint
        self.boundary = manifest["boundary"]
        self.own_loss: bool | None = None  # see `needs_own_loss`
        self.rows, self.sums = rows.read(folder / "rows.safetensors", self.ids, manifest["rows"])
        self.checked = [False] * len(self.rows)  # each is compared with its checksum once
        self.lengths = [len(row) for row in self.rows]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.file, self.shape = folder / "hidden", (int(self.starts[-1]), manifest["width"])
        self.dtype = getattr(torch, manifest["dtype"])
        if self.file.stat().st_size != 2 * self.shape[0] * self.shape[1]:
            raise ValueError(f"{self.file.name} is cut short")

    @classmethod
    def build(cls, model: nn.Module, samples: Samples, folder: Path | str) -> PrefixCache:
        """Compute what is missing under `folder`; a cache of the same weights and samples is used again.

        Raises `NoRoom` where the disk has too little of it, `CacheError` on an unwritable disk, when the folder holds anything
        else, and for sharded weights; a half-written cache is never used, and an old one stays until the new one is complete.
        """
        if processes.sharded():
            raise CacheError("weights that are spread over processes are not cached: train on the `Samples` themselves")
        folder, first = Path(folder), boundary(model)
        deep = getattr(getattr(base_model(model).config, "vision_config", None), "deepstack_visual_indexes", ())
        if first < len(deep):
            raise CacheError(
                f"this model adds what it sees to its first {len(deep)} decoder layers too: let the "
                f"adapter begin at layer {len(deep)} or later, or train without the prefix cache"
            )
        key = _key(model, samples, first)
        found = cls._found(folder, key, samples)
        if all(processes.gathered(found is not None)) and found:
            return found
        aside, training = folder.with_name(folder.name + ".part"), model.training
        try:
            if others := [p.name for p in folder.iterdir() if p.name not in FILES] if folder.exists() else []:
                raise CacheError(f"{folder} holds {others[0]}, so it is no prefix cache: name a new folder for it")
            if processes.first():
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            processes.wait()
            _refuse_full_disk(model, samples, aside)
            if not _fill(model.eval(), samples, first, aside, key):
                print("some states are too large for float16; keeping all of them in bfloat16, which has fewer digits")
                _fill(model, samples, first, aside, key, torch.bfloat16)
            if processes.first():
                shutil.rmtree(folder, ignore_errors=True)
                aside.replace(folder)
            processes.wait()
        except OSError as error:
            helps = REFUSALS.get(error.errno or 0, ROOM)
            raise (NoRoom if helps == ROOM else CacheError)(
                f"could not write the prefix cache to {folder}: {error.strerror or error}; {helps} or use fewer training problems"
            ) from error
        finally:
            if processes.first():
                shutil.rmtree(aside, ignore_errors=True)
            model.train(training)
        return cls(folder, rows.manifest(folder), samples)

    @classmethod
    def _found(cls, folder: Path, key: str, samples: Samples) -> PrefixCache | None:
        """The cache in `folder` if it is whole and of these weights and samples; says so if it is not."""
        try:
            if not (folder / "manifest.json").is_file():
                return None
            if (manifest := rows.manifest(folder))["key"] == key:
                found = cls(folder, manifest, samples)
                for i in range(len(found)):
                    found.states([i])
                return found
            reason = "was made from other weights, samples or numbers"
        except (OSError, ValueError, TypeError, KeyError, SafetensorError, CacheError) as error:
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
        """What was kept of these samples, (length, width) each. Raises `CacheError` where it has changed on the disk."""
        kept = self.hidden
        found = [np.array(kept[self.starts[i] : self.starts[i + 1]]) for i in indices]
        for i, bits in zip(indices, found):
            if not self.checked[i] and crc32(bits) != self.sums[i]:
                raise CacheError(
                    f"{self.file} is not what was written, at sample {self.ids[i]}: remove {self.file.parent} and cache the "
                    "samples again"
                )
            self.checked[i] = True
        return [torch.from_numpy(bits).view(self.dtype) for bits in found]

    def forward(self, model: nn.Module, indices: list[int]) -> Supervised:
        """`Samples.forward`, from the boundary up."""
        if self.own_loss is None:
            with self._resumed(model, indices[:1]) as one:
                self.own_loss = needs_own_loss(model, one)
        with self._resumed(model, indices) as batch:
            return forward(model, batch, self.own_loss)

    def loss(self, model: nn.Module, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Objective `sft`: cross-entropy summed over the supervised tokens of these samples (float32, 0-dim), and their number."""
        return sft(self.forward(model, indices))

    @contextmanager
    def _resumed(self, model: nn.Module, indices: list[int]) -> Iterator[dict[str, torch.Tensor]]:
        """The batch of these samples; inside, the model's forward passes begin at the boundary with their states."""
        batch = on_device(model, collate([self.rows[i] for i in indices], stride=STRIDE))
        batch["input_ids"].zero_()  # only its shape counts: what it said is in the states that were kept
        states = pad_sequence(self.states(indices), batch_first=True).to(batch["labels"].device)
        states = nn.functional.pad(states, (0, 0, 0, batch["labels"].shape[1] - states.shape[1]))
        with resuming(model, self.boundary, states):
            yield batch


def cached(model: nn.Module, samples: Samples, folder: Path) -> PrefixCache | Samples:
    """`PrefixCache.build`, or the samples themselves where the disk has no room for it, and says so."""
    try:
        return PrefixCache.build(model, samples, folder)
    except NoRoom as full:
        if processes.first():
            print(f"{full}. Training goes on without it, which is slower")
        return samples


def _key(model: nn.Module, samples: Samples, first: int) -> str:
    """Hash of the samples, of every frozen tensor below the boundary, and of the numbers that are multiplied."""
    digest = hashlib.sha256(f"{samples.fingerprint} {first} {precision()}".encode())
    core = base_model(model).model
    upper = {id(t) for layer in decoder_layers(model)[first:] for t in (*layer.parameters(), *layer.buffers())}
    for tensor in (*core.parameters(), *core.buffers()):
        if id(tensor) not in upper:
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _fill(
    model: nn.Module, samples: Samples, first: int, folder: Path, key: str, dtype: torch.dtype = torch.float16
) -> bool:
    """Write the states of all samples; False, and an unfinished folder, where one is too large for `dtype`.

    Every process writes a stretch of the samples, and the first one joins them.
    """
    if base_model(model).dtype == torch.bfloat16:
        dtype = torch.bfloat16
    number, width = processes.count(), base_model(model).config.get_text_config().hidden_size
    ends = [len(samples) * i // number for i in range(number + 1)]
    stretch = range(ends[processes.index()], ends[processes.index() + 1])
    with open(folder / f"hidden-{processes.index()}", "wb") as file:
        kept = _written(model, samples, stretch, first, file, width, dtype)
    stretches = processes.gathered(kept)
    if any(part is None for part in stretches):
        return False
    if processes.first():
        (folder / "hidden-0").replace(folder / "hidden")
        for part in (folder / f"hidden-{i}" for i in range(1, number)):
            with open(part, "rb") as ours, open(folder / "hidden", "ab") as whole:
                shutil.copyfileobj(ours, whole)
            part.unlink()
        kept_rows, sums = zip(*(row for part in stretches for row in part or ()))
        digest = rows.write(kept_rows, sums, folder / "rows.safetensors")
        numbers = {"boundary": first, "width": width, "dtype": str(dtype).removeprefix("torch.")}
        rows.write_manifest(folder, {"key": key, **numbers, "rows": digest})
    return True


@torch.inference_mode()
def _written(
    model: nn.Module, samples: Samples, stretch: range, first: int, file: BinaryIO, width: int, dtype: torch.dtype
) -> list[tuple[Sample, int]] | None:
    """Write the states of this stretch in order; return its rows with their states' checksums, or None where a state is too
    large for `dtype`."""
    kept: list[tuple[Sample, int]] = []

    def prefix(part: Sequence[tuple[int, Sample]]) -> torch.Tensor:
        batch = on_device(model, collate([sample for _, sample in part]))
        del batch["labels"]
        with mixed(batch["input_ids"].device):
            return lower(model, batch, first).cpu()

    with tqdm(total=len(stretch), desc="frozen prefix", unit="sample", disable=not processes.first()) as bar:
        for encoded in _windows(samples, stretch):
            starts = file.tell() // (2 * width) + np.concatenate([[0], np.cumsum([len(s) for s in encoded])])
            placed = sorted(zip(starts.tolist(), encoded), key=lambda pair: len(pair[1]))
            sums: dict[int, int] = {}
            few = min(BATCH, max(1, PASS // max(sample.nbytes for sample in encoded)))
            for part, hidden in in_parts(prefix, placed, few):
                if not hidden.isfinite().all():
                    raise _not_finite([sample for _, sample in part], hidden.dtype)
                hidden = hidden.to(dtype)
                if not hidden.isfinite().all():
                    return None
                for (start, sample), states in zip(part, hidden.view(torch.int16).numpy()):
                    file.seek(start * width * 2)
                    file.write(content := states[: len(sample)].tobytes())
                    sums[start] = crc32(content)
                bar.update(len(part))
                give_back()
            file.seek(int(starts[-1]) * width * 2)
            kept += [(without_pixels(sample), sums[start]) for start, sample in zip(starts.tolist(), encoded)]
    return kept


def _windows(samples: Samples, stretch: range) -> Iterator[list[Sample]]:
    """The samples of this stretch, encoded, as many at a time as may lie in memory together."""
    window: list[Sample] = []
    held = 0
    for i in stretch:
        window.append(samples[i])
        held += window[-1].nbytes
        if len(window) == WINDOW or held > HELD or i == stretch[-1]:
            yield window
            window, held = [], 0


def _refuse_full_disk(model: nn.Module, samples: Samples, folder: Path) -> None:
    """Raise `NoRoom` before the work begins, told from a few samples; few altogether fill no disk."""
    if len(samples) < MANY:
        return
    few = range(0, len(samples), max(1, len(samples) // TOLD))
    tokens = sum(len(samples[i]) for i in few) * len(samples) / len(few)
    needed = 2 * tokens * base_model(model).config.get_text_config().hidden_size
    if processes.count() > 1:  # a stretch is copied before it is given up
        needed *= 1 + 1 / processes.count()
    free = min(processes.gathered(shutil.disk_usage(folder).free))
    if needed > free:
        raise NoRoom(
            f"the prefix cache of {len(samples):,} samples takes about {needed / 1e9:.1f} GB, and {folder.parent} has "
            f"{free / 1e9:.1f} GB free: free some space, use fewer training problems, or name another folder"
        )


def _not_finite(part: Sequence[Sample], dtype: torch.dtype) -> CacheError:
    names = ", ".join(sample.id for sample in part[:8])
    return CacheError(f"states of one of the samples {names}, … are not finite in {dtype}; {finite()}")
