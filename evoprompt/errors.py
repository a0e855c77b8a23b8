"""The errors evoprompt raises on purpose, and how sentences count and list things.

Every message says what is wrong with the value and where, what is accepted, and what to do. ``exit_code`` is what the
command line returns: 2 when nothing was started (a recipe, some data, a judge or a folder is unusable), 1 when
something failed while running.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


class EvopromptError(Exception):
    """A problem the user can act on; the command line prints it as one line, without a traceback."""

    exit_code: ClassVar[int] = 1


class RecipeError(EvopromptError, ValueError):
    """A recipe or an override of it is not usable; raised before anything starts."""

    exit_code: ClassVar[int] = 2


class DataError(EvopromptError, ValueError):
    """Images, label files or prompt files are not usable."""

    exit_code: ClassVar[int] = 2


class JudgeError(EvopromptError, ValueError):
    """A judge cannot be loaded, or does not fit the prompt, the recipe or the machine."""

    exit_code: ClassVar[int] = 2


class RunError(EvopromptError, RuntimeError):
    """A run failed while it was going on."""

    exit_code: ClassVar[int] = 1


class StartError(RunError):
    """A run cannot be started, resumed or read as it was asked for; nothing was changed."""

    exit_code: ClassVar[int] = 2


def listed(problems: Sequence[str], limit: int = 5) -> str:
    """Join problems for one message: the first ``limit``, then how many more there are.

    Args:
        problems: The problems in the order they were found, each without a full stop.
        limit: How many are written out; at least 1.

    Returns:
        For example ``"a; b; c and 12 more"``; an empty string for no problems.
    """
    shown = "; ".join(problems[:limit])
    hidden = len(problems) - limit
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def short(error: Exception) -> str:
    """The first two sentences of what a library says, without a full stop: torch tells of its memory at length."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ". ".join(line.split(". ")[:2]).rstrip(".")


def counted(number: int, thing: str) -> str:
    """A number of things: ``"1 row"``, ``"7 rows"``; for words whose plural ends in s."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
