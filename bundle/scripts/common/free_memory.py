"""How much memory is free: the smaller of the machine's and of the container's or job's (its control group)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory"]

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # version 1 writes a number near 2^63 where there is no limit


def free_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that this process may still take without anything being killed; None where the system does not tell.

    Pages of files that are merely cached count as free: the system gives them up first.

    Args:
        proc, cgroup: where the system tells of processes and of control groups.
    """
    found = list(_free_of_groups(proc, cgroup))
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(_fields(proc / "meminfo")["MemAvailable:"] * 1024)
    return min(found, default=None)


def _free_of_groups(proc: Path, cgroup: Path) -> Iterator[int]:
    """Of each group that this process is in, from its own up to the topmost, what its limit leaves."""
    for folder in _folders(proc, cgroup):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                allowed = int((folder / limit).read_text(encoding="ascii"))
                if allowed < UNLIMITED:
                    yield max(0, allowed - int((folder / used).read_text(encoding="ascii")) + _cached(folder))


def _folders(proc: Path, cgroup: Path) -> list[Path]:
    found = [cgroup, cgroup / "memory"]  # inside a container this is often all that can be seen
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            root = cgroup / "memory" if "memory" in controllers.split(",") else cgroup
            own = root / path.lstrip("/")
            found += [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return list(dict.fromkeys(found))


def _cached(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        fields = _fields(folder / "memory.stat")
        return fields.get("total_inactive_file", fields.get("inactive_file", 0))
    return 0


def _fields(file: Path) -> dict[str, int]:
    rows = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
