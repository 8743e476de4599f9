"""Flip test-time augmentation."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from scripts.engines.inferers import FlipTTAInferer, with_flips
from scripts.errors import UserError


def position_weighted(x: torch.Tensor) -> torch.Tensor:
    """A network that is not equivariant to flips."""
    return x * torch.arange(x[0, 0].numel(), dtype=x.dtype).view(x.shape[2:])


def test_average_over_every_combination_of_axes() -> None:
    x = torch.rand(1, 2, 3, 4, 5)
    combinations = [[], [2], [4], [2, 4]]
    expected = sum(torch.flip(position_weighted(torch.flip(x, axes)), axes) for axes in combinations) / 4
    assert torch.allclose(FlipTTAInferer(SimpleInferer(), [0, 2])(x, position_weighted), expected)
    assert len(FlipTTAInferer(SimpleInferer(), [0, 1, 2]).flips) == 8


def test_wraps_a_sliding_window() -> None:
    x = torch.rand(1, 1, 20, 13)
    window = SlidingWindowInferer(roi_size=(8, 8), overlap=0.5, mode="gaussian")
    assert torch.allclose(FlipTTAInferer(window, [0, 1])(x, lambda patch: 2 * patch), 2 * x, atol=1e-5)


@pytest.mark.parametrize(("tta", "axes", "wrapped"), [(True, [1], True), ("false", [1], False), ("true", [], False)])
def test_switch(tta: bool | str, axes: list[int], wrapped: bool) -> None:
    inferer = SimpleInferer()
    assert isinstance(with_flips(inferer, tta, axes), FlipTTAInferer) is wrapped
    with pytest.raises(UserError, match="tta must be true or false"):
        with_flips(inferer, "perhaps", [0])
