"""Whether the arrays of a prepared case are still what was written: size and digest of each stand beside them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from ..common.leftovers import temporary_beside

__all__ = ["LIST", "NO_LIST", "find_damage", "list_arrays", "renew", "renewed_place"]

LIST = "arrays.json"  # {"image.npy": [bytes, digest], …}
NO_LIST = f"without the {LIST} of newer versions"
BLOCK = 1 << 22


def list_arrays(folder: Path) -> None:
    """Note size and digest of each array in a folder that is being written."""
    arrays = {file.name: [file.stat().st_size, _digest(file)] for file in sorted(folder.glob("*.npy"))}
    (folder / LIST).write_text(json.dumps(arrays, indent=1) + "\n", encoding="ascii")


def find_damage(folder: Path) -> str | None:
    """What is wrong with the arrays in a folder, None if they are as they were written. Reads every byte of them."""
    try:
        arrays = json.loads((folder / LIST).read_text(encoding="ascii"))
        expected = {name: (int(size), str(digest)) for name, (size, digest) in arrays.items()}
    except FileNotFoundError:
        return NO_LIST
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return f"has a broken {LIST}"
    if not {"image.npy", "label.npy", "foreground.npy"} <= expected.keys():
        return f"has a broken {LIST}"
    for name, (size, digest) in expected.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"has {found} instead of {size} bytes in {name}"
            if _digest(folder / name) != digest:
                return f"has other content in {name} than was written"
        except OSError as error:
            return f"has no readable {name} ({error.strerror})"
    return None


def renewed_place(folder: Path) -> Path:
    """Where the new arrays of a damaged case are written, beside its folder."""
    return temporary_beside(folder, folder=True)


def renew(folder: Path, place: Path) -> None:
    """Move new arrays into the folder of a damaged case, whose files may be open elsewhere.

    One by one and the list last: a run that reads the case finds each file at any moment, and a kill in between leaves
    a case that the next run prepares once more.
    """
    for file in sorted(place.iterdir(), key=lambda file: file.name == LIST):
        os.replace(file, folder / file.name)
    shutil.rmtree(place, ignore_errors=True)


def _digest(file: Path) -> str:
    total = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            total.update(block)
    return total.hexdigest()
