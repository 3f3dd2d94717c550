"""What every forward pass without gradients needs: batches that end together, evaluation mode, greedy generation.

Nothing here knows what the words are about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from transformers import TextStreamer

from mmlora.adapters.fused import fused
from mmlora.encoding.conversation import Conversation
from mmlora.encoding.loss import on_device
from mmlora.encoding.sample import Sample, collate, encode
from mmlora.models.precision import mixed
from mmlora.models.vlm import VLM


def generate(vlm: VLM, conversations: Sequence[Conversation], max_new_tokens: int) -> tuple[list[str], int]:
    """Greedy replies to the prompts, and how many of them did not reach their end token."""
    tokenizer = vlm.processor.tokenizer
    batch = left_padded(vlm, [encode(vlm.processor, conversation) for conversation in conversations])
    rows = vlm.model.generate(
        **batch,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=_pad(vlm),
    )[:, batch["input_ids"].shape[1] :]
    unfinished = int((rows != tokenizer.eos_token_id).all(-1).sum())
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)], unfinished


def ask(vlm: VLM, text: str, picture: Image.Image | None = None, max_new_tokens: int = 80) -> str:
    """Ask the model anything: its greedy reply, printed word by word as it comes, and returned.

    Raises `EncodingError` for a picture that cannot be read.
    """
    tokenizer = vlm.processor.tokenizer
    asked = Conversation("yours", text, () if picture is None else (picture,))
    batch = left_padded(vlm, [encode(vlm.processor, asked)])
    with evaluating(vlm):
        row = vlm.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=_pad(vlm),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )[0, batch["input_ids"].shape[1] :]
    return tokenizer.decode(row, skip_special_tokens=True).strip()


def left_padded(vlm: VLM, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """One batch whose rows end together."""
    batch = on_device(vlm.model, collate(samples, side="left"))
    del batch["labels"]
    batch["input_ids"][batch["attention_mask"] == 0] = _pad(vlm)
    return batch


def _pad(vlm: VLM) -> int:
    tokenizer = vlm.processor.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


@contextmanager
def evaluating(vlm: VLM) -> Iterator[None]:
    """Evaluation mode without gradients; the training flags of all modules come back as they were."""
    training: list[torch.nn.Module] = [m for m in vlm.model.modules() if m.training]
    vlm.model.eval()
    try:
        with torch.inference_mode(), mixed(vlm.model.device), fused(vlm.model):
            yield
    finally:
        for module in training:
            module.training = True
