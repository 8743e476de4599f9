"""Which folders hold the images and labels of a data set, cases that were prepared, or what a command reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..common.run_folder import PREDICTIONS
from .files import image_suffix

__all__ = ["cache_folder", "data_set_folder", "input_folders"]

# Of nnU-Net's and the Medical Segmentation Decathlon's layout, in lower case: some disks do not tell them apart.
_DATA_FOLDERS = {f"{kind}{part}" for kind in ("images", "labels") for part in ("tr", "ts", "val")}


def data_set_folder(folder: Path) -> Path | None:
    """The folder of a data set's images or labels that ``folder`` is, or lies in."""
    for place in (folder, *folder.parents):
        if place.name.casefold() in _DATA_FOLDERS and _holds_data(place):
            return place
        for held in _listed_folders(place / "dataset.json"):
            # Images beside dataset.json leave the folders beside them free.
            if folder == held or (held in folder.parents and place in held.parents):
                return held
    return None


def cache_folder(folder: Path) -> Path | None:
    """The folder of prepared cases that ``folder`` is, or lies in."""
    return next((place for place in (folder, *folder.parents) if _holds_prepared(place)), None)


def _holds_prepared(folder: Path) -> bool:
    """As data/prepared.py lays it out: files/, and a folder with settings for each way to prepare."""
    try:
        names = os.listdir(folder) if (folder / "files").is_dir() else []
        return any(re.fullmatch("[0-9a-f]{12}", name) and (folder / name / "settings.json").is_file() for name in names)
    except OSError:
        return False


def _holds_data(folder: Path) -> bool:
    """Whether a folder with such a name is a data set's; one that is only being made of predictions is not."""
    if (folder.parent / "dataset.json").is_file():
        return True
    try:
        return not (folder / PREDICTIONS).is_file() and any(image_suffix(name) for name in os.listdir(folder))
    except FileNotFoundError:
        return False
    except OSError:  # nobody may look into it, and so nobody can say that it is free
        return True


def _listed_folders(file: Path) -> set[Path]:
    """The folders of all images and labels that a dataset.json lists, whatever its layout."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):  # none, or a broken one: who reads it will say so
        return set()
    images = (text.replace("\\", "/") for text in _texts(content) if image_suffix(text))
    return {(file.parent / folder).resolve() for folder in {os.path.dirname(image) for image in images}}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def input_folders(inputs: Iterable[str | Path]) -> set[Path]:
    """The folders that hold the inputs, and those that they are linked from."""
    folders = set()
    for path in map(Path, inputs):
        if path.is_dir():
            folders.add(path)
        else:
            folders.add(path.parent)
            if path.is_symlink():
                folders.add(Path(os.path.realpath(path)).parent)
    return {Path(os.path.realpath(folder)) for folder in folders}  # an input may be a link that leads to itself
