"""Conversations as a training set, encoded on the fly: the plain path, and the reference that the cache is tested against."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn
from tqdm import tqdm

from mmlora.encoding.conversation import Conversation
from mmlora.encoding.loss import Supervised, forward, needs_own_loss, on_device, sft
from mmlora.encoding.room import refuse_longer, room
from mmlora.encoding.sample import Sample, collate, encode, readable
from mmlora.models.vlm import VLM
from mmlora.problems import pictures


class Samples:
    """A training set (`training.settings.TrainingSet`) of conversations with a reply.

    `fingerprint` follows from the words, the pictures, the processor and the stored frozen weights, not from encoding:
    a sample is encoded when it is needed.
    """

    def __init__(self, vlm: VLM, conversations: Sequence[Conversation]):
        self.processor, self.conversations = vlm.processor, conversations
        self.ids = [conversation.id for conversation in conversations]
        self.fingerprint = _fingerprint(vlm, conversations)
        self.room = room(vlm.model)
        self.own_loss: bool | None = None  # see `needs_own_loss`

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Sample:
        """Raises `EncodingError` for a sample that is longer than the model can read."""
        sample = encode(self.processor, self.conversations[index])
        refuse_longer(sample.id, len(sample), self.room)
        return sample

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sample; all are encoded once to find out, and a training from the cache never asks."""
        return [len(self[i]) for i in tqdm(range(len(self)), desc="encode", leave=False)]

    def forward(self, model: nn.Module, indices: list[int]) -> Supervised:
        """The model's forward pass over these samples: hidden states at supervised positions, for an objective."""
        if self.own_loss is None:
            self.own_loss = needs_own_loss(model, on_device(model, collate([self[indices[0]]])))
        batch = on_device(model, collate([self[i] for i in indices]))
        return forward(model, batch, self.own_loss)

    def loss(self, model: nn.Module, indices: list[int]) -> tuple[torch.Tensor, int]:
        """Objective `sft`: cross-entropy summed over the supervised tokens of these samples (float32, 0-dim), and their number."""
        return sft(self.forward(model, indices))


def without_pixels(sample: Sample) -> Sample:
    """What is needed beside states that were kept: a grid or size of a picture places its tokens."""
    small = {n: t for n, t in sample.pictures.items() if t.dim() <= 2 and not t.is_floating_point()}
    return replace(sample, pictures=small)


def _fingerprint(vlm: VLM, conversations: Sequence[Conversation]) -> str:
    processor, base = vlm.processor, vlm.base
    seeing = getattr(processor, "image_processor", None)  # its repr is all of its settings
    tokens = processor.tokenizer.backend_tokenizer.to_str()
    digest = hashlib.sha256(f"{base.weights} {processor.chat_template} {seeing} {tokens}".encode())
    for conversation in conversations:
        words = (conversation.id, conversation.prompt, conversation.reply)
        digest.update(repr(words).encode())
        for picture in conversation.pictures:
            digest.update(readable(conversation.id, picture, pictures.digest))
    return digest.hexdigest()
