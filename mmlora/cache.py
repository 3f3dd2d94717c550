"""Sources of training batches, one of which never computes a frozen activation twice.

Everything before the first trainable parameter is a pure function of the sample: the vision tower, the connector, the
embeddings and the decoder layers below the first adapter. `PrefixCache` runs them once per sample, keeps the hidden
states on disk (float16, memory-mapped) and trains from that boundary up. `Samples` is the same without the cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mmlora.errors import MMLoraError
from mmlora.loss import IGNORED, supervised_loss
from mmlora.memory import give_back
from mmlora.models import VLM
from mmlora.precision import mixed
from mmlora.prompts import Format, Sample, encode
from mmlora.scienceqa import Problem

STRIDE = 16  # tokens; the batches' lengths are multiples of it
BATCH = 32  # samples a forward pass while filling the cache: enough to keep two cores busy
FILES = ("hidden.f16", "tokens.npz", "manifest.json")


class CacheError(MMLoraError):
    """A prefix cache that cannot be written or used; the message names the folder."""


def base_model(model):
    """The transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def boundary(model) -> int:
    """The first decoder layer that holds a trainable parameter; everything before it can be cached.

    Raises `CacheError` when something outside the decoder's layers trains, or nothing does.
    """
    first = None
    for name, parameter in base_model(model).named_parameters():
        if not parameter.requires_grad:
            continue
        if "language_model.layers." not in name:
            raise CacheError(f"{name} is trainable and lies outside the decoder's layers: train without the prefix cache")
        layer = int(name.split("language_model.layers.")[1].split(".")[0])
        first = layer if first is None else min(first, layer)
    if first is None:
        raise CacheError("no parameter is trainable, so there is no boundary: attach an adapter first")
    return first


def collate(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `labels`, `attention_mask`, `mm_token_type_ids` (batch, longest) and `pixel_values`."""

    def pad(tensors, value):
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    batch = {
        "input_ids": pad([s.input_ids for s in samples], 0),
        "labels": pad([s.labels for s in samples], IGNORED),
        "attention_mask": pad([torch.ones_like(s.input_ids) for s in samples], 0),
        "mm_token_type_ids": pad([s.mm_token_type_ids for s in samples], 0),
    }
    pixels = [s.pixel_values for s in samples if s.pixel_values is not None]
    if pixels:
        batch["pixel_values"] = torch.stack(pixels)
    return batch


class Samples:
    """Problems encoded on the fly: the plain path, and the reference that the cache is tested against."""

    def __init__(self, vlm: VLM, problems: list[Problem], format: Format):
        self.processor, self.problems, self.format = vlm.processor, problems, format
        digest = hashlib.sha256(format.encode())
        self.ids, self.lengths = [p.id for p in problems], []
        for problem in tqdm(problems, desc="encode", leave=False):
            sample = encode(vlm.processor, problem, format)
            self.lengths.append(len(sample.input_ids))
            _update(digest, sample)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Sample:
        return encode(self.processor, self.problems[index], self.format)

    def loss(self, model, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss over the supervised tokens of these samples, and their number."""
        model_device = next(model.parameters()).device
        batch = {k: v.to(model_device) for k, v in collate([self[i] for i in indices]).items()}
        labels = batch.pop("labels")
        hidden = base_model(model).model(**batch)[0]
        return supervised_loss(hidden, base_model(model).get_output_embeddings(), labels)


class PrefixCache:
    """Hidden states at the boundary, float16 on disk, for every sample of a `Samples`.

    `build` fills or reuses a folder; `loss` trains from the boundary up and agrees with `Samples.loss`.
    """

    def __init__(self, folder: Path, manifest: dict):
        tokens = dict(np.load(folder / "tokens.npz"))
        self.fingerprint, self.boundary = manifest["key"], manifest["boundary"]
        self.ids, self.lengths = manifest["ids"], manifest["lengths"]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.labels, self.slots = (torch.from_numpy(tokens[k]) for k in ("labels", "slots"))
        self.file, self.shape = folder / "hidden.f16", (int(self.starts[-1]), manifest["width"])
        if self.file.stat().st_size != 2 * self.shape[0] * self.shape[1]:
            raise ValueError(f"{self.file.name} is cut short")

    @classmethod
    def build(cls, model, samples: Samples, folder: Path | str) -> PrefixCache:
        """Compute what is missing under `folder`; a cache of the same weights and samples is used again.

        Raises `CacheError` on a full or unwritable disk, or when the folder holds anything else; a half-written cache
        is never used, and an old one stays until the new one is complete.
        """
        folder, first = Path(folder), boundary(model)
        key = _key(model, samples, first)
        if found := cls._found(folder, key):
            return found
        aside, training = folder.with_name(folder.name + ".part"), model.training
        try:
            if others := [p.name for p in folder.iterdir() if p.name not in FILES] if folder.exists() else []:
                raise CacheError(f"{folder} holds {others[0]}, so it is no prefix cache: name a new folder for it")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _fill(model.eval(), samples, first, aside, key)
            shutil.rmtree(folder, ignore_errors=True)
            aside.replace(folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            need = sum(samples.lengths) * base_model(model).config.get_text_config().hidden_size * 2 / 1e6
            raise CacheError(
                f"could not write the prefix cache to {folder}: {error.strerror or error}; it needs {need:.0f} MB, "
                "free some space or use fewer training problems"
            ) from error
        finally:
            model.train(training)
        return cls(folder, json.loads((folder / "manifest.json").read_text()))

    @classmethod
    def _found(cls, folder: Path, key: str) -> PrefixCache | None:
        """The cache in `folder` if it is whole and of these weights and samples; says so if it is not."""
        if not (folder / "manifest.json").is_file():
            return None
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if manifest["key"] == key:
                return cls(folder, manifest)
            reason = "was made from other weights or samples"
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            reason = f"is damaged ({error})"
        print(f"the prefix cache in {folder} {reason}; building it anew")
        return None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hidden(self) -> np.memmap:
        """The hidden states (all tokens, width), float16; mapped anew, so that pages once read do not stay in memory."""
        return np.memmap(self.file, np.float16, "r", shape=self.shape)

    def _rows(self, tensor, indices):
        return [tensor[self.starts[i] : self.starts[i + 1]] for i in indices]

    def batch(self, model, indices: list[int]) -> tuple[torch.Tensor, ...]:
        """Right-padded `hidden` (batch, length, width) in the model's dtype, `slots`, `mask`, `labels` (batch, length).

        `length` is a multiple of `STRIDE`, so that few sizes of tensors occur and the memory of one step fits the next.
        """
        parameter = next(model.parameters())
        rows = [torch.from_numpy(np.asarray(r, dtype=np.float32)) for r in self._rows(self.hidden, indices)]

        def pad(tensors, value=0):
            padded = pad_sequence(tensors, batch_first=True, padding_value=value)
            spare = (0, 0) * (padded.dim() - 2) + (0, -padded.shape[1] % STRIDE)
            return torch.nn.functional.pad(padded, spare, value=value).to(parameter.device)

        mask = pad([torch.ones(len(r), dtype=torch.long) for r in rows])
        labels = pad(self._rows(self.labels, indices), IGNORED)
        return pad(rows).to(parameter.dtype), pad(self._rows(self.slots, indices)), mask, labels

    def loss(self, model, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss over the supervised tokens of these samples, and their number."""
        hidden, slots, mask, labels = self.batch(model, indices)
        hidden = base_model(model).model.decode(hidden, slots, mask, first=self.boundary)
        return supervised_loss(hidden, base_model(model).get_output_embeddings(), labels)


def _update(digest, sample: Sample) -> None:
    for tensor in (sample.input_ids, sample.labels, sample.pixel_values):
        if tensor is not None:
            digest.update(tensor.numpy().tobytes())


def _key(model, samples: Samples, first: int) -> str:
    """Hash of the samples and of every frozen tensor below the boundary."""
    digest = hashlib.sha256(f"{samples.fingerprint} {first} {base_model(model).config.entry_layer}".encode())
    core = base_model(model).model
    for name, tensor in [*core.named_parameters(), *core.named_buffers()]:
        layer = name.split("language_model.layers.")
        if len(layer) == 1 or int(layer[1].split(".")[0]) < first:
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _lower(core, embeds: torch.Tensor, slots: torch.Tensor, mask: torch.Tensor, first: int) -> torch.Tensor:
    """Hidden states at layer `first` of right-padded rows. Below the entry layer the image slots only wait, so the
    text is closed up, run alone under its true positions, and put back."""
    if first > core.config.entry_layer or not slots.any():
        return core.decode(embeds, slots, mask, last=first)
    text = mask & ~slots
    where = text.int().argsort(dim=1, descending=True, stable=True)[:, : int(text.sum(1).max())]
    rows = torch.arange(len(embeds), device=embeds.device)[:, None]
    real = text[rows, where]
    hidden = core.decode(embeds[rows, where], torch.zeros_like(real), real, where, last=first)
    whole = embeds.clone()
    whole[rows.expand_as(where)[real], where[real]] = hidden[real]
    return whole


@torch.inference_mode()
def _fill(model, samples: Samples, first: int, folder: Path, key: str) -> None:
    core = base_model(model).model
    device = next(core.parameters()).device
    width = base_model(model).config.get_text_config().hidden_size
    starts = np.concatenate([[0], np.cumsum(samples.lengths)])
    labels, slots = (np.zeros(int(starts[-1]), dtype=np.int64) for _ in range(2))
    order = sorted(range(len(samples)), key=lambda i: samples.lengths[i])
    with open(folder / "hidden.f16", "wb") as file, tqdm(total=len(samples), desc="frozen prefix", unit="sample") as bar:
        for at in range(0, len(order), BATCH):
            chosen = order[at : at + BATCH]
            batch = collate([samples[i] for i in chosen])
            data = {k: v.to(device) for k, v in batch.items()}
            visual = core.get_image_features(data["pixel_values"]) if "pixel_values" in data else None
            embeds = core.embed(data["input_ids"], visual)
            with mixed(device):
                hidden = _lower(core, embeds, data["mm_token_type_ids"].bool(), data["attention_mask"].bool(), first)
            hidden = hidden.cpu().clamp(-65504, 65504).half().numpy()
            for row, i in enumerate(chosen):
                length, start = samples.lengths[i], int(starts[i])
                file.seek(start * width * 2)
                file.write(hidden[row, :length].tobytes())
                labels[start : start + length] = batch["labels"][row, :length]
                slots[start : start + length] = batch["mm_token_type_ids"][row, :length]
            bar.update(len(chosen))
            give_back()
    np.savez(folder / "tokens.npz", labels=labels, slots=slots)
    manifest = {"key": key, "boundary": first, "width": width, "ids": samples.ids, "lengths": samples.lengths}
    (folder / "manifest.json").write_text(json.dumps(manifest))
