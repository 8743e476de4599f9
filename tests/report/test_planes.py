"""Geometry of what is shown: orientation, planes, zoom, the largest error and windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.report.loading import Loaded
from scripts.report.planes import Canvas, foreground_box, largest_error, montage_slices, planes_of, show, upright
from scripts.report.windows import display_window

CUBE = Canvas((10, 10, 10), (1.0, 1.0, 1.0), letters=True)


def test_a_picture_is_shown_as_it_is() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    array, canvas = upright(Loaded(Path("a.png"), picture, 2, None))
    assert np.array_equal(show(array, 2, 0), picture)
    assert (planes_of(canvas), canvas.letters) == ([2], False)
    colours = np.stack([picture, picture + 10, picture + 20])
    shown = show(upright(Loaded(Path("a.png"), colours, 2, None))[0], 2, 0)
    assert np.array_equal(shown, np.moveaxis(colours, 0, -1))


def test_a_stack_of_pictures_without_directions_shows_its_pages() -> None:
    stack = np.arange(24).reshape(4, 2, 3)
    array, canvas = upright(Loaded(Path("a.tif"), stack, 3, np.diag([5.0, 1.0, 2.0, 1.0])))
    assert np.array_equal(show(array, 2, 1), stack[1])
    assert canvas == Canvas((3, 2, 4), (2.0, 1.0, 5.0), letters=False)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_volumes_are_shown_as_radiologists_see_them(flips: tuple[int, int, int]) -> None:
    """Whatever the order of the file: R left, A and S at the top, A left in sagittal planes."""
    ras = np.zeros((4, 5, 6), np.uint8)
    ras[3, 4, 5] = 1  # the most right, anterior, superior voxel
    stored = ras[:: flips[0], :: flips[1], :: flips[2]].transpose(2, 0, 1)  # axes S, R, A
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 2.0 * flips[0], 0], [0, 0, 3.0 * flips[1]], [4.0 * flips[2], 0, 0]])
    array, canvas = upright(Loaded(Path("a.nii"), stored, 3, affine))
    assert np.array_equal(array, ras)
    assert canvas.spacing == (2.0, 3.0, 4.0)
    for axis, ends in ((2, ("R", "L", "A", "P")), (1, ("R", "L", "S", "I")), (0, ("A", "P", "S", "I"))):
        assert show(array, axis, array.shape[axis] - 1)[0, 0] == 1  # left and top
        assert canvas.ends(axis) == ends


def test_planes_go_through_the_middle_of_the_largest_error() -> None:
    wrong = np.zeros(CUBE.shape, bool)
    wrong[0, 0, :2] = True
    wrong[4:9, 2:7, 5:10] = True
    assert largest_error(wrong, wrong, CUBE) == (6, 4, 7)
    nothing = np.zeros_like(wrong)
    assert largest_error(nothing, wrong, CUBE) == (6, 4, 7)
    assert largest_error(nothing, nothing, CUBE) == (5, 5, 5)


def test_zooms_only_where_the_foreground_is_small() -> None:
    canvas = Canvas((100, 100, 100), (1.0, 2.0, 1.0), letters=True)
    mask = np.zeros(canvas.shape, bool)
    mask[40:70, 10:40, 50:80] = True
    zoom = foreground_box([mask], canvas)
    assert (zoom.first, zoom.last) == ((34, 4, 44), (76, 46, 86))
    assert zoom.limits(canvas, 2) == (24, 66, 2 * 54, 2 * 96)
    assert foreground_box([np.ones_like(mask)], canvas) is None
    assert foreground_box([np.zeros_like(mask)], canvas) is None


def test_montage_walks_along_thick_slices_from_the_top() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[5:8, 2:18, 3:6] = True
    thick = Canvas(mask.shape, (1.0, 4.0, 1.0), letters=True)
    assert montage_slices(mask, thick, 3) == (1, [17, 10, 2])
    assert montage_slices(mask, CUBE, 9) == (2, [5, 4, 3])


@pytest.mark.parametrize(("tissue", "name"), [(-800, "lung"), (60, "soft tissue"), (700, "bone")])
def test_ct_windows_follow_what_is_segmented(tissue: float, name: str) -> None:
    image = np.full((8, 8, 8), -1000.0)
    image[2:5] = tissue
    window = display_window(image, image == tissue)
    assert window.text.startswith(name)
    assert window.low < tissue < window.high


def test_other_images_use_percentiles_and_survive_constants_and_nan() -> None:
    image = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    window = display_window(image, image > 0.5)
    assert (window.low, window.high) == pytest.approx((0.005, 0.995))
    assert window.grey(image[0]).min() >= 0
    flat = display_window(np.full((4, 4, 4), 3.0), np.zeros((4, 4, 4), bool))
    assert flat.high > flat.low
    assert np.isfinite(display_window(np.full((4, 4, 4), np.nan), flat.low > image[:4, :4, :4]).high)
