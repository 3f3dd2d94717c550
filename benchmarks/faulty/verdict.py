"""What counts for a fault, by rules that are the same for both sides, except one.

An ending is *told* if it shows a person what happened. mmlora has to raise an `MMLoraError`; any other exception is a crash. Of
the Trainer and peft less is asked: the exception's type and message together have to name the file (or its folder), or the cause
by one of `CAUSES`. A run that goes on has *said* it if a line of its output names one of these.
"""

from __future__ import annotations

from faulty.children import Outcome

LOST = "lost work"  # what a finished checkpoint or an older file of the same name held is gone or cannot be used
WRONG = "wrong numbers"  # the result is not that without the fault, and no message says so
CRASH = "crash"  # an ending without a clear error, or none in time
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
    """Whether the output of a run that went on names the file or the cause."""
    return any(names(line, kind, files) for line in outcome.output.splitlines())


def ending(outcome: Outcome, kind: str, side: str, files: tuple[str, ...] = ()) -> str:
    """ "ended", "refused" (with a sentence), "killed" (by us) or "crash"."""
    if outcome.killed:
        return "killed"
    if outcome.result is not None:
        return "ended"
    return "refused" if told(outcome, kind, side, files) else CRASH


def message(outcome: Outcome) -> str:
    """What the record shows of this outcome."""
    if outcome.hung:
        return "no end in time"
    if outcome.signal:
        return f"ended by signal {outcome.signal}: {outcome.output[-200:]}"
    return f"{outcome.error}: {outcome.message}"[:400] if outcome.error else ""
