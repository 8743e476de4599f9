"""Reading one image file of any format as an array and an affine, without PyTorch.

NIfTI through nibabel, NRRD and MetaImage through SimpleITK, TIFF through tifffile, pictures through Pillow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.lib.recfunctions import structured_to_unstructured
from PIL import Image, ImageOps, ImageSequence

from ..errors import UserError
from .files import ITK_SUFFIXES, NIFTI_SUFFIXES, PICTURE_SUFFIXES, TIFF_SUFFIXES, image_suffix, split_channel
from .geometry import placement_conflict

__all__ = [
    "RawImage",
    "channel_conflicts",
    "drop_slice_axis",
    "itk_affine",
    "itk_header",
    "planar",
    "read_raw",
    "tiff_spacing_file",
]

# What Pillow's other modes become; L, RGB, I;16, I and F are read as they are.
_PICTURE_MODES = {"1": "L", "LA": "L", "La": "L"} | dict.fromkeys(
    ["P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"], "RGB"
)


@dataclass
class RawImage:
    """One file's content.

    Args:
        array: (channels, *spatial) in the file's own type. Volumes in the voxel order of their file (x, y, z),
            pictures as (rows, columns), TIFF stacks in their file's order (slices, rows, columns).
        affine: 4x4, voxel index -> RAS millimetres; None where the file knows none (pictures, bare TIFF stacks).
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
    suffix = image_suffix(path)
    try:
        if suffix in NIFTI_SUFFIXES:
            raw = _read_nifti(path)
        elif suffix in ITK_SUFFIXES:
            raw = _read_itk(path)
        elif suffix in TIFF_SUFFIXES:
            raw = _read_tiff(path, label)
        else:
            raw = RawImage(_read_picture(path, label), None)
    except Exception as error:  # each library has its own errors for a broken file
        raise UserError(f"{path} cannot be read as an image: {_root_cause(error)}") from error
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


def planar(array: np.ndarray, affine: np.ndarray | None, dims: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A volume of one slice as a 2D image, the dropped axis last in its affine; everything else as it is.

    Args:
        array: (*spatial) or (channels, *spatial), with ``dims`` spatial axes.
    """
    axis = drop_slice_axis(array.shape[-dims:])
    if axis is None:
        return array, affine
    columns = [*(other for other in range(3) if other != axis), axis, 3]
    return array.squeeze(axis - 3), None if affine is None else affine[:, columns]


def tiff_spacing_file(path: str | Path) -> Path:
    """nnU-Net's CASE.json beside CASE_0000.tif (or CASE.tif), which holds {"spacing": [one number an axis]}."""
    return Path(path).with_name(f"{split_channel(path)[0]}.json")


def itk_header(path: str | Path) -> sitk.ImageFileReader:
    """What SimpleITK knows of a NRRD or MetaImage file without its voxels."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_itk_format(path))
    reader.ReadImageInformation()
    return reader


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Affine in nibabel's convention (RAS) of an image of SimpleITK (LPS)."""
    whole = image.GetDimension()
    dims = min(whole, 3)
    affine = np.eye(4)
    directions = np.reshape(image.GetDirection(), (whole, whole))[:dims, :dims]
    affine[:dims, :dims] = directions * np.asarray(image.GetSpacing())[:dims]
    affine[:dims, 3] = image.GetOrigin()[:dims]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _itk_format(path: str | Path) -> str:
    """SimpleITK's name of the format; by itself it does not know .MHA and .MHD in upper case."""
    return "NrrdImageIO" if image_suffix(path) in (".nrrd", ".nhdr") else "MetaImageIO"


def _is_grey(array: np.ndarray) -> bool:
    return len(array) == 3 and all((channel == array[0]).all() for channel in array)


def _read_nifti(path: Path) -> RawImage:
    image = nib.load(path)
    stored = image.dataobj
    unscaled = (stored.slope, stored.inter) == (1, 0)
    array = np.asanyarray(stored) if unscaled else image.get_fdata(dtype=np.float32, caching="unchanged")
    if array.dtype.names:  # RGB24
        array = structured_to_unstructured(array)
    if array.ndim == 5 and array.shape[3] == 1:  # vectors stand on the fifth axis, behind time
        array = array[:, :, :, 0]
    array = np.moveaxis(array, -1, 0) if array.ndim > 3 else array[None]
    return RawImage(array, np.asarray(image.affine, dtype=float))


def _read_itk(path: Path) -> RawImage:
    image = sitk.ReadImage(str(path), imageIO=_itk_format(path))
    array = sitk.GetArrayFromImage(image)  # (z, y, x) or (z, y, x, components)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif image.GetDimension() <= 3:
        array = array[None]
    # else a 4D image, whose last axis (SimpleITK's first in the array) are the channels
    return RawImage(array.transpose(0, *range(array.ndim - 1, 0, -1)), itk_affine(image))


def _read_tiff(path: Path, label: bool) -> RawImage:
    array, axes = _tiff_array(path, label)
    spacing = _tiff_spacing(path)
    is_stack = spacing is not None and array.ndim == 3  # even one of 3 slices, which looks like RGB
    channel = next((axes.index(axis) for axis in "SC" if axis in axes), None)
    array = array[None] if is_stack or channel is None else np.moveaxis(array, channel, 0)
    if array.ndim == 3:
        return RawImage(array, None)
    if spacing is None:
        file = tiff_spacing_file(path).name
        return RawImage(array, None, f"has no {file} with its spacing beside it: every axis counts as 1 mm")
    return RawImage(array, np.diag([*spacing, 1.0]))


def _tiff_spacing(path: Path) -> list[float] | None:
    file = tiff_spacing_file(path)
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    spacing = content.get("spacing") if isinstance(content, dict) else None
    if spacing is not None and not (len(spacing) == 3 and min(spacing) > 0):
        raise ValueError(f"{file.name} must hold three positive numbers as spacing")
    return spacing


def _tiff_array(path: Path, label: bool) -> tuple[np.ndarray, str]:
    """Pixels and axes ("YX", "YXS", "ZYX", …) of a TIFF's first series, without alpha; 0 is black in an image."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        page = series.keyframe
        if page.compression not in (1, 8, 32946):  # neither raw nor deflate: tifffile would need imagecodecs
            array, axes = _tiff_through_pillow(path)
            inverted = array.dtype == np.uint8  # Pillow has done it, but not for 16 bits
        else:
            array, axes, inverted = series.asarray(), series.axes, False
    white_is_zero = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu"
    if white_is_zero and not label and not inverted:
        array = np.invert(array)
    has_alpha = "S" in axes and page.photometric == tifffile.PHOTOMETRIC.RGB and page.extrasamples
    if has_alpha and _tiff_spacing(path) is None:
        array = array.take(range(3), axes.index("S"))
    return array, axes


def _tiff_through_pillow(path: Path) -> tuple[np.ndarray, str]:
    with Image.open(path) as image:
        frames = [_plain_mode(frame) for frame in ImageSequence.Iterator(image)]
    axes = "YX" if frames[0].ndim == 2 else "YXS"
    return (frames[0], axes) if len(frames) == 1 else (np.stack(frames), "Z" + axes)


def _read_picture(path: Path, label: bool) -> np.ndarray:
    with Image.open(path) as stored:
        image = ImageOps.exif_transpose(stored)  # as cameras and scanners mean it, and viewers show it
        if label and image.mode in ("P", "1"):
            return np.asarray(image).astype(np.uint8)[None]
        array = _plain_mode(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _plain_mode(image: Image.Image) -> np.ndarray:
    mode = _PICTURE_MODES.get(image.mode, image.mode)
    return np.asarray(image if mode == image.mode else image.convert(mode))


def _root_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"  # SimpleITK's reason stands last
