"""From a problem to tokens: the prompt, the target text, and labels that cover the target only.

ScienceQA calls its formats QCM→A, QCM→AE and QCM→EA: question, context and multiple options go in; the answer comes
out alone, before its explanation, or after it. Answers are text, never letters: a small model learns them sooner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch

from mmlora.errors import MMLoraError
from mmlora.loss import IGNORED
from mmlora.scienceqa import LETTERS, Problem

Format = Literal["answer", "answer_explanation", "explanation_answer"]


class PromptError(MMLoraError):
    """A problem that cannot be written as tokens; the message names its id."""


@dataclass(frozen=True)
class Sample:
    """One problem as tensors: `input_ids`, `labels`, `mm_token_type_ids` int64 (length,); `pixel_values` (3, H, W) or None."""

    id: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    mm_token_type_ids: torch.Tensor
    pixel_values: torch.Tensor | None


def prompt_text(problem: Problem) -> str:
    """Question, context and lettered options, a line each."""
    context = f"Context: {problem.hint}\n" if problem.hint else ""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices))
    return f"Question: {problem.question}\n{context}Options: {options}"


def target_text(problem: Problem, format: Format) -> str:
    """What the model should say."""
    answer = f"The answer is {problem.answer_text}."
    if format == "answer":
        return answer
    if format == "answer_explanation":
        return f"{answer} {problem.solution}"
    if format == "explanation_answer":
        return f"{problem.solution} {answer}"
    raise PromptError(f"no target format is called {format!r}; there are {', '.join(get_args(Format))}")


def encode_texts(processor, id: str, prompt: str, image, target: str | None) -> Sample:
    """Tokens of one user turn and, if `target` is given, of the assistant's answer with its end token."""
    image = image if image is None else _readable(id, image)
    content = ([{"type": "image"}] if image is not None else []) + [{"type": "text", "text": _clean(processor, prompt)}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    data = processor(images=[image] if image is not None else None, text=[text], return_tensors="pt")
    input_ids, slots = data["input_ids"][0], data["mm_token_type_ids"][0]
    labels = torch.full_like(input_ids, IGNORED)
    if target is not None:
        tokenizer = processor.tokenizer
        answer = tokenizer(_clean(processor, target), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        answer = torch.tensor(answer, dtype=input_ids.dtype)
        input_ids, labels = torch.cat([input_ids, answer]), torch.cat([labels, answer])
        slots = torch.cat([slots, torch.zeros_like(answer)])
    pixels = data.get("pixel_values")
    return Sample(id, input_ids, labels, slots, None if pixels is None else pixels[0])


def encode(processor, problem: Problem, format: Format) -> Sample:
    """Prompt and target of `problem`; only the target's tokens are supervised."""
    target = target_text(problem, format)
    return encode_texts(processor, problem.id, prompt_text(problem), problem.image, target)


def encode_prompt(processor, problem: Problem) -> Sample:
    """The prompt alone, ending where the assistant speaks."""
    return encode_texts(processor, problem.id, prompt_text(problem), problem.image, None)


def _readable(id: str, image):
    """The picture in RGB; files are decoded here at the latest."""
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for a broken file
        raise PromptError(f"problem {id}: its picture cannot be read ({error}); replace the picture or leave the "
                          "problem out") from error


def _clean(processor, text: str) -> str:
    """A literal image mark in somebody's text would count as a picture: break it up."""
    mark = processor.image_token
    return text.replace(mark, mark[0] + " " + mark[1:])


def show_labels(processor, sample: Sample) -> str:
    """The sample as text with its supervised part between ⟦ and ⟧ and image slots counted."""
    tokens = zip(sample.input_ids.tolist(), sample.mm_token_type_ids.tolist(), sample.labels.tolist())
    pieces = []
    for (slot, supervised), group in groupby(tokens, key=lambda t: (t[1] == 1, t[2] != IGNORED)):
        ids = [token for token, _, _ in group]
        words = processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        text = f"[{len(ids)} image slots]" if slot else words
        pieces.append(f"⟦{text}⟧" if supervised else text)
    return "".join(pieces)


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
