"""Names of files that are being written, and what a killed process left of them: whose it is and when it goes.

A file is written as ``.MACHINE-PID-RANDOM.part.NAME`` beside its final name, a folder as ``.MACHINE-PID-RANDOM.part``.
What a process of this machine left goes as soon as that process is gone, anything else after an hour: machines that
share a disk cannot see each other's processes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import uuid
from pathlib import Path

__all__ = ["remove_leftovers", "temporary_beside"]

HOUR, DAY = 3600, 86400
# Version 0.6 wrote twelve digits into the names of files and 32 into those of folders, and no process.
_NAME = re.compile(r"\.(?:[0-9a-f]{12}|[0-9a-f]{32}|([0-9a-f]{8})-(\d+)-[0-9a-f]{8})\.part(?:\..+)?", re.DOTALL)
_KEPT = 48  # of a long name's last letters: a file system takes 255 bytes, and writers choose the format by the ending


def temporary_beside(path: Path, folder: bool = False) -> Path:
    """A new name beside ``path`` for what will become it. A file's ending stays last."""
    stem = f".{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    return path.with_name(stem if folder else f"{stem}.{path.name[-_KEPT:]}")


def remove_leftovers(folder: Path, within: bool = False) -> None:
    """Remove what killed processes left half-written in a folder; nothing else, and nothing that is still written.

    Args:
        within: also in the folders that it holds, as a cache of prepared cases does.
    """
    with contextlib.suppress(OSError):
        entries = list(os.scandir(folder))
        found = [(Path(entry.path), match) for entry in entries if (match := _NAME.fullmatch(entry.name))]
        for path, match in found:
            if not path.is_symlink() and _is_abandoned(path, *match.groups()):
                _remove(path)
        for entry in entries if within else []:
            if entry.is_dir(follow_symlinks=False):
                remove_leftovers(Path(entry.path))


def _is_abandoned(path: Path, machine: str | None, pid: str | None) -> bool:
    with contextlib.suppress(OSError):  # its process has just finished it
        age = _now(path.parent) - max(file.stat().st_mtime for file in (path, *path.glob("*")))
        if machine == _machine() and os.name == "posix":  # elsewhere, to ask for a process would end it
            return age > DAY or not _is_running(int(pid or 0))  # a day: its number may belong to another by then
        return age > HOUR
    return False


def _now(folder: Path) -> float:
    """The time by the clock that stamps the folder's files, which may be a server's."""
    probe = temporary_beside(folder / "clock")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    """Digest of what makes a process number mean one process: the host, its start, and the container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("|".join(parts).encode(), digest_size=4).hexdigest()
