"""Before training: every taught reply is read as the model's replies will be, and has to name its problem's answer.

A reply that is read as another choice, or as none, would count as wrong however well it was learned.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmlora.encoding.conversation import EncodingError
from mmlora.encoding.prompts import Format, asked, target_text, taught
from mmlora.encoding.room import refuse_longer, room
from mmlora.encoding.sample import encode, reply_rows
from mmlora.evaluation.answering import SPOKEN
from mmlora.evaluation.scores import Method
from mmlora.inference.generate import NAMED_IDS, decoded
from mmlora.models.vlm import VLM
from mmlora.problems.record import Problem

SHOWN = 120  # characters of a reply that a message shows


def read_back(problems: Sequence[Problem], format: Format, method: Method) -> None:
    """Read every reply that is taught in this format by this method, as text.

    Raises `EncodingError` with the ids of the problems whose reply does not name their answer. The methods likelihood and
    letter read no replies, so nothing is checked for them.
    """
    if method in SPOKEN:
        _check(problems, [target_text(problem, format) for problem in problems], method, "as text")


def read_back_tokens(vlm: VLM, problems: Sequence[Problem], format: Format, method: Method) -> None:
    """The same for the text that the taught tokens decode to, which may differ from the reply."""
    if method not in SPOKEN:
        return
    conversations = [taught(problem, format) for problem in problems]
    texts = decoded(vlm.processor.tokenizer, reply_rows(vlm.processor, conversations))
    changed = [i for i, conversation in enumerate(conversations) if texts[i] != (conversation.reply or "").strip()]
    _check([problems[i] for i in changed], [texts[i] for i in changed], method, f"from the tokens of {vlm.name}")


def fit_in(vlm: VLM, problems: Sequence[Problem]) -> None:
    """Encode problems that are answered only after training, so that what cannot be encoded is known before.

    Raises `EncodingError`, with the problem's id, also for one that leaves no room for a reply.
    """
    for problem in problems:
        refuse_longer(problem.id, len(encode(vlm.processor, asked(problem))) + 1, room(vlm.model))


def _check(problems: Sequence[Problem], texts: Sequence[str], method: Method, how: str) -> None:
    """Raise `EncodingError` where one of these texts does not name its problem's answer."""
    parse = SPOKEN[method][1]
    read = [parse(text, problem.choices) for problem, text in zip(problems, texts)]
    wrong = [i for i, problem in enumerate(problems) if read[i] != problem.answer]
    if not wrong:
        return
    ids = ", ".join(problems[i].id for i in wrong[:NAMED_IDS]) + (", …" if len(wrong) > NAMED_IDS else "")
    first, choice = problems[wrong[0]], read[wrong[0]]
    named = "no choice" if choice is None else f"the choice {first.choices[choice]!r}"
    raise EncodingError(
        f"the taught reply would not be read as the answer of {ids} ({len(wrong)} in all): {how}, the reply "
        f"{_short(texts[wrong[0]])!r} names {named}, not {first.answer_text!r} (method {method}){_why(first, texts[wrong[0]])}; "
        "reword these problems, leave them out, or choose another format"
    )


def _why(problem: Problem, text: str) -> str:
    """The reason, as far as it is known."""
    said = "the answer is"
    if text.lower().count(said) > 1 and said not in problem.answer_text.lower():
        return f', because its solution says "{said}" too'
    return ""


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
