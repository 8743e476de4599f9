"""Size and spacing of an image without reading its voxels."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
from PIL import ExifTags

from .files import ITK_SUFFIXES, NIFTI_SUFFIXES, TIFF_SUFFIXES, image_suffix
from .formats import read_raw
from .formats.itk import itk_affine, itk_header
from .formats.pictures import open_picture
from .geometry import spacing_of, to_ras

__all__ = ["read_header"]

Header = tuple[list[int], list[float] | None, int]


def read_header(path: str | Path) -> Header | None:
    """Shape and spacing in mm (RAS axis order, of 2D images rows and columns; None for pictures), number of channels.

    None for a file that cannot be read: reading it whole tells why.
    """
    suffix = image_suffix(path)
    try:
        if suffix in NIFTI_SUFFIXES:
            image = nib.load(path)
            channels = math.prod(image.shape[3:]) * len(image.get_data_dtype().names or "1")  # RGB24 has three names
            return _volume(list(image.shape[:3]), image.affine, channels)
        if suffix in ITK_SUFFIXES:
            return _itk(path)
        if suffix in TIFF_SUFFIXES:  # has no header apart from its pages
            raw = read_raw(path)
            shape = list(raw.array.shape[1:])
            return (shape, None, len(raw.array)) if raw.affine is None else _volume(shape, raw.affine, len(raw.array))
        with open_picture(Path(path)) as picture:
            shape = [picture.height, picture.width]
            lies_on_its_side = picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return shape[::-1] if lies_on_its_side else shape, None, len(picture.getbands())
    except Exception:  # each library has its own errors for a broken file
        return None


def _itk(path: str | Path) -> Header:
    reader = itk_header(path)
    size = list(reader.GetSize())
    channels = reader.GetNumberOfComponents() * math.prod(size[3:])
    return _volume(size[:3], itk_affine(reader), channels)


def _volume(shape: list[int], affine, channels: int) -> Header:
    if len(shape) < 3:
        return shape[::-1], spacing_of(affine, len(shape))[::-1], channels
    return to_ras(affine, shape), to_ras(affine, spacing_of(affine)), channels
