"""Inference on a whole image at once by MONAI's own inferers, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer


def whole_image(
    image: torch.Tensor,
    network: Callable[[torch.Tensor], torch.Tensor],
    patch_size: Sequence[int],
    overlap: float = 0.5,
    mirror_axes: Sequence[int] = (),
    slice_axis: int | None = None,
) -> torch.Tensor:
    """Logits of (batch, channels, *spatial), averaged over the mirror images of the whole image.

    Args:
        mirror_axes: spatial axes of the image.
    """
    options = {"roi_size": tuple(patch_size), "sw_batch_size": 4, "overlap": overlap, "mode": "gaussian"}
    window = SlidingWindowInferer(**options) if slice_axis is None else SliceInferer(slice_axis, **options)
    flips = chain.from_iterable(combinations(mirror_axes, count) for count in range(len(mirror_axes) + 1))
    results = []
    for flip in flips:
        axes = [axis + 2 for axis in flip]
        results.append(window(image.flip(axes), network).flip(axes))
    return torch.stack(results).mean(dim=0)
