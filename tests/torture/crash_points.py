"""Makes a child die at a chosen moment of its work on the disk.

``record`` lists the events of a command (open for writing, mkdir, fsync, rename, replace, unlink, rmdir) in a folder;
``die`` kills the child right before or right after one of them. ``die_at_size`` kills it in the midst of a write, as
soon as a file grows beyond a size: also where a library writes in C.
"""

from __future__ import annotations

import builtins
import io
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .server import Setup

_BY_PATH = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Watcher = Callable[[str, str, str], None]


def record(folders: list[Path], into: Path) -> Setup:
    """Write a line for each event: its name and that of the file."""

    def setup() -> None:
        stream = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        here = os.getpid()

        def watch(moment: str, event: str, name: str) -> None:
            if moment == "before" and os.getpid() == here:
                os.write(stream, f"{event} {name}\n".encode())

        _patch(folders, watch)

    return setup


def die(folders: list[Path], number: int, moment: str, sign: int = signal.SIGKILL) -> Setup:
    """Send the child a signal "before" or "after" its event of this number, counted from 0."""

    def setup() -> None:
        here, count = os.getpid(), 0

        def watch(now: str, event: str, name: str) -> None:
            nonlocal count
            if now != moment or os.getpid() != here:
                return
            if count == number:
                os.kill(here, sign)
            count += 1

        _patch(folders, watch)

    return setup


def at_first(folders: list[Path], event: str, name: str, act: Callable[[], object]) -> Setup:
    """Call ``act`` in the child after the first event of this kind whose file's name holds ``name``."""

    def setup() -> None:
        here, done = os.getpid(), False

        def watch(moment: str, now: str, file: str) -> None:
            nonlocal done
            if moment == "after" and now == event and name in file and os.getpid() == here and not done:
                done = True
                act()

        _patch(folders, watch)

    return setup


def failing(folders: list[Path], event: str, name: str, number: int) -> Setup:
    """Have each event of this kind, on files whose names hold ``name``, fail with this error number."""

    def setup() -> None:
        def watch(moment: str, now: str, file: str) -> None:
            if moment == "before" and now == event and name in file:
                raise OSError(number, os.strerror(number), file)

        _patch(folders, watch)

    return setup


def die_at_size(size: int) -> Setup:
    """Kill the child when it writes beyond this size in any file: the file then ends there."""

    def setup() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return setup


def _patch(folders: list[Path], watch: Watcher) -> None:
    """Have ``watch`` called before and after each event in these folders."""
    roots = [str(folder) for folder in folders]

    def inside(path: Any) -> str | None:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        root = next((root for root in roots if text.startswith(root)), None)
        return None if root is None else text[len(root) :].lstrip("/") or "."

    def watched(event: str, function: Callable[..., Any], changes: Callable[..., bool]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            name = inside(path) if changes(*rest, **named) else None
            if name is None:
                return function(path, *rest, **named)
            watch("before", event, name)
            result = function(path, *rest, **named)
            watch("after", event, name)
            return result

        return call

    def always(*rest: Any, **named: Any) -> bool:
        return True

    def for_writing(mode: Any = "r", *rest: Any, **named: Any) -> bool:
        return bool(set(str(mode)) & set("wax+"))

    def with_flags(flags: int = 0, *rest: Any, **named: Any) -> bool:
        return bool(flags & _WRITING)

    for name in (*_BY_PATH, "fsync"):
        setattr(os, name, watched(name, getattr(os, name), always))
    os.open = watched("open", os.open, with_flags)
    builtins.open = io.open = watched("open", io.open, for_writing)
