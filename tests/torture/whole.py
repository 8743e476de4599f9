"""What a folder holds after a command was killed: broken files, leftovers, and whether a run ended as it should."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

DAYS = 86400
# Differ between two runs that are the same: when, how long, and where the run lay.
_TIMES = {"seconds", "samples_per_second", "data_seconds", "time", "date", "created", "evaluation_dir", "checkpoint"}
_TIMES |= {"weights"}  # digests of files, in which PyTorch keeps the temporary name that they had


def broken_files(folder: Path) -> list[str]:
    """The files in place, so not the temporary ones, that do not open or are not whole."""
    broken = []
    for file in _files(folder):
        if is_leftover(file, folder):
            continue
        read = next((read for ending, read in _READERS.items() if file.name.endswith(ending)), None)
        try:
            if read:
                read(file)
        except Exception as error:  # whatever a library makes of half a file
            if file.exists():
                broken.append(f"{file.relative_to(folder)}: {type(error).__name__}")
    return broken


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders that a command left behind, the outermost of each."""
    found = [path for path in folder.rglob("*") if is_leftover(path, folder)]
    return [path for path in found if not is_leftover(path.parent, folder)]


def is_leftover(path: Path, folder: Path) -> bool:
    """Whether the path, or a folder that it is in, is temporary by its name: a hidden one, or one with .part."""
    parts = path.relative_to(folder).parts if path != folder else ()
    return any(part.startswith(".") or ".part" in part or part.endswith(".tmp") for part in parts)


def age_leftovers(folder: Path, days: float = 3) -> None:
    """Set their times back, so that the next run may take them for nobody's."""
    past = time.time() - days * DAYS
    for path in leftovers(folder):
        for inner in [path, *(path.rglob("*") if path.is_dir() else ())]:
            os.utime(inner, (past, past), follow_symlinks=False)


def contents(folder: Path) -> dict[str, str]:
    """Name -> digest of each file in place, without what differs from run to run."""
    return {str(file.relative_to(folder)): _digest_file(file) for file in _files(folder) if _is_compared(file, folder)}


def differing(now: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Names of the files that only one of two folders holds, or that differ."""
    return sorted(name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name))


def raw_contents(folder: Path) -> dict[str, str]:
    """Name -> digest of the bytes of each file, for folders that nothing may change."""
    return {str(file.relative_to(folder)): _digest(file.read_bytes()) for file in _files(folder)}


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file()) if folder.exists() else ()


def _is_compared(file: Path, folder: Path) -> bool:
    changing = file.name.startswith("events.out.tfevents") or file.name in ("training.log", "report.html")
    index = file.parent.name == "files" and file.suffix == ".json"  # the cache's, by path and time of the source
    return not (is_leftover(file, folder) or changing or index)


def _digest_file(file: Path) -> str:
    try:
        return _digest_content(file)
    except Exception as error:  # whatever a library makes of a broken file
        return type(error).__name__


def _digest_content(file: Path) -> str:
    if file.suffix == ".pt":
        return _digest(_flat(torch.load(file, map_location="cpu", weights_only=True)))
    if file.suffix == ".jsonl":
        return _digest(_flat([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]))
    if file.suffix == ".json":
        return _digest(_flat(_same_runs(json.loads(file.read_text(encoding="utf-8")))))
    return _digest(file.read_bytes())


def _same_runs(content: Any) -> Any:
    """predictions.json counts runs; of a folder that took two, only which cases were predicted is compared."""
    if isinstance(content, dict) and isinstance(content.get("runs"), list):
        return sorted({name for run in content["runs"] for name in run.get("predicted", [])})
    return content


def _flat(value: Any) -> bytes:
    """Bytes that tell two values apart, without the keys of _TIMES."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        keys = sorted((key for key in value if key not in _TIMES), key=str)
        return b"{" + b",".join(str(key).encode() + b":" + _flat(value[key]) for key in keys) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(_flat, value)) + b"]"
    return repr(value).encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _read_weights(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        if archive.testzip():
            raise ValueError("its checksum is wrong")
    torch.load(file, map_location="cpu", weights_only=True)


def _read_lines(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for line in text.splitlines():
        json.loads(line)
    _ends_with(text, "\n")


def _read_picture(file: Path) -> None:
    with Image.open(file) as picture:
        picture.load()


def _read_table(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    _ends_with(text, "\n")
    if len({len(row) for row in csv.reader(text.splitlines())}) != 1:
        raise ValueError("rows of different lengths")


def _ends_with(text: str, end: str) -> None:
    if text and not text.endswith(end):
        raise ValueError("its end is missing")


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": _read_weights,
    ".jsonl": _read_lines,
    ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
    ".npy": np.load,
    ".npz": lambda file: dict(np.load(file)),
    ".nii.gz": lambda file: np.asarray(nib.load(file).dataobj),
    ".png": _read_picture,
    ".csv": _read_table,
    ".html": lambda file: _ends_with(file.read_text(encoding="utf-8").rstrip(), "</html>"),
}
