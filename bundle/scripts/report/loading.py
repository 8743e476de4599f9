"""Reads the files of a case, and checks that they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..common.errors import UserError, first_few
from ..images.files import TIFF_SUFFIXES, image_suffix
from ..images.formats import channel_conflicts, planar, read_raw
from ..images.geometry import affine_problem, placement_conflict, spacing_of
from ..images.task import Task

__all__ = ["Loaded", "check_same_grid", "load_channels", "load_label_map"]

MOST_VALUES = 256  # a "label map" with more values than this is an image


@dataclass(frozen=True)
class Loaded:
    """An image (channels, *spatial) or a label map (*spatial) as it lies in its file.

    Args:
        affine: (4, 4), voxels to millimetres right, anterior, superior; None where the file knows none.
    """

    path: Path
    array: np.ndarray
    dims: int
    affine: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the spatial axes."""
        return self.array.shape[-self.dims :]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel size in mm along each spatial axis."""
        return None if self.affine is None else tuple(spacing_of(self.affine, self.dims))

    @property
    def oriented(self) -> bool:
        """Whether the affine says where right, anterior and superior are; that beside a TIFF has the spacing only."""
        return self.affine is not None and image_suffix(self.path) not in TIFF_SUFFIXES

    def planar(self) -> Loaded:
        """A volume of one slice as a two-dimensional image; everything else as it is."""
        array, affine = planar(self.array, self.affine, self.dims, self.path)
        return Loaded(self.path, array, self.dims - self.array.ndim + array.ndim, affine)


def load_label_map(path: Path, task: Task) -> Loaded:
    """Load a label map as small integers.

    Raises:
        UserError: it cannot be read, has several channels, fractions, or values that the task does not know.
    """
    loaded = _load(path, label=True)
    if loaded.array.shape[0] != 1:
        raise UserError(f"{path} has {loaded.array.shape[0]} channels, a label map has one")
    array = loaded.array[0]
    values = np.unique(array)
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or values.min() < 0:
        raise UserError(f"{path} is no label map: it holds values that are not the integers from 0")
    if len(values) > MOST_VALUES:
        raise UserError(f"{path} is no label map: it holds {len(values)} different values")
    _check_values(path, values, task)
    return replace(loaded, array=array.astype(np.min_scalar_type(int(values.max()))))


def load_channels(paths: Sequence[Path]) -> Loaded:
    """Load an image from its one file, or from the files of its channels.

    Raises:
        UserError: a file cannot be read, or the channels lie on different grids.
    """
    channels = [_load(path) for path in paths]
    if conflicts := channel_conflicts(paths, channels):
        raise UserError("; ".join(f"{path} {message}" for path, message in conflicts))
    if len(channels) == 1:
        return channels[0]
    return replace(channels[0], array=np.concatenate([channel.array for channel in channels]))


def check_same_grid(first: Loaded, other: Loaded) -> None:
    """Raises UserError unless both have the same size, spacing and orientation, and lie within half a voxel."""
    if conflict := placement_conflict(other.shape, other.affine, first.shape, first.affine):
        raise UserError(f"{other.path} does not lie on the grid of {first.path} ({conflict})")


def _load(path: Path, label: bool = False) -> Loaded:
    raw = read_raw(path, label)
    if raw.array.ndim not in (3, 4):
        raise UserError(f"{path} has {raw.array.ndim - 1} spatial dimensions, the report takes 2 or 3")
    if raw.affine is not None and (problem := affine_problem(raw.affine)):
        raise UserError(f"{path} {problem}: repair its header")
    return Loaded(path, raw.array, raw.array.ndim - 1, raw.affine)


def _check_values(path: Path, values: np.ndarray, task: Task) -> None:
    if task.labels is None:
        return
    known = {0, *task.labels.values()} | ({task.ignore_label} - {None})
    unknown = sorted({int(value) for value in values} - known)
    if unknown:
        raise UserError(f"{path} holds the label value(s) {first_few(unknown, 10)}; the task knows {sorted(known)}")
