"""File systems of our own, where mounting is allowed."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


@functools.cache
def why_not() -> str | None:
    """Why a file system cannot be mounted here, or None. From the first call on, this process has mounts of its own,
    which nobody else sees and which go when it ends."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "only root may mount"
    if not shutil.which("mkfs.ext4"):
        return "there is no mkfs.ext4"
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        return f"mounts of one's own are not allowed ({os.strerror(ctypes.get_errno())})"
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image")
        try:
            system("mount", "--make-rprivate", "/")
            new_image(image, 8 << 20)
            with mounted(image, Path(folder, "disk")):
                return None
        except (RuntimeError, OSError) as error:
            return f"mounting is not allowed ({error})"


def new_image(image: Path, size: int) -> None:
    """An empty ext4 file system in a file."""
    with image.open("wb") as stream:
        stream.truncate(size)
    system("mkfs.ext4", "-q", str(image))


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[Path]:
    """A file system in a file, mounted as long as the block lasts."""
    where.mkdir(exist_ok=True)
    system("mount", "-o", "loop", str(image), str(where))
    try:
        yield where
    finally:
        system("umount", "-l", str(where))


@contextmanager
def small_disk(where: Path, size: str, options: str = "rw") -> Iterator[Path]:
    """A file system in memory of this size ("60k")."""
    where.mkdir(parents=True, exist_ok=True)
    system("mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(where))
    try:
        yield where
    finally:
        system("umount", "-l", str(where))


def system(*command: str) -> None:
    """Run a program of the system.

    Raises:
        RuntimeError: with what it printed, if it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
