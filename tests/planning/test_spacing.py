"""The target spacing and the sizes that follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.planning.spacing import resampled_shapes, target_spacing


def test_median() -> None:
    assert target_spacing([[1, 1, 2], [1, 1, 3], [1.2, 1, 4]], [[100, 100, 50]] * 3) == ([1, 1, 3], None)


def test_thick_slices_take_the_tenth_percentile() -> None:
    spacings = [[0.7, 0.7, z] for z in np.linspace(4, 6, 21)]
    assert target_spacing(spacings, [[512, 512, 40]] * 21) == ([0.7, 0.7, 4.2], 2)


def test_but_never_finer_than_the_slices() -> None:
    spacings = [[0.9, 0.9, z] for z in (0.3, 0.4, 5, 5, 5)]
    assert target_spacing(spacings, [[512, 512, 40]] * 5)[0] == [0.9, 0.9, 0.9]


def test_a_coarse_long_axis_is_not_thick() -> None:
    assert target_spacing([[1, 1, 4]] * 3, [[100, 100, 90]] * 3) == ([1, 1, 4], None)


def test_resampled_shapes() -> None:
    cases = [
        {"shape": [100, 100, 20], "cropped_shape": [50, 60, 20], "spacing": [1.0, 1.0, 5.0]},
        {"shape": [100, 100, 20], "cropped_shape": [100, 100, 20], "spacing": None},
    ]
    assert resampled_shapes(cases, [0.5, 2.0, 2.5], False).tolist() == [[200, 50, 40], [100, 100, 20]]
    assert resampled_shapes(cases, [0.5, 2.0, None], True).tolist() == [[100, 30, 20], [100, 100, 20]]
    assert resampled_shapes(cases, None, True).tolist() == [[50, 60, 20], [100, 100, 20]]


@pytest.mark.parametrize("spacing", [[[1.0, 1.0]] * 2, [[0.1, 0.5]] * 2])
def test_two_dimensions(spacing: list[list[float]]) -> None:
    assert target_spacing(spacing, [[512, 512]] * 2)[0] == spacing[0]


def test_tiny_voxels_do_not_become_zero() -> None:
    """A data set in metres: the network does not mind, but a spacing of 0 is none."""
    assert target_spacing([[1e-6, 1e-6, 2.34567e-6]], [[100, 100, 50]])[0] == [1e-6, 1e-6, 2.3457e-6]
