"""Writing an array on the grid of an image file, in that file's format and with its geometry."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

from ..common.atomic_writing import replacing
from .files import ITK_SUFFIXES, NIFTI_SUFFIXES, TIFF_SUFFIXES, case_name, image_suffix
from .formats import read_raw
from .formats.itk import itk_geometry, itk_header
from .formats.tiff import tiff_spacing_file

__all__ = ["copy_tiff_spacing", "write_like"]


def write_like(path: Path, array: np.ndarray, like: str | Path, channels: bool = False) -> None:
    """Write ``array`` (*spatial), or (channels, *spatial) if ``channels``, which NIfTI, NRRD and MetaImage can hold.

    Args:
        path: where to write; its ending chooses the format, which is that of ``like`` or, for pictures, PNG.
        array: in the shape of the image file; 2D images, and one-slice volumes without that axis, as (rows, columns).
        like: the image file whose affine and header are kept.
    """
    suffix = image_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        _write_nifti(path, array, like, channels)
    elif suffix in ITK_SUFFIXES:
        _write_itk(path, array, like, channels)
    elif suffix in TIFF_SUFFIXES:
        _write_tiff(path, array, like)
    else:
        Image.fromarray(array).save(path)


def copy_tiff_spacing(path: Path, like: str | Path) -> None:
    """Put CASE.json with the image's spacing beside a TIFF prediction, if the image has one: TIFF cannot hold it."""
    file = tiff_spacing_file(like)
    if image_suffix(path) in TIFF_SUFFIXES and file.is_file():
        with replacing(path.with_name(f"{case_name(path)}.json")) as temporary:
            shutil.copyfile(file, temporary)


def _write_nifti(path: Path, array: np.ndarray, like: str | Path, channels: bool) -> None:
    original = nib.load(like)
    array = _in_shape(_columns_first(array, channels), original.shape[:3], channels)
    header = original.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the image's display window does not suit the new values
    array = np.moveaxis(array, 0, -1) if channels else array
    nib.save(type(original)(array, original.affine, header), path)


def _write_itk(path: Path, array: np.ndarray, like: str | Path, channels: bool) -> None:
    header = itk_header(like)
    geometry = itk_geometry(header)
    dims = len(geometry.spacing)
    array = _in_shape(_columns_first(array, channels), header.GetSize()[:dims], channels)
    array = np.moveaxis(array, 0, -1).transpose(*range(dims - 1, -1, -1), dims) if channels else array.transpose()
    image = sitk.GetImageFromArray(array, isVector=channels)
    image.SetSpacing(geometry.spacing.tolist())
    image.SetOrigin(geometry.origin.tolist())
    image.SetDirection(geometry.directions.ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def _write_tiff(path: Path, array: np.ndarray, like: str | Path) -> None:
    array = _in_shape(array, read_raw(like).array.shape[1:], channels=False)
    axes = "ZYX"[-array.ndim :]
    tifffile.imwrite(path, array, photometric="minisblack", compression="zlib", metadata={"axes": axes})


def _columns_first(array: np.ndarray, channels: bool) -> np.ndarray:
    """A 2D image (rows, columns) as NIfTI, NRRD and MetaImage hold it; everything else as it is."""
    return array.swapaxes(-1, -2) if array.ndim - int(channels) == 2 else array


def _in_shape(array: np.ndarray, shape: Sequence[int], channels: bool) -> np.ndarray:
    """Give a one-slice volume the axis back that it was loaded without."""
    return array.reshape(*array.shape[: int(channels)], *shape)
