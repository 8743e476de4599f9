"""Resampling axis by axis, against SciPy and against itself."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.ndimage import map_coordinates

from scripts.data import resampling
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


@pytest.mark.parametrize("order", [0, 1, 3])
def test_slabs_change_no_bit(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = torch.randn(2, 9, 12, 7, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)  # as turned
    whole = resize(volume, (15, 4, 12), order, 1)
    monkeypatch.setattr(resampling, "SLAB", 30)
    assert torch.equal(resize(volume, (15, 4, 12), order, 1), whole)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0, 1, 2]), st.sampled_from([torch.int8, torch.float32]))
def test_each_class_is_resampled_as_if_it_were_alone(seed: int, nearest: int | None, dtype: torch.dtype) -> None:
    """Inside its own box: what is outside has no share of it."""
    rng = np.random.default_rng(seed)
    old, new = rng.integers(1, 12, 3).tolist(), rng.integers(1, 14, 3).tolist()
    label = torch.from_numpy(rng.choice([0, 0, 0, 0, 1, 7, -1], old)).to(dtype)[None]
    values = torch.unique(label)
    shares = torch.cat([resize((label == value).float(), new, 1, nearest) for value in values])
    assert torch.equal(resize_label_map(label, new, nearest)[0], values[shares.argmax(dim=0)])


def test_thin_axis() -> None:
    assert thin_axis([0.7, 0.7, 5]) == 2 and thin_axis([5, 0.7, 0.7]) == 0 and thin_axis([1, 2, 3]) is None
    assert thin_axis([0.24, 1.25, 1.2500001]) is None  # two equally coarse axes
