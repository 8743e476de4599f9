"""Label maps on disk: predictions, the references they belong to, and the voxel size of both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from ..common.errors import UserError
from .files import case_name, list_images
from .formats import planar, read_raw
from .geometry import placement_conflict, spacing_of
from .label_names import listed, undeclared_hint, values_in
from .task import Task

__all__ = ["LabelMap", "Pair", "files_by_case", "pair_files", "physical_spacing", "read_label_map", "read_pair"]


class Pair(NamedTuple):
    """A case's prediction and reference."""

    name: str
    prediction: Path
    label: Path


class LabelMap(NamedTuple):
    """The voxels (*spatial), integers; their size in mm along each axis, None for pictures; and the affine."""

    array: np.ndarray
    spacing: list[float] | None
    affine: np.ndarray | None


def files_by_case(folder: str | Path) -> dict[str, Path]:
    """Case name -> image or label map of a folder; the probabilities that inference can save are left out.

    Raises:
        UserError: the folder is missing or empty, or two files have one case name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    files: dict[str, Path] = {}
    for path in list_images(folder):
        name = case_name(path)
        if name.endswith("_probabilities"):
            continue
        if name in files:
            raise UserError(f"{files[name]} and {path} both belong to the case {name}: remove one of them")
        files[name] = path
    return files


def pair_files(predictions: str | Path, labels: str | Path, allow_missing: bool = False) -> list[Pair]:
    """Pair each prediction with the label of the same case name.

    Args:
        predictions, labels: two folders.
        allow_missing: leave out labels without a prediction.

    Raises:
        UserError: lists every prediction without a label and, unless ``allow_missing``, every label without a
            prediction; or nothing pairs.
    """
    predicted, expected = files_by_case(predictions), files_by_case(labels)
    problems = []
    if alone := sorted(predicted.keys() - expected.keys()):
        problems.append(f"without a label in {labels}: {', '.join(alone)}")
    if (alone := sorted(expected.keys() - predicted.keys())) and not allow_missing:
        problems.append(f"without a prediction in {predictions} (--allow_missing leaves them out): {', '.join(alone)}")
    if problems:
        raise UserError("predictions and labels do not pair:\n  " + "\n  ".join(problems))
    pairs = [Pair(name, predicted[name], expected[name]) for name in sorted(predicted)]
    if not pairs:
        raise UserError(f"{predictions} holds no predicted label maps")
    return pairs


def read_label_map(path: Path, values: Iterable[int], image_dims: int | None = None) -> LabelMap:
    """Read a label map in its own integer type, where it has one.

    Args:
        path: an image file.
        values: what it may hold besides 0.
        image_dims: of the task's images; where it is 2, a volume of one slice is a 2D image, as in inference.

    Raises:
        UserError: it cannot be read, has several channels, or holds other values; the message names them.
    """
    raw = read_raw(path, label=True)
    if len(raw.array) != 1:
        raise UserError(f"{path} has {len(raw.array)} channels, a label map has one")
    array, affine = raw.array[0], raw.affine
    if image_dims == 2:
        array, affine = planar(array, affine, array.ndim, path)
    known, found = [0, *values], values_in(array)
    unknown = found[~np.isin(found, known)]
    if len(unknown):
        what = f"{path} holds the label value(s) {listed(unknown)}; the task has {sorted(known)}"
        raise UserError(what + undeclared_hint(unknown, path))
    if not np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.int32)
    array = np.ascontiguousarray(array)  # NIfTI's come in Fortran order, which slows down what follows
    return LabelMap(array, None if affine is None else spacing_of(affine, array.ndim), affine)


def read_pair(pair: Pair, task: Task) -> tuple[LabelMap, LabelMap]:
    """Read a prediction and its label, which may hold the task's ignore_label too.

    Raises:
        UserError: one of them cannot be read or holds unknown values, or they lie on different grids.
    """
    values, ignored = list(task.labels.values()), [] if task.ignore_label is None else [task.ignore_label]
    prediction = read_label_map(pair.prediction, values, task.image_dims)
    label = read_label_map(pair.label, values + ignored, task.image_dims)
    if conflict := placement_conflict(prediction.array.shape, prediction.affine, label.array.shape, label.affine):
        raise UserError(f"{pair.prediction} does not lie on the grid of its label {pair.label} ({conflict})")
    return prediction, label


def physical_spacing(image: torch.Tensor) -> list[float] | None:
    """Voxel size in mm along each axis of a loaded image (channels, *spatial); None for pictures, which have none."""
    if not isinstance(image, MetaTensor) or not image.meta.get("spacing_known", True):
        return None
    return spacing_of(np.asarray(image.affine), image.ndim - 1)
