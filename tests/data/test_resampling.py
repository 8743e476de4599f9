"""Resampling axis by axis, against SciPy and against itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from scripts.data.resampling import resize, resize_label_map, thin_axis


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("size", [(7, 12, 5), (9, 9, 9), (3, 20, 1)])
def test_matches_scipy(order: int, size: tuple[int, ...]) -> None:
    volume = np.random.default_rng(0).normal(size=(2, 9, 8, 5)).astype(np.float32)
    positions = np.meshgrid(
        *[np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1) for new, old in zip(size, volume.shape[1:])],
        indexing="ij",
    )
    if order == 0:
        positions = [np.floor(position + 0.5) for position in positions]  # SciPy rounds halves otherwise
    expected = np.stack([map_coordinates(channel, positions, order=order, mode="mirror") for channel in volume])
    assert np.allclose(resize(torch.from_numpy(volume), size, order).numpy(), expected, atol=1e-5)


def test_one_axis_by_nearest_voxels() -> None:
    volume = torch.rand(1, 4, 4, 3)
    resized = resize(volume, (8, 8, 9), 3, nearest_axis=2)
    assert torch.equal(resized[..., 0], resized[..., 2]) and not torch.equal(resized[..., 2], resized[..., 3])


def test_labels_keep_their_values_and_volume() -> None:
    label = torch.zeros(1, 20, 20, 20)
    label[0, 3:12, 4:15, 5:18], label[0, 12:17, 4:15, 5:18] = 7, -1
    resized = resize_label_map(label, (30, 30, 30))
    assert set(resized.unique().tolist()) == {-1, 0, 7}
    for value in (-1, 7):
        share = (resized == value).float().mean() / (label == value).float().mean()
        assert 0.9 < float(share) < 1.1
    assert resize_label_map(label, (20, 20, 20)) is label


def test_thin_axis() -> None:
    assert thin_axis([0.7, 0.7, 5]) == 2 and thin_axis([5, 0.7, 0.7]) == 0 and thin_axis([1, 2, 3]) is None
    assert thin_axis([0.24, 1.25, 1.2500001]) is None  # two equally coarse axes
