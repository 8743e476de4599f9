"""nnU-Net's augmentation: cut and drawn by the loader's workers, done to whole batches on the device that trains.

MONAI's transforms take several times as long, one patch after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator

from ..common.command_line import from_words
from .alterations import alterations, to_device
from .sampling import PatchSampler, Region, in_plane
from .warping import warp

__all__ = ["Augmentation", "Cut", "RawBatch"]


class Cut(NamedTuple):
    """A patch before its augmentation: its region, and what was drawn for it.

    Args:
        region: what it is made of.
        tables: for each of ``alterations`` its parameters (channels, parameters), NaN for a channel that is left
            alone; None: all are.
        mirrored: (dims,), whether it is mirrored along each axis.
    """

    region: Region
    tables: list[np.ndarray | None]
    mirrored: np.ndarray


class Boxes(NamedTuple):
    """Boxes of some patches of a batch: which, (boxes, channels, *size) and (boxes, 1, *size)."""

    patches: np.ndarray
    image: torch.Tensor
    label: torch.Tensor


@dataclass
class RawBatch:
    """A batch before its augmentation.

    Args:
        straight: boxes of those that are neither turned nor scaled.
        turned: boxes of the others, filled with zeros to a common size.
        matrices, centres: of the latter, see ``Region``.
        altered: for each of ``alterations`` the rows of (patches * channels), and their parameters.
        mirrored: (patches, dims).
    """

    straight: Boxes | None
    turned: Boxes | None
    matrices: np.ndarray
    centres: np.ndarray
    altered: list[tuple[np.ndarray, np.ndarray] | None]
    mirrored: np.ndarray

    def pin_memory(self) -> RawBatch:
        """For copies to a GPU that nothing waits for; the loader calls it."""
        self.straight, self.turned = (
            boxes and Boxes(boxes.patches, boxes.image.pin_memory(), boxes.label.pin_memory())
            for boxes in (self.straight, self.turned)
        )
        return self


class Augmentation:
    """``cut`` a patch out of a case, ``gather`` several into a raw batch, ``finish`` that on any device.

    What is random is drawn in ``cut``, from the generator that it is given: a patch is a function of that and of its
    case. (The noise's numbers come from a seed drawn there; a GPU makes other ones of it than a CPU.)

    Args:
        patch_size: one size per dimension of the network.
        mirror_axes: axes of the patch along which mirror images are as good as the originals.
        slice_axis: axis along which a 2D network walks through volumes, or None.
    """

    @from_words
    def __init__(self, patch_size: Sequence[int], mirror_axes: Sequence[int], slice_axis: int | None = None) -> None:
        self.patch_size = [int(size) for size in patch_size]
        self.mirrors = np.isin(np.arange(len(self.patch_size)), mirror_axes)
        self.choose = PatchSampler(self.patch_size, slice_axis=slice_axis)
        self.alterations = alterations(in_plane(self.patch_size))

    def cut(self, case: Mapping[str, np.ndarray], random: Generator) -> Cut:
        """Draw all that makes a patch of a prepared case ("image", "label", "foreground")."""
        region = self.choose(case, random)
        channels = len(region.image)
        tables = [step.draw(random, channels) if random.random() < step.prob else None for step in self.alterations]
        return Cut(region, tables, (random.random(len(self.mirrors)) < 0.5) & self.mirrors)

    def gather(self, cuts: Sequence[Cut]) -> RawBatch:
        """Read the regions of several patches."""
        is_turned = np.array([cut.region.matrix is not None for cut in cuts])
        turned = [cut.region for cut in cuts if cut.region.matrix is not None]
        straight = [cut.region for cut in cuts if cut.region.matrix is None]
        return RawBatch(
            straight=_boxes(np.flatnonzero(~is_turned), straight),
            turned=_boxes(np.flatnonzero(is_turned), turned),
            matrices=np.array([region.matrix for region in turned]),
            centres=np.array([region.centre for region in turned]),
            altered=[_chosen_rows(tables) for tables in zip(*(cut.tables for cut in cuts), strict=True)],
            mirrored=np.array([cut.mirrored for cut in cuts]),
        )

    def finish(self, raw: RawBatch, device: torch.device) -> dict[str, torch.Tensor]:
        """Augment a raw batch: "image" float32 (patches, channels, *patch_size), "label" int16 (patches, 1, …)."""
        image, label = self._patches(raw, device)
        rows = image.flatten(0, 1)
        for step, altered in zip(self.alterations, raw.altered, strict=True):
            if altered is not None:
                chosen = to_device(altered[0], device)
                rows.index_copy_(0, chosen, step.apply(rows[chosen], altered[1]))
        for axis in np.flatnonzero(raw.mirrored.any(0)).tolist():
            chosen = to_device(np.flatnonzero(raw.mirrored[:, axis]), device)
            for patches in (image, label):
                patches.index_copy_(0, chosen, patches[chosen].flip(axis + 2))
        return {"image": image, "label": label}

    def _patches(self, raw: RawBatch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """As they lie in their cases, turned and scaled."""
        channels = (raw.straight or raw.turned).image.shape[1]
        image = torch.empty(len(raw.mirrored), channels, *self.patch_size, device=device)
        label = torch.empty(len(raw.mirrored), 1, *self.patch_size, device=device, dtype=torch.int16)
        for boxes in (raw.straight, raw.turned):
            if boxes is None:
                continue
            part = boxes.image.to(device, non_blocking=True), boxes.label.to(device, non_blocking=True)
            if boxes is raw.turned:
                part = warp(*part, raw.matrices, raw.centres, self.patch_size)
            chosen = to_device(boxes.patches, device)
            image.index_copy_(0, chosen, part[0].float())
            label.index_copy_(0, chosen, part[1].to(torch.int16))
        return image, label


def _boxes(patches: np.ndarray, regions: Sequence[Region]) -> Boxes | None:
    """The regions of some patches, read, at the beginning of boxes as large as the largest."""
    if not regions:
        return None
    size = np.max([region.size for region in regions], axis=0).tolist()
    offsets = [region.offset for region in regions]
    image, label = (_filled([getattr(region, key) for region in regions], offsets, size) for key in ("image", "label"))
    return Boxes(patches, image, label)


def _filled(arrays: Sequence[np.ndarray], offsets: Sequence[Sequence[int]], size: Sequence[int]) -> torch.Tensor:
    boxes = np.zeros((len(arrays), len(arrays[0]), *size), np.result_type(*{array.dtype for array in arrays}))
    for box, array, offset in zip(boxes, arrays, offsets, strict=True):
        box[(slice(None), *(slice(at, at + n) for at, n in zip(offset, array.shape[1:], strict=True)))] = array
    return torch.from_numpy(boxes)


def _chosen_rows(tables: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray] | None:
    """Of the tables of an alteration, one a patch or None: the rows of (patches * channels) that are altered."""
    known = {patch: table for patch, table in enumerate(tables) if table is not None}
    if not known:
        return None
    channels = len(next(iter(known.values())))
    rows = np.concatenate([patch * channels + np.arange(channels) for patch in known])
    table = np.concatenate(list(known.values()))
    chosen = ~np.isnan(table[:, 0])
    return (rows[chosen], table[chosen]) if chosen.any() else None
