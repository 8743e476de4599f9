"""Flip test-time augmentation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from scripts.common.errors import UserError
from scripts.engines.inferers import FlipTTAInferer, sliding_window, with_flips


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


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_volumes(axis: int) -> None:
    """Every slice goes through a 2D network alone; mirrored axes are those of the slice."""
    volume = torch.rand(1, 1, 9, 10, 11)
    seen: list[torch.Size] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return torch.cat([x, position_weighted(x)], dim=1)

    result = sliding_window([16, 16], tta="true", mirror_axes=[0, 1], slice_axis=axis)(volume, network)
    assert result.shape == (1, 2, 9, 10, 11) and torch.allclose(result[:, :1], volume, atol=1e-5)
    assert {shape[2:] for shape in seen} == {(16, 16)}
    plane = [other for other in range(3) if other != axis]
    inferer = sliding_window([16, 16], slice_axis=axis, tta=True, mirror_axes=[1])
    assert inferer.flips == [[], [plane[1] + 2]]


def test_windows_of_any_size() -> None:
    volume = torch.rand(1, 1, 20, 13, 9)
    assert torch.allclose(sliding_window([8, 16, 8])(volume, lambda x: 3 * x), 3 * volume, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"overlap": 1}, "overlap must be"),
        ({"sw_batch_size": 0}, "sw_batch_size must be"),
        ({"mirror_axes": [0, 2]}, "of 0 to 1"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sliding_window([16, 16], **setting)
