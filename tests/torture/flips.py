"""Flips single bits in files, as a failing disk or transfer does, and reads them with the bundle's own functions.

A flip that changes a decoded voxel or weight has to be noticed: the file is refused or, in the cache of prepared cases,
the case is prepared anew. A flip that changes nothing that is read (a comment, padding) may pass. TIFF is not among the
formats: it has no checksum by which anybody could tell.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image

from .ground import Ground
from .table import Journal

FLIPS = 300  # a format, at most
IMAGES = (".nii.gz", ".mha", ".nrrd", ".png")

Read = Callable[[Path], Any]


def run(ground: Ground, journal: Journal, rng: random.Random, until: float) -> None:
    """Flip bits in each kind of file, with an equal share of the time."""
    with quiet(journal.folder / "noise.txt"):
        _run(ground, journal, rng, until)


@contextlib.contextmanager
def quiet(into: Path) -> Iterator[None]:
    """Libraries in C complain of each broken file on the standard error output; that goes into a file."""
    kept = os.dup(2)
    with into.open("a") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _run(ground: Ground, journal: Journal, rng: random.Random, until: float) -> None:
    folder = ground.empty("flips")
    jobs = [(_write_image(folder / f"image{ending}"), _read_image) for ending in IMAGES]
    jobs += [(shutil.copy(ground.run / name, folder), _read_weights) for name in ("model.pt", "checkpoint.pt")]
    for left, (file, read) in zip(range(len(jobs) + 1, 0, -1), jobs):
        share = (until - time.monotonic()) / left
        _flip_file(Path(file), read, journal, rng, time.monotonic() + share)
    _flip_cache(ground, journal, rng, until)


def flip(file: Path, content: bytes, rng: random.Random) -> str:
    """Write the content with one bit flipped; says which."""
    position, bit = rng.randrange(len(content)), rng.randrange(8)
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    file.write_bytes(changed)
    return f"byte {position} of {len(content)}, bit {bit}"


def _flip_file(file: Path, read: Read, journal: Journal, rng: random.Random, until: float) -> None:
    row = journal.row("flipped bits", file.name.replace("image", "image "))
    content, truth = file.read_bytes(), read(file)
    harmless = 0
    while row.trials < FLIPS and (row.trials < 5 or time.monotonic() < until):
        name = flip(file, content, rng)
        try:
            same = _same(read(file), truth)
        except Exception:  # refused, in whichever way: how it is said is the business of the faults
            journal.trial(row, name, {})
            continue
        harmless += same
        journal.trial(row, name, {} if same else {"silent": "read as something else"})
    row.note = f"{harmless} changed nothing that is read" if harmless else ""


def _flip_cache(ground: Ground, journal: Journal, rng: random.Random, until: float) -> None:
    """Flip a bit in a prepared case; then prepare_cases, which each run calls first, has to make it anew."""
    row = journal.row("flipped bits", "cache arrays")
    cache = ground.empty("flip_cache")
    dataset = _prepared_dataset(ground, cache)
    prepare(dataset)
    files = sorted(dataset.folder.rglob("*.npy"))
    truth = {file: np.load(file) for file in files}
    contents = {file: file.read_bytes() for file in files}
    while row.trials < FLIPS and (row.trials < 5 or time.monotonic() < until):
        file = rng.choice(files)
        name = f"{file.name}, {_damage(file, contents[file], rng)}"
        try:
            prepare(_prepared_dataset(ground, cache))  # as a new run has it
            problems = {} if _same(np.load(file), truth[file]) else {"silent": "left as it was"}
        except Exception as error:
            problems = {"not prepared anew": f"{type(error).__name__}: {error}"}
        journal.trial(row, name, problems)
        if problems:
            file.write_bytes(contents[file])


def _damage(file: Path, content: bytes, rng: random.Random) -> str:
    """One flipped bit or, in a quarter of the cases, an end that is missing."""
    if rng.random() < 0.75:
        return flip(file, content, rng)
    length = rng.randrange(len(content))
    file.write_bytes(content[:length])
    return f"cut to {length} of {len(content)} bytes"


def prepare(dataset: Any) -> None:
    """What a training does first with its cases."""
    importlib.import_module("scripts.data.preparation").prepare_cases(dataset, dataset)


def _prepared_dataset(ground: Ground, folder: Path) -> Any:
    """The volumes as a training has them."""
    prepared, transforms = (importlib.import_module(f"scripts.data.{name}") for name in ("prepared", "transforms"))
    names = sorted(file.name.removesuffix(".nii.gz") for file in (ground.volumes / "labelsTr").iterdir())
    cases = [
        {
            "image": [str(ground.images / f"{name}_0000.nii.gz")],
            "label": str(ground.volumes / f"labelsTr/{name}.nii.gz"),
            "name": name,
        }
        for name in names[:2]
    ]
    preparation = transforms.Preparation(spatial_dims=3, in_channels=1, labels={"core": 1, "rim": 2})
    return prepared.PreparedDataset(cases, preparation.transforms("image", "label"), None, folder, preparation)


def _write_image(file: Path) -> Path:
    noise = np.random.default_rng(0).normal(100, 10, (24, 24, 24))
    array = noise.astype(np.int16)
    if file.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(array, np.eye(4)), file)
    elif file.suffix == ".png":
        Image.fromarray(np.clip(noise[0], 0, 255).astype(np.uint8)).save(file)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(file), useCompression=True)
    return file


def _read_image(file: Path) -> np.ndarray:
    return importlib.import_module("scripts.images.formats").read_raw(file).array.copy()


def _read_weights(file: Path) -> Any:
    """What a resumed training or an inference takes from a file; read_weights is the bundle's gate."""
    importlib.import_module("scripts.engines.weights").read_weights(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (one != one and other != other)
