"""A connector that was aligned in a run: kept as a file, adopted by the model that it was aligned on.

LLaVA's first stage (arXiv 2304.08485): before an adapter learns to answer, the connector learns from captions what the
pictures of a task show. The model is another base from then on, with a hash of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import nn

from mmlora import guests
from mmlora.errors import MMLoraError
from mmlora.files import write_whole
from mmlora.models import base as bases
from mmlora.models import processes
from mmlora.models.vlm import VLM, base_model

Captioned = tuple[Image.Image, str]
Learn = Callable[
    [VLM, Sequence[Captioned], Iterable[Captioned], float, Path, int], tuple[dict[str, torch.Tensor], dict]
]
FILE, RECORD = "connector.safetensors", "align.json"
DIGEST = "connector_sha256"  # in the record
ALIGNED = "mmlora_connector"  # a base's attribute: the tensors that it adopted


class ConnectorError(MMLoraError):
    """A connector that is another's; the message says whose and what to do."""


def own_way(vlm: VLM) -> Any:
    """The package of this model where it aligns and adopts connectors in its own way, or None."""
    package = guests.guest("models", vlm.model.config.model_type)
    return package if hasattr(package, "learn_to_read") else None


def aligned(
    vlm: VLM,
    captioned: Sequence[Captioned],
    further: Iterable[Captioned],
    minutes: float,
    folder: Path,
    otherwise: Learn,
    seed: int = 0,
) -> VLM:
    """The model with a connector that learned to read these pictures; kept in `folder` and used again.

    In its own way, or `otherwise`, which takes all processes. `align.json` in the folder says how it learned. Without a
    caption it stays as it is, and that is printed; what was aligned before stands. Raises `ConnectorError` where `folder` has
    one that another base or seed learned.
    """
    if hasattr(base_model(vlm.model), ALIGNED):
        return vlm
    if not captioned:
        print("no picture has a caption, so the connector stays as it is")
        return vlm
    package, found = own_way(vlm), processes.said((folder / FILE).is_file())
    mine = {"base": vlm.base.weights, "seed": seed}
    if found:
        _check(folder, mine)
    elif package is None or processes.first():
        learn = otherwise if package is None else package.learn_to_read
        with TemporaryDirectory(prefix=".align-", dir=folder, ignore_cleanup_errors=True) as work:
            tensors, record = learn(vlm, captioned, further, minutes, Path(work), seed)
        if processes.first():
            _write(folder, tensors, mine | record)
    processes.wait()
    return kept(vlm, folder)


def _write(folder: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """The record first: a connector without one would pass unchecked."""
    content = save(tensors)
    record |= {DIGEST: sha256(content).hexdigest()}
    write_whole(folder / RECORD, json.dumps(record, indent=1) + "\n")
    write_whole(folder / FILE, content)


def _check(folder: Path, mine: dict[str, Any]) -> None:
    """Raise `ConnectorError` if the folder's record says that its connector was learned otherwise, or its file has changed."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
    except ValueError as error:
        raise ConnectorError(f"{folder / RECORD} is not valid JSON ({error}); choose another folder") from error
    if record.get(DIGEST, "") not in ("", sha256((folder / FILE).read_bytes()).hexdigest()):
        raise ConnectorError(f"{folder / FILE} is not what was written: remove it, and the connector is aligned anew")
    for name, value in mine.items():
        if record.get(name, value) != value:
            raise ConnectorError(
                f"{folder / FILE} was aligned with {name} {record[name]}, not {value}; give the same or choose another folder"
            )


def adopt(vlm: VLM, tensors: dict[str, torch.Tensor]) -> VLM:
    """The model with these tensors as its connector, in place; its base is another one from now on."""
    model, base, package = base_model(vlm.model), vlm.base, own_way(vlm)
    if package:
        vlm = package.adopt(vlm, tensors)
    else:
        own = dict(model.named_parameters())
        if foreign := [n for n in sorted(tensors) if n not in own or own[n].shape != tensors[n].shape]:
            raise ConnectorError(f"this connector is another model's: {vlm.name} has no {foreign[0]} of that shape")
        model.load_state_dict(tensors, strict=False)  # these and no others
    digest = sha256(base.weights.encode())
    for name in sorted(tensors):
        digest.update(bases.tensor_bytes(tensors[name]))
    bases.mark(model, replace(base, weights=digest.hexdigest()))
    setattr(model, ALIGNED, tensors)
    return vlm


def keep(model: nn.Module, folder: Path) -> None:
    """Write what the model adopted into `folder`; where it has its own connector there is nothing to write."""
    (folder / FILE).unlink(missing_ok=True)
    if tensors := getattr(base_model(model), ALIGNED, None):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)


def kept(vlm: VLM, folder: Path) -> VLM:
    """The model with the connector that lies in `folder`; as it is where none does. Raises `ConnectorError`."""
    if not (folder / FILE).is_file():
        return vlm
    try:
        tensors = load_file(folder / FILE)
    except (SafetensorError, OSError) as error:
        raise ConnectorError(f"{folder / FILE} cannot be read ({error}); copy or fetch it again") from error
    return adopt(vlm, tensors)
