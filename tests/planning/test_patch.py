"""The patch rule: properties that hold for any images, spacing and memory, and nnU-Net's known choices."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.planning.memory import StepMemory
from scripts.planning.patch import Patch, choose_patch, choose_strides, fit_to_strides, total_stride


@st.composite
def images(draw: st.DrawFn) -> tuple[list[float], list[float] | None]:
    """Median shape and spacing."""
    dims = draw(st.sampled_from([2, 3]))
    shape = draw(st.lists(st.integers(1, 700 if dims == 3 else 4000), min_size=dims, max_size=dims))
    spacing = st.lists(st.floats(0.05, 12), min_size=dims, max_size=dims)
    return [size + draw(st.sampled_from([0.0, 0.5])) for size in shape], draw(st.none() | spacing)


@settings(max_examples=300, deadline=None)
@given(images(), st.floats(0.2, 200), st.floats(100, 20_000))
def test_patch_fits_everything_at_once(
    image: tuple[list[float], list[float] | None], gib: float, bytes_per_voxel: float
) -> None:
    shape, spacing = image
    memory = StepMemory(len(shape), 0.08, bytes_per_voxel, "")

    def fits(patch: Patch) -> bool:
        return memory.gib(2 * patch.voxels, patch.strides) <= gib

    patch = choose_patch(shape, spacing, fits)
    assert patch is not None  # there is room for a few voxels at least
    assert fits(patch)
    for size, step, median in zip(patch.size, total_stride(patch.strides), shape, strict=True):
        assert size > 0 and size % step == 0
        assert size // step >= 4 or step == 1
        assert size <= 8 * math.ceil(median / 8)  # padding never exceeds the stride
    assert patch.strides == choose_strides(patch.size, spacing or [1.0] * len(shape))


@settings(max_examples=300, deadline=None)
@given(images())
def test_coarse_axes_wait_until_the_others_caught_up(image: tuple[list[float], list[float] | None]) -> None:
    shape, spacing = [math.ceil(size) for size in image[0]], image[1] or [1.0] * len(image[0])
    size, mm = list(map(float, shape)), list(spacing)
    for stride in choose_strides(shape, spacing):
        large = [axis for axis, voxels in enumerate(size) if voxels >= 8]
        for axis in large:
            assert (stride[axis] == 2) == (mm[axis] < 2 * min(mm[a] for a in large))
        assert all(stride[axis] == 1 for axis in range(len(size)) if axis not in large)
        size = [voxels / step for voxels, step in zip(size, stride, strict=True)]
        mm = [a * step for a, step in zip(mm, stride, strict=True)]


@settings(max_examples=100, deadline=None)
@given(images())
def test_rounding_is_stable_and_short(image: tuple[list[float], list[float] | None]) -> None:
    shape = [math.ceil(size) for size in image[0]]
    up, down = fit_to_strides(shape, image[1]), fit_to_strides(shape, image[1], math.floor)
    assert fit_to_strides(up.size, image[1]) == up and fit_to_strides(down.size, image[1], math.floor) == down
    assert all(low <= size <= high < size + 8 for low, size, high in zip(down.size, shape, up.size, strict=True))


def test_no_patch_where_nothing_fits() -> None:
    assert choose_patch([100, 100], None, lambda patch: False) is None


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((35, 50, 36), (1, 1, 1), [40, 56, 40]),  # nnU-Net's hippocampus patch
        ((512, 512), None, [512, 512]),
        ((20, 20), None, [20, 20]),
        ((3000, 5000), None, [2048, 2048]),
        ((1000, 1000, 1000), (1, 1, 1), [256, 256, 256]),
        ((1000, 1000, 1000), (1, 1, 8), [512, 512, 64]),  # 256^3 voxels, a cube in mm
    ],
)
def test_with_memory_without_end(shape: tuple, spacing: tuple | None, expected: list[int]) -> None:
    assert choose_patch(shape, spacing, lambda patch: True).size == expected


@pytest.mark.parametrize(
    ("size", "spacing", "strides"),
    [
        ((40, 56, 40), (1, 1, 1), [[2, 2, 2]] * 3),
        ((288, 288, 32), (0.7, 0.7, 5), [[2, 2, 1], [2, 2, 1], [2, 2, 2]]),
        ((128, 128, 5), (1, 1, 1), [[2, 2, 1]] * 3),
        ((16, 16), (1, 1), [[2, 2], [2, 2], [1, 1]]),
        ((4, 4), (1, 1), [[1, 1]] * 3),
    ],
)
def test_strides(size: tuple, spacing: tuple, strides: list[list[int]]) -> None:
    assert choose_strides(size, spacing) == strides


def test_shrinks_where_the_patch_covers_most() -> None:
    patch = choose_patch((512, 512, 60), (0.7, 0.7, 5), lambda patch: patch.voxels <= 2_000_000)
    assert patch.size[0] == patch.size[1]
    assert patch.size[2] / 60 == pytest.approx(patch.size[0] / 512, abs=0.05)  # as in the median image
    assert patch.voxels > 1_700_000
