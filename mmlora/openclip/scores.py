"""What a CLIP is measured by: names of pictures, retrieval, and the choices of a problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import ImageOps
from tqdm.auto import tqdm

from mmlora.evaluation.scores import Prediction, Share
from mmlora.openclip.assemble import Clip
from mmlora.problems.record import Problem

BATCH = 64  # pictures or texts at a time


@torch.inference_mode()
def image_features(clip: Clip, images: Sequence, progress: bool = True) -> torch.Tensor:
    """Pictures → (pictures, width), float32, of length one."""
    clip.model.eval()
    parts = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
    bars = tqdm(parts, unit="batch", disable=not progress, leave=False)
    found = [clip.model.encode_image(torch.stack([clip.preprocess(i) for i in part]), normalize=True) for part in bars]
    return torch.cat(found).clone()


def both_ways(clip: Clip, images: Sequence) -> torch.Tensor:
    """The mean of each picture's features and its mirror image's, of length one: a thing looks left or right by chance."""
    found = sum(image_features(clip, seen) for seen in (images, [ImageOps.mirror(image) for image in images]))
    return torch.nn.functional.normalize(found, dim=-1)


@torch.inference_mode()
def text_features(clip: Clip, texts: Sequence[str]) -> torch.Tensor:
    """Texts → (texts, width), float32, of length one."""
    clip.model.eval()
    parts = [list(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
    return torch.cat([clip.model.encode_text(clip.tokenizer(part), normalize=True) for part in parts]).clone()


def name_features(clip: Clip, names: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
    """Names → (names, width): each name's mean over the prompts ("a drawing of {}"), of length one, an ensemble."""
    each = torch.stack([text_features(clip, [prompt.format(name) for name in names]) for prompt in prompts])
    return torch.nn.functional.normalize(each.mean(0), dim=-1)


def top(pictures: torch.Tensor, names: torch.Tensor, right: torch.Tensor, k: int = 1) -> Share:
    """How many pictures (n, width) have their `right` name (n,) among their `k` nearest of `names` (m, width)."""
    nearest = (pictures @ names.T).topk(k, dim=1).indices
    return Share(int((nearest == right[:, None]).any(1).sum()), len(right))


def among(pictures: torch.Tensor, names: torch.Tensor, count: int = 20) -> Share:
    """Top-1 where picture and name i belong together and only `count` neighbours compete; a last smaller group is left out."""
    groups = [slice(at, at + count) for at in range(0, len(names) - count + 1, count)]
    shares = [top(pictures[g], names[g], torch.arange(count)) for g in groups]
    return Share(sum(s.correct for s in shares), sum(s.n for s in shares))


def interval(right: torch.Tensor, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval, in percent, for the mean of `right` (runs, pictures): a bootstrap over runs and pictures at once.

    Runs share their pictures, so that neither alone says how far luck carries. For a difference give the two subtracted.
    """
    runs, pictures = right.shape
    lot = torch.Generator().manual_seed(seed)
    some = (
        torch.randint(runs, (draws, runs, 1), generator=lot),
        torch.randint(pictures, (draws, 1, pictures), generator=lot),
    )
    means = 100 * right.float()[some].mean((1, 2))
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return round(low, 2), round(high, 2)


@dataclass(frozen=True)
class Retrieval:
    """Picture i belongs to text i: how often the right one is first, or among the first five."""

    text_at_1: Share
    text_at_5: Share
    image_at_1: Share
    image_at_5: Share


def retrieval(pictures: torch.Tensor, texts: torch.Tensor) -> Retrieval:
    """From pictures (n, width) to texts (n, width) and back, among all n."""
    right = torch.arange(len(texts))
    ways = ((pictures, texts), (texts, pictures))
    return Retrieval(*(top(given, asked, right, k) for given, asked in ways for k in (1, 5)))


def choose(clip: Clip, problems: Sequence[Problem], prompt: str = "{}") -> list[Prediction]:
    """The choice whose words lie nearest to the picture, for each problem that has one; the question is not read.

    A yardstick: what a picture's likeness to the words gives away without understanding what was asked.
    """
    seen = [problem for problem in problems if problem.image is not None]
    pictures, found = image_features(clip, [problem.image for problem in seen]), []
    for problem, picture in zip(seen, pictures):
        scores = text_features(clip, [prompt.format(choice) for choice in problem.choices]) @ picture
        choice = int(scores.argmax())
        found.append(
            Prediction(problem.id, choice, choice == problem.answer, problem.choices[choice], tuple(scores.tolist()))
        )
    return found
