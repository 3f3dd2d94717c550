"""What is counted of a fault, by the same rules for both sides but one.

An ending is *told* where a person can see from it what happened. Ours has to raise an `MMLoraError`; any other exception is a
crash without a sentence. Of the Trainer's and peft's exceptions less is asked: type and message together have to name the
file (or its folder), or the cause by one of `CAUSES`. A run that goes on has told it where a line of its output does so.
"""

from __future__ import annotations

from faulty.children import Outcome

LOST = "lost work"  # what a finished checkpoint, or an older file under this name, had kept is gone or cannot be gone on from
WRONG = "wrong numbers"  # the end is another one than without the fault, and nothing was said
CRASH = "crash"  # an ending without a sentence, or none in time
HALF = "half a file"  # under its final name
CODE = "code executed"
COUNTED = (LOST, WRONG, CRASH, HALF, CODE)

_BROKEN = (
    "corrupt", "damage", "truncat", "incomplete", "invalid", "header", "checksum", "crc", "not what was written", "cannot be read",
    "missing", "unfinished", "unfit", "not fit", "cut short", "cut off", "anew", "mismatch", "unexpected", "not a zip",
    "failed finding central directory", "could not find checkpoint", "can't find a valid checkpoint", "is empty", "changed", "expected to be able to read",
)  # fmt: skip
CAUSES = {
    "kill": _BROKEN,
    "term": _BROKEN,
    "disk": ("no space", "space left", "too large", "disk", "free some space"),
    "damage": _BROKEN,
    "hostile": ("pickle", "safetensors", "weights_only", "weights only", "trust_remote_code", "custom code", "code in its repo",
                "sandbox", "unsafe", "does not recognize this architecture", "architecture", "never run"),
    "nan": ("nan", "finite"),
    "memory": ("memory", "no executable batch size"),
    "process": ("sigkill", "signal 9", "exitcode", "process", "peer"),
}  # fmt: skip


def names(text: str, kind: str, files: tuple[str, ...]) -> bool:
    """Whether the text names one of the files, or a cause of this kind."""
    lower = text.lower()
    return any(file.lower() in lower for file in files) or any(cause in lower for cause in CAUSES[kind])


def told(outcome: Outcome, kind: str, side: str, files: tuple[str, ...]) -> bool:
    """Whether this ending by an exception says what happened."""
    if outcome.hung or outcome.signal:
        return False
    if side == "mmlora":
        return outcome.sentence
    return names(f"{outcome.error} {outcome.message}", kind, files)


def said(outcome: Outcome, kind: str, files: tuple[str, ...]) -> bool:
    """Whether a run that went on told it on its way."""
    return any(names(line, kind, files) for line in outcome.output.splitlines())


def ending(outcome: Outcome, kind: str, side: str, files: tuple[str, ...] = ()) -> str:
    """ "ended", "refused" (with a sentence), "killed" (by us) or "crash"."""
    if outcome.killed:
        return "killed"
    if outcome.result is not None:
        return "ended"
    return "refused" if told(outcome, kind, side, files) else CRASH


def message(outcome: Outcome) -> str:
    """What a reader of the record needs to see of it."""
    if outcome.hung:
        return "no end in time"
    if outcome.signal:
        return f"ended by signal {outcome.signal}: {outcome.output[-200:]}"
    return f"{outcome.error}: {outcome.message}"[:400] if outcome.error else ""
