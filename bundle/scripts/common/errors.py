"""The error for everything a user can put right, and how the command line shows it."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from .root_causes import causes, known_reason, lack_of_memory, note_file, root_cause

__all__ = [
    "UserError",
    "cannot_write",
    "find_user_error",
    "first_few",
    "in_one_line",
    "note_file",
    "one_line_reason",
    "show_user_errors_plainly",
]


class UserError(ValueError):
    """Something the user can put right. The message names the file or key, what is wrong and what to do."""


def cannot_write(place: Any, reason: str | None, option: str) -> UserError:
    """The error of a folder or file that cannot be written.

    Args:
        place: as it was typed.
        reason: what the system says, or what stands there.
        option: that names another place, such as "--output_dir".
    """
    return UserError(f"cannot write to {place}: {reason}; give another {option}")


def first_few(names: Iterable[Any], most: int = 5, between: str = ", ", counted: bool = False) -> str:
    """A list of names as a message shows it: ``a, b, …``.

    Args:
        most: so many are shown.
        counted: whether the end says how many are left out.
    """
    shown = list(map(str, names))
    left_out = len(shown) - most
    end = [] if left_out < 1 else [f"… and {left_out} more" if counted else "…"]
    return between.join(shown[:most] + end)


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError that caused ``error``, however many library errors were wrapped around it, also if it was raised
    in another process."""
    for cause in causes(error)[::-1]:
        if isinstance(cause.error, UserError):
            return cause.error
        if cause.error is None and cause.kind == UserError.__name__:
            return UserError(cause.message)
    return None


def one_line_reason(error: BaseException) -> str | None:
    """What a user can do about ``error``, whose cause lies with the machine, a file or a setting; None for a mistake
    of ours, whose traceback is wanted."""
    user_error = find_user_error(error) or _refused_argument(error)
    return str(user_error) if user_error is not None else known_reason(error)


def in_one_line(error: BaseException) -> str:
    """The real reason of an error: what a user can do about it, else kind and first line of the innermost cause."""
    return one_line_reason(error) or str(root_cause(error))


def show_user_errors_plainly() -> None:
    """Make an uncaught error that is not a mistake of ours print its reason alone, and Ctrl-C a word; the exit status
    is 1 as for every other error, which keeps its traceback. What goes wrong after the fact, in a destructor, is a
    line too, unless it is the same again, or memory again. What an output cannot encode is written escaped.
    """
    said = ""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            reason = one_line_reason(error)
        except MemoryError as again:
            reason = one_line_reason(again)
        if issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted", file=sys.stderr)
        elif reason:
            nonlocal said
            said = reason
            print(f"\nerror: {reason}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    def thread_hook(failed: threading.ExceptHookArgs) -> None:  # TensorBoard's, on a full disk; the run goes on
        if failed.exc_value is not None and (reason := one_line_reason(failed.exc_value)):
            print(f"\nwarning: {reason}", file=sys.stderr)
        else:
            threading.__excepthook__(failed)

    def ignored_hook(failed: sys.UnraisableHookArgs) -> None:  # of an object that is taken down half-made
        if failed.exc_value is None or ((again := lack_of_memory(failed.exc_value)) and again in said):
            return
        if (reason := in_one_line(failed.exc_value)) != said:
            print(f"\nwarning: {reason} (while cleaning up)", file=sys.stderr)

    sys.excepthook, threading.excepthook, sys.unraisablehook = hook, thread_hook, ignored_hook
    for stream in (sys.stdout, sys.stderr):  # a Windows code page cannot hold every name
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # closed
                stream.reconfigure(errors="backslashreplace")


def _refused_argument(error: BaseException) -> ValueError | None:
    """The ValueError by which a component of ours refuses what a config hands to it, as the network does."""
    cause = error.__cause__
    wrapped = str(error).startswith("Failed to instantiate component 'scripts.")  # MONAI's words
    if not wrapped or type(cause) is not ValueError:
        return None
    *_, (frame, _) = traceback.walk_tb(cause.__traceback__)
    return cause if str(frame.f_globals.get("__name__")).startswith("scripts.") else None
