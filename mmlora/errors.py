"""The one base of every error that this project raises on purpose."""

from __future__ import annotations


class MMLoraError(Exception):
    """Something a person can put right. The message is one sentence: what was wrong, where, what to do.

    The command line prints that sentence and exits with 2; it shows a traceback for every other error,
    because every other error is a fault of ours.
    """

    code = 2  # the command line's exit code


def on_one_line(error: BaseException, most: int | None = None) -> str:
    """What another library's error says, on one line and cut after `most` characters; its type if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__
