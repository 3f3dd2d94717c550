"""Alignment through the decoder: any model's connector learns to read pictures from their captions.

LLaVA's first stage (arXiv 2304.08485): the frozen decoder is to say the caption, and the gradient reaches the connector
through it. A model that brings a faster way of its own takes that one. A hub model's connector was aligned by its makers on far
more pictures than a run has, so this is done only where the settings ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mmlora.adapters.towers import learning_connector
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.samples import Samples
from mmlora.models.connector import Captioned
from mmlora.models.vlm import VLM, base_model
from mmlora.training.fit import fit
from mmlora.training.settings import TrainSettings

ASKED = "What does this picture show?"
RATE = 1e-4  # the peak; these are full weights that know much already


def learn_to_read(
    vlm: VLM, captioned: Sequence[Captioned], further: Iterable[Captioned], minutes: float, work: Path, seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict]:
    """The connector's tensors after so many minutes with these pictures, and a record of how they were learned.

    `further` pictures are not looked at: each one would take a pass of the whole model. The weights learn in float32 and come
    back in the model's own numbers. Raises `TowerError` for a model without a connector, or with one in four bits, and
    `EncodingError`, with the caption, for what cannot be encoded.
    """
    model = base_model(vlm.model)
    own = model.dtype
    connector = learning_connector(model)
    published = {name: parameter.detach().to(own, copy=True) for name, parameter in connector.items()}
    lessons = [
        Conversation(f"with the caption {text[:40]!r} ({i})", ASKED, (image,), text)
        for i, (image, text) in enumerate(captioned)
    ]
    try:
        with TemporaryDirectory(dir=work) as folder:
            never = math.inf  # this training is never resumed
            settings = TrainSettings(minutes=minutes, learning_rate=RATE, seed=seed, checkpoint_minutes=never)
            log = fit(model, Samples(vlm, lessons), settings, folder)
    except BaseException:  # half-learned it would pass for the published one
        for name, parameter in connector.items():
            parameter.data = published[name]
        raise
    finally:
        for parameter in connector.values():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(own)
            parameter.grad = None
    record = {
        "way": "through the decoder",
        "pictures": len(lessons),
        "captioned": len(lessons),
        "samples_seen": log.samples_seen,
        "seconds": round(log.seconds, 1),
        "log": [{"step": r["step"], "loss": r["loss"]} for r in log.records],
    }
    return {name: parameter.detach().clone() for name, parameter in connector.items()}, record
