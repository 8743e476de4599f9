"""What may be written where: the one place that knows, asked by every command before it does or makes anything.

A folder that is written into must not hold the images and labels of a data set, the inputs of the command or the
weights that the bundle ships, nor lie among prepared cases, which may be deleted; it must be one that can be written;
and the names of its files must differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..common import BUNDLE_ROOT
from ..common.command_line import or_none
from ..common.errors import UserError, cannot_write
from ..common.leftovers import remove_leftovers, temporary_beside
from ..common.run_folder import PREDICTIONS, SUMMARY, FinishedFolder, RunFolder
from .data_folders import cache_folder, data_set_folder, input_folders
from .files import image_suffix

__all__ = [
    "check_names",
    "check_output_file",
    "check_output_folder",
    "nearest_existing",
    "open_folder",
    "refuse_foreign",
]

MODELS = BUNDLE_ROOT / "models"  # the weights that the bundle ships
# What runs, predictions, evaluations and reports write under these names.
_RUN = RunFolder("")
_FINISHED = FinishedFolder("")
KEPT = {_RUN.settings.name, _RUN.cases.name, _RUN.evaluation.metrics.name, PREDICTIONS, SUMMARY}
KEPT |= {_FINISHED.record.name, _FINISHED.configuration.name}


def check_output_folder(folder: Any, option: str, inputs: Iterable[str | Path] = ()) -> Path:
    """The folder that results go to; nothing is made yet, see open_folder.

    Args:
        folder: as it was typed.
        option: that names it, such as "--output_dir".
        inputs: files that are read, and folders of such files.

    Raises:
        UserError: it holds inputs, the images or labels of a data set, the bundle's weights or (but for --cache_dir)
            prepared cases; it is a file, or lies in one; or it cannot be written.
    """
    place = _resolved(folder, option)
    existing = nearest_existing(place)
    if not existing.is_dir():
        raise cannot_write(folder, f"{existing} is a file, not a folder", option)
    if place in input_folders(inputs):
        raise UserError(
            f"{option} {folder}: what is written would lie among images or labels that are read: give another folder"
        )
    _check_place(place, folder, option)
    if place == MODELS or (place.parent == MODELS and _ships_weights(place)):
        raise UserError(f"{option} {folder} holds the weights that come with the bundle: give another folder")
    _check_writable(existing, folder, option)
    return Path(str(folder))


def check_output_file(file: Any, option: str, inputs: Iterable[str | Path] = ()) -> Path:
    """The one file that a command writes; nothing is made yet. Whether it may replace a file is the command's to ask.

    Args:
        inputs: files that are read.

    Raises:
        UserError: it is a folder, one of the inputs, a dataset.json, an image, a file of a run or of results, or one
            that holds something else than JSON; it lies among a data set or prepared cases; or it cannot be
            written.
    """
    place = _resolved(file, option)
    if place.is_dir():
        raise UserError(f"{option} {file} is a folder: give a file")
    if place in {Path(os.path.realpath(path)) for path in inputs} or place.name.casefold() == "dataset.json":
        raise UserError(f"{option} {file} is a file that is read, which would be lost: give another")
    if image_suffix(place) is not None:
        raise UserError(f"{option} {file}: that is the name of an image, and what is written is JSON: give another")
    if place.name in KEPT or not _may_be_json(place):
        raise UserError(f"{option} {file} holds something else than what is written, and would be lost: give another")
    existing = nearest_existing(place.parent)
    if not existing.is_dir():
        raise cannot_write(file, f"{existing} is a file, not a folder", option)
    _check_place(place.parent, file, option)
    _check_writable(existing, file, option)
    return Path(str(file))


def open_folder(folder: Path, option: str) -> None:
    """Make a folder that was checked, try to write into it, and remove what killed processes left in it.

    Raises:
        UserError: it cannot be written.
    """
    probe = temporary_beside(folder / "writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder, error.strerror, option) from error
    remove_leftovers(folder)


def check_names(outputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse outputs of which two would be one file, before the first is written.

    Args:
        outputs: (what it is made from, path) of every file, the small ones beside the results included.

    Raises:
        UserError: names the sources and the file.
    """
    ignores_case = lru_cache(maxsize=None)(_ignores_case)
    first: dict[str, str] = {}
    for source, path in outputs:
        key = str(path).casefold() if ignores_case(path.parent) else str(path)
        if first.setdefault(key, source) != source:
            raise UserError(f"{first[key]} and {source} would both be written into {path}: rename one of them")


def refuse_foreign(files: Iterable[Path], option: str, empty_too: bool = False) -> None:
    """Refuse to replace files that are there, where no run of the bundle is known to have written them.

    Args:
        empty_too: also files that hold nothing, which a power loss may have left.

    Raises:
        UserError: names the first of them.
    """
    there = [file for file in files if os.path.lexists(file)]
    there = [file for file in there if empty_too or not file.is_file() or file.stat().st_size]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(
            f"{there[0]}{more} would be replaced, and nothing says that it may be lost: move it away, or give another "
            f"{option}"
        )


def _resolved(path: Any, option: str) -> Path:
    """The place that is meant, whatever links and ``..`` lead to it."""
    text = str(path)
    if or_none(path) is None or not text.strip():
        raise UserError(f"{option} names nothing: give a path")
    if "::" in text and not os.path.lexists(text):
        raise UserError(f"{option} {text}: MONAI reads # in a path as ::, so give a path without #")
    if text.startswith("~") and not os.path.lexists(text):
        raise UserError(f"{option} {text}: nothing here knows what ~ stands for, so write the whole path")
    try:
        place = Path(text).resolve()
        os.path.lexists(place / "name")
        place.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise cannot_write(repr(text[:200]), reason, option) from error
    return place


def nearest_existing(place: Path) -> Path:
    """The place itself or the nearest one above it that is there."""
    return next(path for path in (place, *place.parents) if os.path.lexists(path))


def _check_writable(existing: Path, shown: Any, option: str) -> None:
    if not os.access(existing, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(existing).f_flag & os.ST_RDONLY
        reason = "the disk is read-only" if read_only else f"no permission in {existing}"
        raise cannot_write(shown, reason, option)


def _check_place(folder: Path, shown: Any, option: str) -> None:
    held = data_set_folder(folder)
    if held is not None:
        raise UserError(f"{option} {shown}: {held} holds the images or labels of a data set: give a place elsewhere")
    if option != "--cache_dir" and (cache := cache_folder(folder)):
        raise UserError(f"{option} {shown}: {cache} holds prepared cases and may be deleted: give a place elsewhere")


def _may_be_json(file: Path) -> bool:
    """Whether a file is not there, is called so, is empty, or begins as a JSON object does, whole or not."""
    if not file.is_file() or file.suffix.lower() == ".json":
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"", b"{")
    except OSError:  # said by whoever writes
        return True


def _ships_weights(folder: Path) -> bool:
    """A run's own folder has its settings beside its weights."""
    run = RunFolder(folder)
    return run.best.is_file() and not run.settings.is_file()


def _ignores_case(folder: Path) -> bool:
    """Whether names that differ in upper and lower case are one file there."""
    existing = nearest_existing(folder.absolute())
    other = existing.with_name(existing.name.swapcase())
    try:
        return other != existing and other.samefile(existing)
    except OSError:
        return False
