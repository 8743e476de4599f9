"""From logits to a label map on the image's grid, slab by slab: the logits of all voxels never exist at once."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, InvertibleTransform, MapTransform

from ..common.errors import UserError
from ..inference.logits import Slabs, as_slabs
from ..inference.slab_resampling import resized_slabs
from ..inference.way_back import WayBack, way_back

__all__ = ["ToLabelMapd", "first_largest"]

IN_MEMORY = 2**29  # bytes of probabilities; more lie in a file without a name, whose pages the system takes back


class ToLabelMapd(MapTransform):
    """Logits (classes, *grid of the network), a tensor or lazy ones -> label map (1, *grid of the image file).

    Logits, not labels, are resampled to the original grid (nnU-Net's rule). Where the image went through a step that
    way_back does not know (a preprocessing of your own), all logits are brought back at once by MONAI's Invertd.

    Args:
        key: of the logits, and then of the label map.
        preprocessing: what "image" went through.
        labels: name -> value of the foreground classes; the label map holds these values.
        probabilities_key: where to keep the class probabilities (classes, *grid of the image file), or None.
        folder: where large probabilities may lie meanwhile; None: in memory.

    Raises:
        UserError: logits are NaN or infinite, whose largest would be a label map like any other: names the image.
    """

    def __init__(
        self,
        key: Hashable,
        preprocessing: Compose,
        labels: Mapping[str, int],
        probabilities_key: str | None = None,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__([key])
        self.preprocessing = preprocessing
        self.values = torch.tensor([0, *sorted(labels.values())], dtype=_dtype_for(max(labels.values(), default=0)))
        self.probabilities_key, self.folder = probabilities_key, folder
        self.invertible = any(isinstance(step, InvertibleTransform) for step in preprocessing.transforms)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        (key,) = self.keys
        like, logits = case.get("image"), as_slabs(case[key])
        way = WayBack(logits.size, logits.size)
        if self.invertible:  # not for pictures, which keep their grid
            known = way_back(like, self.preprocessing) if isinstance(like, MetaTensor) else None
            if known is None:
                like, logits = self._all_at_once(case, key, logits)
            way = known or WayBack(logits.size, logits.size)
        return {**case, **self._results(key, logits, way, like)}

    def _all_at_once(self, case: Mapping[Hashable, Any], key: Hashable, logits: Slabs) -> tuple[Any, Slabs]:
        like = case["image"]
        logits = MetaTensor(logits.tensor(), meta=like.meta, applied_operations=like.applied_operations)
        back = Invertd(key, self.preprocessing, orig_keys="image", nearest_interp=False, device="cpu")
        inverted = back({**case, key: logits})[key]
        return inverted, as_slabs(inverted)

    def _results(self, key: Hashable, logits: Slabs, way: WayBack, like: Any) -> dict[Hashable, Any]:
        label_map = np.zeros(way.size, self.values.numpy().dtype)
        probabilities = None
        done, axis = 0, logits.axis
        finite = partial(_finite, like=like)
        blocks = resized_slabs(map(finite, logits.slabs()), axis, logits.size, way.inner, way.thin)
        for block in blocks:
            planes = slice(done, done + block.shape[1])
            best = first_largest(block).cpu()
            np.moveaxis(way.view(label_map), axis, 0)[planes] = self.values[best.long()].numpy()
            if self.probabilities_key:
                if probabilities is None:
                    probabilities = _certain_background((len(block), *way.size), self.folder)
                view = np.moveaxis(way.view(probabilities), axis + 1, 1)
                view[:, planes] = block.softmax(dim=0).cpu().numpy()
            done = planes.stop
        results = {key: label_map[None]} | ({} if probabilities is None else {self.probabilities_key: probabilities})
        return {name: _on_grid(array, way, like) for name, array in results.items()}


def first_largest(logits: torch.Tensor) -> torch.Tensor:
    """Index (*spatial), uint8 or int16, of the largest of (classes, *spatial), of equal ones the first, as argmax."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=0).to(torch.int16)
    index = torch.zeros(logits.shape[1:], dtype=_dtype_for(len(logits)))
    best = logits[0].clone()
    for number, values in enumerate(logits[1:], start=1):  # many times as fast as argmax across planes
        better = (values > best).to(index.dtype).mul_(number)
        torch.maximum(index, better, out=index)
        torch.maximum(best, values, out=best)
    return index


def _dtype_for(largest: int) -> torch.dtype:
    return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if largest <= torch.iinfo(dtype).max)


def _finite(logits: torch.Tensor, like: Any) -> torch.Tensor:
    extremes = torch.stack(torch.aminmax(logits))  # NaN comes through; needs no second tensor
    if not all(map(math.isfinite, extremes.tolist())):
        name = like.meta["filename_or_obj"] if isinstance(like, MetaTensor) else "an image"
        raise UserError(
            f"{name}: the network's output holds NaN or infinite values, so there is no label "
            "map; try --amp false, and if that does not help, other weights"
        )
    return logits


def _certain_background(shape: tuple[int, ...], folder: str | Path | None) -> np.ndarray:
    """Probabilities (classes, *spatial), float32, of background everywhere: what was cropped away stays so."""
    size = 4 * math.prod(shape)
    if folder is None or size <= IN_MEMORY:
        array = np.zeros(shape, np.float32)
    else:
        array = _in_file(shape, size, folder)
    array[0] = 1
    return array


def _in_file(shape: tuple[int, ...], size: int, folder: str | Path) -> np.ndarray:
    with tempfile.TemporaryFile("w+b", dir=folder) as file:  # goes with its last user, whatever becomes of this process
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is said now, not by a signal later
        return np.memmap(file, np.float32, "r+", shape=shape)


def _on_grid(array: np.ndarray, way: WayBack, like: Any) -> torch.Tensor:
    values = torch.from_numpy(array)
    if not isinstance(like, MetaTensor):
        return values
    result = MetaTensor(values, meta=like.meta)
    if way.affine is not None:
        result.affine = way.affine
    return result
