"""The error for everything a user can put right, and how the command line shows it."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["UserError", "find_user_error", "in_one_line", "show_user_errors_plainly"]


class UserError(ValueError):
    """Something the user can put right. The message names the file or key, what is wrong and what to do."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError that caused ``error``, however many library errors were wrapped around it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _refused_argument(error: BaseException) -> ValueError | None:
    wrapped = str(error).startswith("Failed to instantiate component 'scripts.")  # MONAI's words
    return error.__cause__ if wrapped and type(error.__cause__) is ValueError else None


def in_one_line(error: BaseException) -> str:
    """What kind of error it is and the first line of its message, if it has one."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def show_user_errors_plainly() -> None:
    """Make an uncaught :class:`UserError` print its message alone, and Ctrl-C a word.

    So it does with the ValueError by which a component of ours refuses what a config hands to it, as the network
    does; every other error keeps its traceback.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        user_error = find_user_error(error) or _refused_argument(error)
        if user_error is not None:
            print(f"\nerror: {user_error}", file=sys.stderr)
        elif issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
