"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "NotComputable", "TxevalError", "nearest", "unknown"]


class TxevalError(Exception):
    """Base of every error that txeval raises on purpose."""


class InputError(TxevalError):
    """Input that cannot be used: the command line prints it and ends with exit status 2.

    Parameters
    ----------
    problem
        What is wrong, with the file, column and value that show it.
    remedy
        What the user can do about it.
    """

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n  -> {remedy}" if remedy else problem)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.problem, self.remedy))


def _rebuild(problem: str, remedy: str) -> InputError:
    return InputError(problem, remedy=remedy)


class NotComputable(TxevalError):
    """A score that cannot be computed here: it becomes a row with this reason, never a hole."""


def nearest(value: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Choices that resemble a value, best first (case-insensitive; at most `n`)."""
    names = [str(choice) for choice in choices]
    lowered = {name.lower(): name for name in reversed(names)}
    hits = difflib.get_close_matches(value.lower(), list(lowered), n=n, cutoff=0.5)
    contained = [low for low in lowered if value and (value.lower() in low or low in value.lower())]
    return [lowered[low] for low in dict.fromkeys([*hits, *contained])][:n]


def unknown(kind: str, value: str, choices: Iterable[str], *, where: str = "") -> InputError:
    """Build the error for a name that does not exist, naming the nearest ones that do."""
    names = [str(choice) for choice in choices]
    close = nearest(value, names)
    place = f" in {where}" if where else ""
    if close:
        remedy = f"did you mean {' or '.join(repr(name) for name in close)}?"
    else:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        remedy = f"choose one of: {shown}" if names else f"there is no {kind} to choose from"
    return InputError(f"no {kind} called {value!r}{place}", remedy=remedy)
