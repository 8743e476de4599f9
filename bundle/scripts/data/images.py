"""Reading and writing of images and label maps: NIfTI through nibabel, PNG and JPEG through Pillow."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor, NibabelReader, PILReader
from monai.transforms import LoadImage, MapTransform
from PIL import Image

from ..errors import UserError

__all__ = ["LoadCased", "image_suffix", "list_images", "load_image", "save_label_map", "save_probabilities"]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


class LoadCased(MapTransform):
    """Load a case's image and label channel-first and check them, so that nothing later fails obscurely.

    Pictures are read as (channels, height, width), volumes in the voxel order of their file.

    Args:
        keys: "image" and, where there is one, "label".
        spatial_dims: 2 or 3.
        in_channels: channels the image must have.
        labels: name -> value of every foreground label; 0 is the background.

    Raises:
        UserError: a file is missing, broken, or of another size, dimension or number of channels than it
            should be; the image holds NaN or one constant value; the label has undeclared values.
    """

    def __init__(
        self, keys: Sequence[Hashable], spatial_dims: int, in_channels: int, labels: Mapping[str, int]
    ) -> None:
        super().__init__(keys)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.values = {0, *labels.values()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.keys:
            case[key] = load_image(case[key], self.spatial_dims)
            check = self._check_label if key == "label" else self._check_image
            check(case[key], data[key])
        if {"image", "label"} <= set(self.keys) and case["image"].shape[1:] != case["label"].shape[1:]:
            raise UserError(
                f"{data['image']} is {tuple(case['image'].shape[1:])} but its label {data['label']} is "
                f"{tuple(case['label'].shape[1:])}: they must have the same size"
            )
        return case

    def _check_image(self, image: torch.Tensor, path: str) -> None:
        if image.shape[0] != self.in_channels:
            raise UserError(f"{path} has {image.shape[0]} channel(s), the network takes {self.in_channels}")
        if not image.isfinite().all():
            raise UserError(f"{path} holds NaN or infinite values: repair the image or leave the case out")
        if any(channel.min() == channel.max() for channel in image):
            raise UserError(f"{path} is constant (every voxel is the same): repair the image or leave the case out")

    def _check_label(self, label: torch.Tensor, path: str) -> None:
        if label.shape[0] != 1:
            raise UserError(f"{path} has {label.shape[0]} channels, a label map has one")
        undeclared = sorted(set(torch.unique(label).tolist()) - self.values)
        if undeclared:
            shown = ", ".join(f"{value:g}" for value in undeclared[:10])
            raise UserError(f"{path} holds the label value(s) {shown}; declared are {sorted(self.values)}")


def image_suffix(path: str | Path) -> str | None:
    """The ending of a readable image file, lower case (".nii.gz", ".png", …), or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in NIFTI_SUFFIXES + PICTURE_SUFFIXES if name.endswith(suffix)), None)


def list_images(path: str | Path) -> list[Path]:
    """The image files of a folder, sorted, or the one file that ``path`` is.

    Raises:
        UserError: there is no such file or folder, or no readable image in it.
    """
    path = Path(path)
    readable = ", ".join(NIFTI_SUFFIXES + PICTURE_SUFFIXES)
    if path.is_file():
        if image_suffix(path) is None:
            raise UserError(f"{path} is not an image that can be read ({readable})")
        return [path]
    if not path.is_dir():
        raise UserError(f"the input {path} does not exist: give a file or a folder with --input_dir")
    images = sorted(file for file in path.iterdir() if file.is_file() and image_suffix(file))
    if not images:
        raise UserError(f"the input folder {path} holds no image ({readable})")
    return images


def load_image(path: str | Path, spatial_dims: int) -> MetaTensor:
    """Load one image channel-first as float32.

    Raises:
        UserError: the file is missing, cannot be read, or has other spatial dimensions.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    picture = image_suffix(path) in PICTURE_SUFFIXES
    # reverse_indexing=False keeps a picture's rows and columns as a person sees them.
    reader = PILReader(reverse_indexing=False) if picture else NibabelReader()
    try:
        image = LoadImage(reader=reader, image_only=True, ensure_channel_first=True)(path)
    except Exception as error:  # each reader has its own errors for a broken file
        raise UserError(f"{path} cannot be read as an image: {_root_cause(error)}") from error
    if image.ndim - 1 != spatial_dims:
        raise UserError(f"{path} has {image.ndim - 1} spatial dimensions, the network takes {spatial_dims}")
    return image


def save_label_map(path: Path, label_map: np.ndarray, like: str | Path) -> None:
    """Write a label map on the grid of the image it was made from; NIfTI keeps that image's geometry.

    Args:
        path: where to write, ending in .nii.gz, .nii or .png.
        label_map: integers, in the shape of the image file.
        like: the image file.
    """
    dtype = np.uint8 if label_map.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16
    label_map = label_map.astype(dtype)
    with replacing(path) as temporary:
        if image_suffix(path) in PICTURE_SUFFIXES:
            Image.fromarray(label_map).save(temporary)
        else:
            _save_nifti(temporary, label_map, like)


def save_probabilities(path: Path, probabilities: np.ndarray, like: str | Path) -> None:
    """Write class probabilities (classes, *spatial), float32: a 4D NIfTI with the classes last, or a .npz."""
    probabilities = probabilities.astype(np.float32)
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, probabilities=probabilities)
        else:
            _save_nifti(temporary, np.moveaxis(probabilities, 0, -1), like)


class replacing:
    """Write to a temporary file beside ``path`` and rename it at the end: no half-written file is ever seen."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # The ending stays last: writers choose the format by it.
        self.temporary = self.path.with_name(f".{os.getpid()}.part.{self.path.name}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _save_nifti(path: Path, array: np.ndarray, like: str | Path) -> None:
    original = nib.load(like)
    header = original.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the image's display window does not suit the new values
    nib.save(type(original)(array, original.affine, header), path)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
