"""Alignment inside a run: SmolBridge's connector learns to read the pictures at hand, from their captions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image, ImageEnhance
from torch import nn

from mmlora.encoding.naming import naming
from mmlora.encoding.sample import readable
from mmlora.models.connector import Captioned
from mmlora.models.vlm import VLM, base_model
from mmlora.problems.pictures import rgb
from mmlora.smolbridge.align import AS_TEXT, ReadSettings, fitting, look, read, spell
from mmlora.smolbridge.assemble import packed, sizes, unpacked
from mmlora.smolbridge.connector import Connector

LOOKING = 0.6  # share of the minutes; reading takes about the rest
ENOUGH = 6000  # pictures, copies included, beyond which copies of few pictures teach nothing new
FEWEST = 400  # steps of reading, where the minutes have room for them
A_MINUTE = 600  # steps of few pictures, about what two cores take
LONGEST = 32  # tokens of a caption that are read
HELD_OUT = 0.05  # share of the first-hand pictures that only measure


def learn_to_read(
    vlm: VLM, captioned: Sequence[Captioned], further: Iterable[Captioned], minutes: float, work: Path, seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a connector that learned to read these pictures, and a record of how.

    `captioned` are looked at once, then `further` ones as long as the minutes allow, or slightly altered copies where there
    are none. Words that no caption has cannot be said afterwards. `seed` decides the start and the order of reading. Raises
    `EncodingError`, with the caption, for a caption that cannot be encoded and for a picture that cannot be read.
    """
    began, texts = perf_counter(), list[str]()
    for _, text in captioned:
        with naming(_called(text), text):
            text.encode()
    held = round(HELD_OUT * len(captioned))

    def pictures() -> Iterator[Image.Image]:
        for image, text in chain(captioned, _more(captioned[held:], further)):
            if len(texts) >= len(captioned) and perf_counter() - began > 60 * LOOKING * minutes:
                return
            texts.append(text)
            yield readable(_called(text), image)

    seen = look(vlm, pictures(), work / "seen.f16")
    looked = perf_counter() - began
    words, spelled = spell(vlm.processor.tokenizer, _bounded(vlm.processor.tokenizer, texts))
    connector = fitting(vlm.model, words, spelled.shape[1], seed=seed)
    _go_on(connector, base_model(vlm.model).model.connector)
    log = read(connector, seen, spelled, replace(_reading(len(seen), held, minutes), seed=seed))
    del seen  # a file that is mapped cannot be removed everywhere
    (work / "seen.f16").unlink()
    record = {
        "pictures": len(texts),
        "captioned": len(captioned),
        "held_out": held,
        "dictionary": len(words),
        "visual_tokens": spelled.shape[1],
        "seconds_looking": round(looked, 1),
        "seconds_reading": round(perf_counter() - began - looked, 1),
        "log": log,
    }
    return packed(connector.state_dict()), record


def _called(caption: str) -> str:
    """What a captioned picture is called in an error."""
    return f"with the caption {caption[:40]!r}"


def _bounded(tokenizer: Any, texts: list[str]) -> list[str]:
    """Captions as inside a sentence, the first `LONGEST` tokens of each: every further one costs all pictures a visual token."""
    rows = tokenizer([f" {text.strip()}" for text in texts], **AS_TEXT)["input_ids"]
    if long := sum(len(row) > LONGEST for row in rows):
        print(f"{long} of {len(rows)} captions are longer than {LONGEST} tokens; the connector reads them up to there")
    return tokenizer.batch_decode([row[:LONGEST] for row in rows])


def _more(captioned: Sequence[Captioned], further: Iterable[Captioned]) -> Iterator[Captioned]:
    """Further pictures, or altered copies up to `ENOUGH`."""
    none = True
    for pair in further:
        none = False
        yield pair
    lot = random.Random(0)
    for _ in range(ENOUGH // len(captioned) if none else 0):
        for image, text in captioned:
            yield _altered(rgb(image), lot), text


def _altered(image: Image.Image, lot: random.Random) -> Image.Image:
    """A little larger or smaller, shifted, lighter or darker: what the picture shows stays the same."""
    width, height = image.size
    scale = lot.uniform(0.92, 1.08)  # about the middle
    shift = [side * ((1 - scale) / 2 + lot.uniform(-0.05, 0.05)) for side in (width, height)]
    moved = image.transform(
        image.size, Image.Transform.AFFINE, (scale, 0, shift[0], 0, scale, shift[1]), Image.Resampling.BILINEAR,
        fillcolor=image.getpixel((0, 0)),
    )  # fmt: skip
    return ImageEnhance.Brightness(moved).enhance(lot.uniform(0.9, 1.1))


def _reading(pictures: int, held_out: int, minutes: float) -> ReadSettings:
    """How so many pictures are read: in smaller batches where there are few, for `FEWEST` steps where there is time."""
    usual = ReadSettings(held_out=held_out, fewest_steps=min(FEWEST, round(A_MINUTE * minutes)))
    batch = min(usual.batch_size, max(128, usual.epochs * (pictures - held_out) // FEWEST))
    return replace(usual, batch_size=batch)


@torch.no_grad()
def _go_on(connector: Connector, known: Connector) -> None:
    """Begin with what the base has learned of pictures, and with how it spells the words that both dictionaries have."""
    connector.recognise.load_state_dict(known.recognise.state_dict())
    connector.read.load_state_dict(known.read.state_dict())
    if connector.glimpse is not None and known.glimpse is not None:
        connector.glimpse.load_state_dict(known.glimpse.state_dict())
    if not isinstance(known.spell, nn.Linear):  # words are written at once, place by place: nothing to take over
        return
    place = {word: at for at, word in enumerate(known.word_ids.tolist())}
    for at, word in enumerate(connector.word_ids.tolist()):
        if word in place:
            connector.spell.weight[at] = known.spell.weight[place[word]]
            connector.spell.bias[at] = known.spell.bias[place[word]]


def adopt(vlm: VLM, tensors: dict[str, torch.Tensor]) -> VLM:
    """The model with a connector of these tensors in place of its own, and a processor that leaves it as many slots."""
    model, tensors = base_model(vlm.model), unpacked(tensors)
    for name, value in sizes(tensors).items():
        setattr(model.config, name, value)
    connector = Connector(model.config, model.model.vision_tower.feature_info.channels())
    connector.load_state_dict(tensors)
    model.model.connector = connector.to(model.device, model.dtype).requires_grad_(False).eval()
    processor = type(vlm.processor)(
        vlm.processor.image_processor, vlm.processor.tokenizer, vlm.processor.chat_template,
        visual_tokens=model.config.visual_tokens,
    )  # fmt: skip
    return replace(vlm, processor=processor)
