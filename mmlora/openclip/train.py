"""Contrastive training: projections on frozen towers' features, and LoRA through the towers.

The loss is CLIP's (arXiv 2103.00020). Locking the towers and training what joins them is Zhai et al. 2022, arXiv 2111.07991.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torchvision import transforms
from tqdm.auto import tqdm

from mmlora.openclip.assemble import Clip, assembled
from mmlora.openclip.drawings import TEST, TRAIN, drawings, kept_out
from mmlora.openclip.scores import words
from mmlora.openclip.tower import folded

PROMPTS = ("{}", "a drawing of {}", "an icon of {}", "a picture of a {}", "a cartoon of a {}")
BATCH = 32  # pictures at a time through a tower


@dataclass(frozen=True)
class Heads:
    """Settings of the projection's training, chosen on a hand and on names that neither training nor the record uses."""

    epochs: int = 8  # seconds each
    batch: int = 512  # pairs that compete
    rate: float = 1e-3
    decay: float = 0.1
    drop: float = 0.3  # of the tower's features: few pictures of each name, many features
    scale: float = 20.0  # what cosines are multiplied by at the start


ALTERED = transforms.Compose([  # another hand is other lines and colours, hardly another shape
    transforms.RandomAffine(12, (0.08, 0.08), (0.7, 1.1), shear=6, fill=255),
    transforms.RandomHorizontalFlip(),
    transforms.ColorJitter(0.3, 0.3, 0.4, 0.08),
    transforms.RandomGrayscale(0.1),
])  # fmt: skip


@torch.inference_mode()
def trunk_features(clip: Clip, images: Sequence, views: int = 0, seed: int = 0) -> torch.Tensor:
    """Pictures → (1 + views, pictures, features) below the projection: themselves and altered copies."""
    trunk = folded(clip.model.visual.trunk)
    parts = [(view, at) for view in range(1 + views) for at in range(0, len(images), BATCH)]

    def pixels(view: int, at: int) -> torch.Tensor:
        some = images[at : at + BATCH]
        return torch.stack([clip.preprocess(ALTERED(image) if view else image) for image in some])

    found = []
    with torch.random.fork_rng(), ThreadPoolExecutor(1) as beside:
        torch.manual_seed(seed)
        coming = beside.submit(pixels, *parts[0])
        for following in tqdm([*parts[1:], None], desc="looking", unit="batch", leave=False):
            here = coming.result()
            if following:  # drawn and altered while the tower looks at these: one core would wait
                coming = beside.submit(pixels, *following)
            found.append(trunk(here))
    return torch.cat(found).view(1 + views, len(images), -1).clone()


@torch.inference_mode()
def sentence_features(clip: Clip, names: Sequence[str], prompts: Sequence[str] = PROMPTS) -> torch.Tensor:
    """Names → (prompts, names, width) below the text's projection."""
    text, found = clip.model.text.eval(), []
    for prompt in prompts:
        ids = words(clip, [prompt.format(name) for name in names])
        mask = (ids != text.config.pad_token_id).long()
        for part, seen in zip(ids.split(128), mask.split(128)):
            found.append(text.pooler(text.transformer(input_ids=part, attention_mask=seen), seen))
    return torch.cat(found).view(len(prompts), len(names), -1).clone()


def contrastive(pictures: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
    """CLIP's loss of pairs (n, width), both ways; pairs of the same name (n,) are right for each other, not rivals."""
    logits = scale * normalize(pictures, dim=-1) @ normalize(texts, dim=-1).T
    same = (names[:, None] == names[None]).float()
    target = same / same.sum(1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def train_heads(
    clip: Clip,
    pictures: torch.Tensor,
    names: torch.Tensor,
    texts: torch.Tensor,
    settings: Heads = Heads(),
    seed: int = 0,
) -> list[float]:
    """Train the picture's projection on features of the frozen towers; the losses of all steps.

    The text's projection stays the identity: names that nothing was learned about keep their place among the others.
    `pictures` (views, n, features), `names` (n,) into `texts` (prompts, names, width). Standardising the features is folded
    into the projection's first matrix at the end, so that the model stays an ordinary one.
    """
    flat, right = pictures.flatten(0, 1), names.repeat(len(pictures))
    mean, spread = flat.mean(0), flat.std(0) + 1e-4
    flat = (flat - mean) / spread
    image, scale = clip.model.visual.head, clip.model.logit_scale
    with torch.no_grad():
        scale.fill_(math.log(settings.scale))
    parameters = [*image.parameters(), scale]
    steps = settings.epochs * (len(flat) // settings.batch or 1)
    optimizer = torch.optim.AdamW(parameters, settings.rate, weight_decay=settings.decay)
    warm = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps)
    losses, lot = [], torch.Generator().manual_seed(seed)
    for places in tqdm(_batches(len(flat), settings.batch, steps, lot), total=steps, unit="step"):
        said = texts[torch.randint(len(texts), places.shape, generator=lot), right[places]]
        kept = torch.rand(len(places), flat.shape[1], generator=lot) >= settings.drop
        seen = flat[places] * kept / (1 - settings.drop)
        loss = contrastive(image(seen), said, scale.exp(), right[places])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm.step()
        losses.append(loss.item())
    _fold(image, mean, spread)
    return losses


def joined(views: int = 5, out: int = 200, seed: int = 0) -> Clip:
    """Lesson 09's CLIP: the published towers, and the picture's projection trained on the five hands, in some minutes.

    `out` names, by lot, are not learned. Raises what `assembled` and `drawings` raise.
    """
    clip = assembled(seed)
    place = {drawing.name: i for i, drawing in enumerate(drawings(TEST))}
    never = set(kept_out(place, out, seed))
    lessons = [d for hand in TRAIN for d in drawings(hand) if d.name in place and d.name not in never]
    seen = trunk_features(clip, [d.image for d in lessons], views, seed)
    owner = torch.tensor([place[d.name] for d in lessons])
    train_heads(clip, seen, owner, sentence_features(clip, list(place)), seed=seed)
    return clip


def _batches(count: int, size: int, steps: int, lot: torch.Generator) -> Iterator[torch.Tensor]:
    """`steps` batches of places, everything once before anything twice."""
    places = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(places) < min(size, count):
            places = torch.randperm(count, generator=lot)
        yield places[:size]
        places = places[size:]


@torch.no_grad()
def _fold(head: nn.Module, mean: torch.Tensor, spread: torch.Tensor) -> None:
    """Let the head's first matrix take features as they are instead of standardised."""
    first = next(module for module in head.modules() if isinstance(module, nn.Linear))
    first.weight /= spread
    first.bias -= first.weight @ mean


def one_way(pictures: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
    """The half of CLIP's loss that CLIP-LoRA learns by (arXiv 2405.18541): each picture's place `names` (n,) among `texts`."""
    return cross_entropy(scale * pictures @ texts.T, names)


def tune(
    clip: Clip,
    pixels: torch.Tensor,
    names: torch.Tensor,
    tokens: torch.Tensor,
    steps: int,
    rate: float = 2e-3,
    seed: int = 0,
    loss: Callable[..., torch.Tensor] = one_way,
) -> list[float]:
    """Train what is trainable (an adapter) by naming pictures (n, 3, side, side) among `tokens` (names, length); losses."""
    parameters = [p for p in clip.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    losses, lot = [], torch.Generator().manual_seed(seed)
    clip.model.eval()  # batch norms keep their statistics: few pictures have none worth keeping
    adapted = any(p.requires_grad for p in clip.model.visual.parameters())
    if not adapted:  # what a frozen tower sees is the same at every step
        with torch.no_grad():
            frozen = torch.cat([clip.model.encode_image(part, normalize=True) for part in pixels.split(BATCH)])
    for places in _batches(len(pixels), BATCH, steps, lot):
        seen = clip.model.encode_image(pixels[places], normalize=True) if adapted else frozen[places]
        said = clip.model.encode_text(tokens, normalize=True)
        here = loss(seen, said, clip.model.logit_scale.exp(), names[places])
        optimizer.zero_grad()
        here.backward()
        optimizer.step()
        losses.append(here.item())
    return losses
