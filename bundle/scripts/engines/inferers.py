"""Sliding windows over images of any size, slice by slice for a 2D network, and mirroring around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt

from ..common.command_line import as_flag, or_none
from ..common.errors import UserError
from .settings_check import check_settings

__all__ = ["FlipTTAInferer", "sliding_window", "with_flips"]


class FlipTTAInferer(Inferer):
    """Average the logits over every combination of mirrored axes (nnU-Net's test-time augmentation).

    Args:
        inferer: does the inference on each mirrored image, for example a SlidingWindowInferer.
        axes: spatial axes to mirror, 0 being the first after batch and channels; n axes give 2^n passes.
    """

    def __init__(self, inferer: Inferer, axes: Sequence[int]) -> None:
        super().__init__()
        self.inferer = inferer
        combos = chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1))
        self.flips = [[axis + 2 for axis in combo] for combo in combos]

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Inputs (batch, channels, *spatial) to logits (batch, classes, *spatial)."""
        total = self.inferer(inputs, network, *args, **kwargs)
        for axes in self.flips[1:]:
            mirrored = self.inferer(torch.flip(inputs, axes), network, *args, **kwargs)
            total = total + torch.flip(mirrored, axes).to(total.device)  # large ones may have moved to the CPU
        return total / len(self.flips)


def sliding_window(
    patch_size: Sequence[int],
    overlap: float = 0.5,
    sw_batch_size: int = 4,
    tta: bool | str = False,
    mirror_axes: Sequence[int] = (),
    slice_axis: int | None = None,
) -> Inferer:
    """Windows of the patch's size with Gaussian weights, as nnU-Net; where a GPU has no room for the logits of a
    whole image, they are collected on the CPU.

    Args:
        patch_size: of the network's dimensions.
        overlap: of neighbouring windows, as a share of their size.
        sw_batch_size: windows that the network gets at once.
        tta: also average over the mirror images.
        mirror_axes: axes of the patch that ``tta`` mirrors.
        slice_axis: axis along which a 2D network walks through volumes, or None.

    Raises:
        UserError: the overlap is not below 1, there is no window at once, or a mirror axis is none of the patch's.
    """
    check_settings(overlap=overlap, sw_batch_size=sw_batch_size)
    if not all(axis in range(len(patch_size)) for axis in mirror_axes):
        raise UserError(f"mirror_axes must be of 0 to {len(patch_size) - 1}, the patch's axes, not {list(mirror_axes)}")
    options: dict[str, Any] = {"sw_batch_size": sw_batch_size, "overlap": overlap, "mode": "gaussian"}
    slice_axis, axes = or_none(slice_axis), list(mirror_axes)
    inferer: SlidingWindowInferer = SlidingWindowInfererAdapt(roi_size=patch_size, **options)
    if slice_axis is not None:
        inferer = SliceInferer(spatial_dim=slice_axis, roi_size=patch_size, **options)
        axes = [axis + (axis >= slice_axis) for axis in axes]  # of the patch -> of the volume
    return with_flips(inferer, tta, axes)


def with_flips(inferer: Inferer, tta: bool | str, axes: Sequence[int]) -> Inferer:
    """``inferer`` itself, or with mirroring around it if ``tta`` is true and there are axes to mirror."""
    return FlipTTAInferer(inferer, axes) if as_flag(tta, "tta") and axes else inferer
