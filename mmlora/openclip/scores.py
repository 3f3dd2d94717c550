"""What a CLIP is measured by: names of pictures, retrieval, and the choices of a problem."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from mmlora.encoding.sample import BROKEN
from mmlora.evaluation.scores import Prediction, Share
from mmlora.openclip.assemble import Clip, ClipError
from mmlora.problems.pictures import rgb
from mmlora.problems.record import Problem

BATCH = 64  # pictures or texts at a time


@torch.inference_mode()
def image_features(
    clip: Clip, images: Sequence, progress: bool = True, ids: Sequence[str] | None = None
) -> torch.Tensor:
    """Pictures → (pictures, width), float32, of length one. Raises `ClipError` for one that cannot be read, by its id or place."""
    if not len(images):
        raise ClipError("there are no pictures to look at; give at least one")
    called = [f"the picture of {each}" for each in ids] if ids else [f"picture {i}" for i in range(len(images))]
    clip.model.eval()
    parts = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
    bars = tqdm(parts, unit="batch", disable=not progress, leave=False)
    pixels = (_pixels(clip, image, name) for image, name in zip(images, called))
    found = [clip.model.encode_image(torch.stack([next(pixels) for _ in part]), normalize=True) for part in bars]
    return torch.cat(found).clone()


def _pixels(clip: Clip, image: Image.Image, name: str) -> torch.Tensor:
    try:
        return clip.preprocess(rgb(image))
    except (*BROKEN, ZeroDivisionError) as error:
        raise ClipError(f"{name} cannot be read ({error}); replace it or leave it out") from error


def both_ways(clip: Clip, images: Sequence) -> torch.Tensor:
    """The mean of each picture's features and its mirror image's, of length one: a thing looks left or right by chance."""
    found = sum(image_features(clip, seen) for seen in (images, [ImageOps.mirror(image) for image in images]))
    return torch.nn.functional.normalize(found, dim=-1)


def text_features(clip: Clip, texts: Sequence[str]) -> torch.Tensor:
    """Texts → (texts, width), float32, of length one. Warns of texts that are longer than the text tower reads."""
    return _features(clip, words(clip, texts))


@torch.inference_mode()
def _features(clip: Clip, tokens: torch.Tensor) -> torch.Tensor:
    clip.model.eval()
    return torch.cat([clip.model.encode_text(part, normalize=True) for part in tokens.split(BATCH)]).clone()


def words(clip: Clip, texts: Sequence[str]) -> torch.Tensor:
    """Texts → tokens, int64 (texts, context), as open_clip's tokenizer makes them; warns of texts cut at its context.

    Raises `ClipError` for a text that cannot be encoded as UTF-8.
    """
    for text in texts:
        if not isinstance(text, str):
            raise ClipError(f"{text!r:.60} is not text; give words")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ClipError(f"the text {text[:60]!r} cannot be encoded as UTF-8 ({error.reason}); fix it") from error
    tokens = clip.tokenizer(list(texts))
    cut = [text for text, whole in zip(texts, _whole(clip, texts, tokens)) if not whole]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(texts)} texts are longer than the {tokens.shape[1]} tokens that the text tower reads and are "
            f"cut there, such as {cut[0][:80]!r}; shorten them",
            stacklevel=3,
        )
    return tokens


def _whole(clip: Clip, texts: Sequence[str], tokens: torch.Tensor) -> list[bool]:
    """Whether each text fits in its tokens: with room for one more token, that one is padding and the others are the same."""
    context = tokens.shape[1]
    padding = clip.tokenizer([""])[0, -1]
    whole = [bool(row[-1] == padding) for row in tokens]
    if full := [i for i, found in enumerate(whole) if not found]:
        more = clip.tokenizer([texts[i] for i in full], context_length=context + 1)
        for i, row in zip(full, more):
            whole[i] = bool((row[:context] == tokens[i]).all() and row[-1] == padding)
    return whole


def name_features(clip: Clip, names: Sequence[str], prompts: Sequence[str]) -> torch.Tensor:
    """Names → (names, width): each name's mean over the prompts ("a drawing of {}"), of length one, an ensemble."""
    if not len(prompts):
        raise ClipError('there is no prompt to put names into; "{}" is the name alone')
    each = torch.stack([text_features(clip, [_put(prompt, name) for name in names]) for prompt in prompts])
    return torch.nn.functional.normalize(each.mean(0), dim=-1)


def _put(prompt: str, name: str) -> str:
    """The prompt with this name. Raises `ClipError` for a prompt that has no place for one."""
    try:
        if prompt.format("a") != prompt.format("b"):
            return prompt.format(name)
    except (KeyError, IndexError, ValueError):
        pass
    raise ClipError(f"the prompt {prompt!r:.80} has no place for a name; write {{}} there, and no other braces")


def top(pictures: torch.Tensor, names: torch.Tensor, right: torch.Tensor, k: int = 1) -> Share:
    """How many pictures (n, width) have their `right` name (n,) among their `k` nearest of `names` (m, width).

    Names that are exactly as near as the right one, or whose score is not a number, count as nearer: a tie is no answer.
    """
    scores = pictures @ names.T
    rivals = ~(scores < scores.gather(1, right[:, None]))  # nearer names, ties, the right name itself, and NaN
    return Share(int((rivals.sum(1) <= k).sum()), len(right))


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

    A yardstick: what a picture's likeness to the words gives away without understanding what was asked. The choice is None
    where the nearest ones tie or a score is not finite. Warns of choices that are longer than the text tower reads.
    """
    seen = [problem for problem in problems if problem.image is not None]
    if not seen:
        return []
    pictures = image_features(clip, [problem.image for problem in seen], ids=[problem.id for problem in seen])
    found = []
    texts = words(clip, [_put(prompt, choice) for problem in seen for choice in problem.choices])
    for problem, picture, tokens in zip(seen, pictures, texts.split([len(problem.choices) for problem in seen])):
        scores = (_features(clip, tokens) @ picture).tolist()
        best = max(scores)
        alone = all(map(math.isfinite, scores)) and scores.count(best) == 1
        choice = scores.index(best) if alone else None
        text = "" if choice is None else problem.choices[choice]
        found.append(Prediction(problem.id, choice, choice == problem.answer, text, tuple(scores)))
    return found
