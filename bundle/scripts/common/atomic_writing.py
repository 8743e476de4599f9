"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from .errors import note_file
from .leftovers import temporary_beside

__all__ = ["flush_file", "flush_folder", "replacing"]


class replacing:
    """Write to a temporary file beside ``path`` and rename it at the end: no half-written file is ever seen, and after
    a power loss ``path`` is as it was before or whole.

    A link at ``path`` is replaced, and what it leads to stays as it was.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.temporary = temporary_beside(self.path)

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type | None, error: BaseException | None = None, *_: object) -> None:
        note_file(error, self.path)
        try:
            if kind is None:
                flush_file(self.temporary)
                os.replace(self.temporary, self.path)
                flush_folder(self.path.parent)
        except OSError as failed:
            note_file(failed, self.path)
            raise
        finally:
            self.temporary.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """Wait until what was written to a file is on the disk.

    Raises:
        OSError: the disk is full or broken.
    """
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a file system that cannot
                raise


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
