"""Errors that a person can cause, and the one-line messages that answer them.

The command line prints ``error: <message>`` and leaves with `exit_code`; no traceback unless
``--debug`` was given.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["DivergenceError", "FlowdiffError", "PluginError", "RunError", "UserError", "suggest"]


class FlowdiffError(Exception):
    """Base of every error that flowdiff raises on purpose."""

    exit_code: int = 1


class UserError(FlowdiffError):
    """Bad input: the message says what is wrong, where, and what to do."""

    exit_code = 2


class PluginError(UserError):
    """A plug-in is missing, broken, incompatible or ambiguous; the message names its package."""


class RunError(FlowdiffError):
    """A run that began correctly could not be carried on (full disk, lost file)."""


class DivergenceError(RunError):
    """Training produced a non-finite number or left the range where it can recover."""


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint to append to an error message.

    Args:
        word: what the user wrote.
        known: what would have been accepted.

    Returns:
        `` (did you mean 'x'?)``, or `` (one of: a, b, c)`` where nothing is close.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {close[0]!r}?)"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f" (one of: {shown})"
