"""Reading one image file of any format as an array and an affine, without PyTorch.

NIfTI through nibabel, NRRD and MetaImage through SimpleITK, TIFF through tifffile, pictures through Pillow.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.errors import UserError
from ...common.root_causes import lack_of_memory
from ..files import ITK_SUFFIXES, NIFTI_SUFFIXES, PICTURE_SUFFIXES, TIFF_SUFFIXES, image_suffix
from ..geometry import placement_conflict
from .itk import read_itk
from .nifti import read_nifti
from .pictures import is_unusual_png, read_picture
from .streams import Unreadable
from .tiff import read_tiff

__all__ = [
    "RawImage",
    "channel_conflicts",
    "columns_first",
    "drop_slice_axis",
    "planar",
    "planar_axes",
    "read_raw",
    "shallow_before",
]

DAMAGED = (zlib.error, EOFError)  # and OSError from gzip and bzip2: what a stream says that does not fit its checksum


@dataclass
class RawImage:
    """One file's content.

    Args:
        array: (channels, *spatial) in the file's own type. Volumes in the voxel order of their file (x, y, z), TIFF
            stacks in that of theirs (slices, rows, columns), 2D images of every format as (rows, columns).
        affine: 4x4, index in the array -> RAS millimetres; None where the file knows none (pictures, bare TIFF stacks).
        warning: something the user should know about how the file was read.
    """

    array: np.ndarray
    affine: np.ndarray | None
    warning: str | None = None


def read_raw(path: str | Path, label: bool = False, grey: bool = False) -> RawImage:
    """Read one image file.

    Args:
        path: a file with one of the known endings.
        label: a label map: palette pictures give their indices, RGB pictures with three equal channels one.
        grey: of an image, too, three equal channels of a picture are one.

    Raises:
        UserError: the file is missing or cannot be read, or holds complex numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if path.stat().st_size == 0:
        raise UserError(f"{path} cannot be read as an image: it is empty; copy or export it again")
    suffix = image_suffix(path)
    try:
        if suffix in NIFTI_SUFFIXES:
            raw = RawImage(*_rows_first(*read_nifti(path)))
        elif suffix in ITK_SUFFIXES:
            raw = RawImage(*_rows_first(*read_itk(path)))
        elif suffix in TIFF_SUFFIXES:
            raw = RawImage(*read_tiff(path, label))
        else:
            raw = RawImage(read_picture(path, label), None)
    except Exception as error:  # each library has its own errors for a broken file
        raise UserError(f"{path} cannot be read as an image: {_reason(error)}") from error
    if raw.array.dtype.kind == "c":
        raise UserError(f"{path} holds complex numbers: store its magnitude")
    if (label or grey) and suffix in TIFF_SUFFIXES + PICTURE_SUFFIXES and _is_grey(raw.array):
        return RawImage(raw.array[:1], raw.affine, raw.warning)
    return raw


def channel_conflicts(paths: Sequence[str | Path], images: Sequence[RawImage]) -> list[tuple[str, str]]:
    """How the files of one case contradict its first file: [(file, message), …]."""
    conflicts = []
    first, shape = images[0], images[0].array.shape[1:]
    for path, image in zip(paths[1:], images[1:], strict=True):
        if conflict := placement_conflict(image.array.shape[1:], image.affine, shape, first.affine):
            message = f"does not lie on the grid of {paths[0]} ({conflict}): channels must share one"
            conflicts.append((str(path), message))
    return conflicts


def drop_slice_axis(shape: Sequence[int]) -> int | None:
    """The axis that makes a volume of one slice a 2D image: the last one of size 1; None if there is none."""
    return max((axis for axis, size in enumerate(shape) if size == 1), default=None) if len(shape) == 3 else None


def planar_axes(shape: Sequence[int], path: str | Path) -> list[int] | None:
    """The axes of a volume of one slice that are rows and columns of a 2D image; None of anything else.

    The file tells whether the volume lies as (x, y, z) or, a TIFF, as (slices, rows, columns).
    """
    axis = drop_slice_axis(shape)
    if axis is None:
        return None
    axes = [other for other in range(3) if other != axis]
    return axes[::-1] if columns_first(path) else axes


def planar(
    array: np.ndarray, affine: np.ndarray | None, dims: int, path: str | Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """A volume of one slice as a 2D image, the dropped axis last in its affine; everything else as it is.

    Args:
        array: (*spatial) or (channels, *spatial), with ``dims`` spatial axes.
        path: its file.
    """
    axes = planar_axes(array.shape[-dims:], path)
    if axes is None:
        return array, affine
    (dropped,) = {0, 1, 2}.difference(axes)
    flat = array.squeeze(dropped - 3)
    flat = flat if axes == sorted(axes) else flat.swapaxes(-1, -2)
    return flat, None if affine is None else affine[:, [*axes, dropped, 3]]


def columns_first(path: str | Path) -> bool:
    """Whether the format counts voxels as (x, y), along a row first; pictures and TIFF count (rows, columns)."""
    return image_suffix(path) in NIFTI_SUFFIXES + ITK_SUFFIXES


def shallow_before(path: str | Path) -> bool:
    """Whether version 0.6 may have read other numbers from this file: a TIFF, or a PNG of another depth than 8 bits."""
    path = Path(path)
    return image_suffix(path) in TIFF_SUFFIXES or (image_suffix(path) == ".png" and is_unusual_png(path))


def _rows_first(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2D images of all formats reach a network alike."""
    return (array.swapaxes(1, 2), affine[:, [1, 0, 2, 3]]) if array.ndim == 3 else (array, affine)


def _is_grey(array: np.ndarray) -> bool:
    return len(array) == 3 and all((channel == array[0]).all() for channel in array)


def _reason(error: BaseException) -> str:
    """Why a file cannot be read, in one line."""
    if reason := lack_of_memory(error):
        return reason
    while (inner := error.__cause__ or error.__context__) and not isinstance(error, Unreadable):
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, DAMAGED) or (isinstance(error, OSError) and error.errno is None):
        return f"it is damaged ({lines[0]}): copy or export it again"
    return f"{type(error).__name__}: {lines[-1]}"  # SimpleITK's reason stands last
