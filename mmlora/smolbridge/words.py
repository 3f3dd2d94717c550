"""What SmolBridge reads in a picture, in words."""

from __future__ import annotations

import torch
from PIL import Image

from mmlora.models.vlm import VLM, base_model
from mmlora.problems.pictures import rgb


@torch.inference_mode()
def words_read(vlm: VLM, picture: Image.Image) -> list[tuple[str, float]]:
    """What SmolBridge's connector reads: for each visual token its likeliest word, and how likely that is."""
    pixels = vlm.processor.image_processor([rgb(picture)], return_tensors="pt")["pixel_values"]
    core = base_model(vlm.model).model
    chances, places = core.get_image_words(pixels.to(vlm.model.device, vlm.model.dtype))[0].max(-1)
    ids = core.connector.word_ids[places]
    return [(vlm.processor.tokenizer.decode(i), p.item()) for i, p in zip(ids, chances)]
