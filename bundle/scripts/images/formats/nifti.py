"""Reading NIfTI through nibabel, compressed files to the checksum at their end."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.lib.recfunctions import structured_to_unstructured

from .streams import Unreadable, check_claim, check_rest

__all__ = ["channels_first", "read_nifti"]


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (channels, *spatial), scaled as the header says, and the affine."""
    image = nib.load(path)
    stored = image.dataobj
    if min(stored.shape, default=0) < 1:
        raise Unreadable(f"an axis has no voxels: its size is {stored.shape}")
    size = math.prod(stored.shape) * stored.dtype.itemsize
    if path.suffix.lower() != ".gz":
        check_claim(size, path, start=stored.offset)
        array = _voxels(stored)
        with path.open("rb") as file:
            file.seek(stored.offset + size)
            check_rest(file)
    else:
        check_claim(size, path, "gzip")
        with gzip.open(path, "rb") as stream:
            layout = stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter
            array = _voxels(ArrayProxy(stream, layout))
            check_rest(stream)
    affine = np.asarray(image.affine, dtype=float)
    if array.dtype.names:  # RGB24, RGBA32
        array = structured_to_unstructured(array)
        return (channels_first(array) if array.ndim > 3 else np.moveaxis(array, -1, 0)), affine
    return channels_first(array), affine


def channels_first(array: np.ndarray) -> np.ndarray:
    """(x, y, z, …) to (channels, x, y, z): of the axes behind the third, one may be longer than 1.

    Raises:
        Unreadable: several are.
    """
    size = " x ".join(map(str, array.shape))
    array = array.squeeze(tuple(axis for axis in range(3, array.ndim) if array.shape[axis] == 1))
    if array.ndim > 4:
        raise Unreadable(f"its size is {size}: of the axes behind the third only one can count channels")
    return np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]


def _voxels(stored: ArrayProxy) -> np.ndarray:
    unscaled = (stored.slope, stored.inter) == (1, 0)
    return np.asanyarray(stored) if unscaled else np.asanyarray(stored, dtype=np.float32)
