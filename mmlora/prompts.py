"""From a problem to tokens: the prompt, the target text, and labels that cover the target only.

ScienceQA names its formats by what goes in and what comes out: question, context and multiple options; the answer, the
lecture and the explanation (the solution). Our own formats say the answer as text, which a small model learns sooner;
those called QCM-… say its letter as the official code does (Lu et al. 2022, arXiv 2209.09513).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, get_args

import torch
from PIL import Image
from transformers import BatchFeature, PaliGemmaProcessor

from mmlora.errors import MMLoraError
from mmlora.loss import IGNORED
from mmlora.scienceqa import LETTERS, Problem

Format = Literal["answer", "answer_explanation", "explanation_answer", "QCM-A", "QCM-ALE", "QCM-LEA"]

#: What tells the model's own words from the prompt, where an architecture asks (PaliGemma reads a prompt both ways).
SAID = {"token_type_ids": 1}


class PromptError(MMLoraError):
    """A problem that cannot be written as tokens; the message names its id."""


@dataclass(frozen=True)
class Sample:
    """One problem as tensors.

    `tokens`: `input_ids` and what else the architecture wants to know of every token, int64 (length,) each. `labels`:
    int64 (length,). `pictures`: what the processor made of the picture, each with a leading dimension of 1; empty
    without one.
    """

    id: str
    tokens: dict[str, torch.Tensor]
    labels: torch.Tensor
    pictures: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_ids(self) -> torch.Tensor:
        return self.tokens["input_ids"]

    def followed_by(self, ids: Sequence[int]) -> Sample:
        """The same with the tokens that the model should say next."""
        said = torch.tensor(ids, dtype=self.input_ids.dtype)
        tokens = {name: torch.cat([row, said if name == "input_ids" else torch.full_like(said, SAID.get(name, 0))])
                  for name, row in self.tokens.items()}
        return replace(self, tokens=tokens, labels=torch.cat([self.labels, said]))


def prompt_text(problem: Problem) -> str:
    """Question, context and lettered options, a line each."""
    context = f"Context: {problem.hint}\n" if problem.hint else ""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices))
    return f"Question: {problem.question}\n{context}Options: {options}"


def lmms_prompt(problem: Problem) -> str:
    """The prompt that lmms-eval's task `scienceqa` gives: options below each other, and the demand for a letter."""
    context = f"Context: {problem.hint}\n" if problem.hint else ""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem.choices))
    return f"{context}{problem.question}\n{options}\nAnswer with the option's letter from the given choices directly."


def target_text(problem: Problem, format: Format) -> str:
    """What the model should say."""
    if format not in get_args(Format):
        raise PromptError(f"no target format is called {format!r}; there are {', '.join(get_args(Format))}")
    letters = format.startswith("QCM-")
    answer = f"The answer is {LETTERS[problem.answer] if letters else problem.answer_text}."
    parts = {
        "answer": [answer], "answer_explanation": [answer, problem.solution], "explanation_answer": [problem.solution, answer],
        "QCM-A": [answer], "QCM-ALE": [answer, "BECAUSE:", problem.lecture, problem.solution],
        "QCM-LEA": [problem.lecture, problem.solution, answer],
    }[format]
    return " ".join(part for part in parts if part)


def encode_texts(processor, id: str, prompt: str, image, target: str | None) -> Sample:
    """Tokens of one user turn and, if `target` is given, of the assistant's answer with its end token."""
    image, prompt = image if image is None else _readable(id, image), _clean(processor, prompt)
    data = user_turn(processor, prompt, image)
    shape = data["input_ids"].shape
    tokens = {n: t[0].long() for n, t in data.items() if n not in ("attention_mask", "labels") and t.shape == shape}
    pictures = {n: t for n, t in data.items() if t.shape != shape}
    sample = Sample(id, tokens, torch.full_like(tokens["input_ids"], IGNORED), pictures)
    return sample if target is None else sample.followed_by(_spoken(processor, prompt, _clean(processor, target)))


def user_turn(processor, prompt: str, image) -> BatchFeature:
    """What the processor makes of a user's turn, up to where the assistant speaks: a batch of one, as a model takes it."""
    if processor.chat_template:
        text = processor.apply_chat_template(_turn(prompt, image), add_generation_prompt=True)
    else:  # PaliGemma has no turns: its processor puts the picture first and ends the prompt with a line break
        text = prompt if image is None else processor.image_token + prompt
    if image is not None:
        return processor(images=[image], text=[text], return_tensors="pt")
    if isinstance(processor, PaliGemmaProcessor):  # it takes no text without a picture
        data = processor.tokenizer([f"{processor.tokenizer.bos_token}{text}\n"], return_tensors="pt")
        return BatchFeature({**data, "token_type_ids": torch.zeros_like(data["input_ids"])})
    return processor(text=[text], return_tensors="pt")


def _turn(prompt: str, image) -> list[dict]:
    picture = [] if image is None else [{"type": "image"}]
    return [{"role": "user", "content": [*picture, {"type": "text", "text": prompt}]}]


def _spoken(processor, prompt: str, target: str) -> list[int]:
    """Tokens of `target` as the chat template writes it in the assistant's turn, up to and with the end token."""
    end = processor.tokenizer.eos_token
    if processor.chat_template:
        asked = processor.apply_chat_template(_turn(prompt, None), add_generation_prompt=True)
        answer = [{"role": "assistant", "content": [{"type": "text", "text": target}]}]
        said = processor.apply_chat_template([*_turn(prompt, None), *answer])
        if said.startswith(asked):
            said = said[len(asked) :]
            target = said.rpartition(end)[0] if end in said else said.rstrip()
    return processor.tokenizer(target, add_special_tokens=False)["input_ids"] + [processor.tokenizer.eos_token_id]


def encode(processor, problem: Problem, format: Format) -> Sample:
    """Prompt and target of `problem`; only the target's tokens are supervised."""
    target = target_text(problem, format)
    return encode_texts(processor, problem.id, prompt_text(problem), problem.image, target)


def encode_prompt(processor, problem: Problem, prompt: Callable[[Problem], str] = prompt_text) -> Sample:
    """The prompt alone, ending where the assistant speaks."""
    return encode_texts(processor, problem.id, prompt(problem), problem.image, None)


def _readable(id: str, image):
    """The picture in RGB. One that is still a file in memory stays that: thousands of decoded ones would fill it."""
    try:
        if isinstance(getattr(image, "fp", None), io.BytesIO):
            image = Image.open(io.BytesIO(image.fp.getvalue()))
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for a broken file
        raise PromptError(f"problem {id}: its picture cannot be read ({error}); replace the picture or leave the "
                          "problem out") from error


def _clean(processor, text: str) -> str:
    """A literal image mark in somebody's text would count as a picture: break it up."""
    mark = processor.image_token
    return text.replace(mark, mark[0] + " " + mark[1:]) if mark else text


def show_labels(processor, sample: Sample) -> str:
    """The sample as text with its supervised part between ⟦ and ⟧ and image slots counted."""
    tokens = zip(sample.input_ids.tolist(), sample.labels.tolist())
    pieces = []
    for (slot, supervised), group in groupby(tokens, key=lambda t: (t[0] == processor.image_token_id, t[1] != IGNORED)):
        ids = [token for token, _ in group]
        words = processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        text = f"[{len(ids)} image slots]" if slot else words
        pieces.append(f"⟦{text}⟧" if supervised else text)
    return "".join(pieces)


def parse_official(text: str, choices: Sequence[str]) -> int | None:
    """The choice whose letter the official scorer reads: a text that says "The answer is X." exactly once; else None."""
    found = re.findall(r"The answer is ([A-Z]).", text)
    return _lettered(found[0], choices) if len(found) == 1 else None


def parse_lmms(text: str, choices: Sequence[str]) -> int | None:
    """The choice that lmms-eval counts: a text that is a letter, or begins with a letter and a full stop; else None."""
    return _lettered(text[0], choices) if len(text) == 1 or text[1:2] == "." else None


def _lettered(letter: str, choices: Sequence[str]) -> int | None:
    letters = LETTERS[: len(choices)]
    return letters.index(letter) if letter in letters else None


def parse_answer(text: str, choices: tuple[str, ...]) -> int | None:
    """The choice that the last "The answer is …" names, or None when it names none of them.

    What it names ends at a full stop, at a line's end or with the text; as a choice may hold full stops itself, the
    longest one named counts. Case and full stops matter only between choices that differ in nothing else.
    """
    *_, tail = re.split(r"\bthe answer is\b:?", text, flags=re.IGNORECASE)
    if tail == text:
        return None
    for end in reversed(list(re.finditer(r"\.(?=\s)|\n|$", tail))):
        said = tail[: end.start()]
        named = [i for i, choice in enumerate(choices) if _loosely(choice) == _loosely(said)]
        if len(named) > 1:
            named = [i for i in named if _strictly(choices[i]) == _strictly(said)]
        if len(named) == 1:
            return named[0]
    return None


def _strictly(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _loosely(text: str) -> str:
    return " ".join(text.lower().replace(".", " ").split())
