"""The way from the network's grid back to the image's, read off what the image went through.

    image file -> crop -> orientation -> resampling -> network

Crop and orientation only choose and order voxels: an array on the image's grid has a view that lies as the image
did before it was resampled. Whoever writes into the view has gone back. Only resampling computes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd

__all__ = ["WayBack", "way_back"]

View = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class WayBack:
    """How logits on the network's grid come back to the image's.

    Attributes:
        size: of the image file's grid.
        inner: size of the view, the grid before resampling.
        thin: axis of the view along which the nearest slice is taken, or None; see Resampled.
        affine: of the image file's grid, or None if it never changed.
        views: from an array (…, *size) to its view (…, *inner), one after the other.
    """

    size: tuple[int, ...]
    inner: tuple[int, ...]
    thin: int | None = None
    affine: torch.Tensor | None = None
    views: Sequence[View] = field(default_factory=list)

    def view(self, array: np.ndarray) -> np.ndarray:
        """Of an array (…, *size) the part that the network saw, as it lay before resampling: (…, *inner)."""
        for view in self.views:
            array = view(array)
        return array


def way_back(image: MetaTensor, preprocessing: Compose) -> WayBack | None:
    """The way back of what ``image`` (channels, *spatial) went through; None where that holds a step not known here."""
    steps = list(image.applied_operations)
    sizes = [tuple(map(int, step["orig_size"])) for step in steps] + [tuple(image.shape[1:])]
    views: list[View] = []
    thin, inner = None, sizes[-1]
    for number, step in enumerate(steps):
        extra = step.get("extra_info") or {}
        if step["class"] == "CropNonzerod":
            views.append(_crop(extra["start"], sizes[number + 1]))
        elif step["class"] == "Orientation" and (axcodes := _axcodes(preprocessing, image.meta)):
            views.append(_orientation(extra["original_affine"], axcodes, len(sizes[0])))
        elif step["class"] == "Resampled" and number == len(steps) - 1:
            thin = None if extra["thin_axis"] < 0 else int(extra["thin_axis"])
            inner = sizes[number]
        else:
            return None
    return WayBack(sizes[0], inner, thin, _affine(steps[0]) if steps else None, views)


def _crop(start: Sequence[int], size: Sequence[int]) -> View:
    where = tuple(slice(int(low), int(low) + length) for low, length in zip(start, size, strict=True))
    return lambda array: array[(..., *where)]


def _orientation(affine: Any, axcodes: str, dims: int) -> View:
    """What MONAI's Orientation does to the voxels of an image with this affine."""
    target = nib.orientations.axcodes2ornt(axcodes[:dims])
    turn = nib.orientations.ornt_transform(nib.io_orientation(_square(affine, dims)), target)
    flips = [axis - dims for axis in range(dims) if turn[axis, 1] == -1]
    order = [int(axis) - dims for axis in np.argsort(turn[:, 0])]
    return lambda array: np.flip(array, flips).transpose(
        *range(array.ndim - dims), *(array.ndim + axis for axis in order)
    )


def _square(affine: Any, dims: int) -> np.ndarray:
    affine = np.asarray(affine, dtype=float)
    return affine[[*range(dims), -1]][:, [*range(dims), -1]]


def _axcodes(preprocessing: Compose, meta: Mapping[str, Any]) -> str | None:
    """Which orientation images are turned to; None where that is not as simple as with ours."""
    turns = [step.ornt_transform for step in preprocessing.flatten().transforms if isinstance(step, Orientationd)]
    plain = len(turns) == 1 and turns[0].axcodes and turns[0].labels is None and meta.get("space") != "LPS"
    return turns[0].axcodes if plain else None


def _affine(step: Mapping[str, Any]) -> torch.Tensor:
    extra = step["extra_info"]
    return torch.as_tensor(extra["original_affine"] if "original_affine" in extra else extra["affine"])
