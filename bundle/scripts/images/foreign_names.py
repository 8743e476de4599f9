"""Names of files that another system wrote: backslashes of Windows, letters that macOS takes apart."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from ..common.errors import UserError

__all__ = ["composed", "find_file"]


def composed(name: str) -> str:
    """A name as it can be compared with others, however its letters are composed."""
    return unicodedata.normalize("NFC", name)


def find_file(folder: Path, path: str) -> Path:
    """A file that a dataset.json names, also with Windows' backslashes or with letters composed in another way than on
    the disk (macOS writes é as two characters); ``folder / path`` where there is no such file.

    Raises:
        UserError: no file can have that path, or its folder may not be read.
    """
    try:
        if "\0" in path:
            raise ValueError("a character of value 0 in it")
        return _find_file(folder, path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{folder}/dataset.json names {path[:80]!r}, which cannot be read: {reason}") from error


def _find_file(folder: Path, path: str) -> Path:
    plain = folder / path.replace("\\", "/")
    if (folder / path).exists() or plain.exists():
        return folder / path if (folder / path).exists() else plain
    place = Path(plain.anchor)
    for part in plain.parts[len(place.parts) :]:
        place = place / part if (place / part).exists() else _same_name(place, part)
    return place if place.exists() else plain


def _same_name(folder: Path, name: str) -> Path:
    found = [entry for entry in (folder.iterdir() if folder.is_dir() else ()) if composed(entry.name) == composed(name)]
    return found[0] if found else folder / name
