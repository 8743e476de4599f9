"""Connected components against SciPy's, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scripts.metrics import components as components_module
from scripts.metrics import slabs
from scripts.metrics.components import find_components, find_holes, keep_components

SHAPES = [(6, 7), (4, 5, 6)]
maps = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES)).map(
    lambda drawn: np.random.default_rng(drawn[0]).choice([0, 0, 0, 2, 9], drawn[1]).astype(np.uint8)
)


@settings(max_examples=40, deadline=None)
@given(maps, st.booleans())
def test_components_are_scipys(label_map: np.ndarray, fortran: bool) -> None:
    components = find_components(np.asfortranarray(label_map) if fortran else label_map)
    for value in (2, 9):
        expected, count = ndimage.label(label_map == value, np.ones([3] * label_map.ndim))
        own = np.flatnonzero(components.values == value)
        assert len(own) == count
        assert sorted(components.sizes[own]) == sorted(np.bincount(expected.ravel())[1:])
    assert components.sizes[1:].sum() == (label_map > 0).sum()


@settings(max_examples=40, deadline=None)
@given(maps, st.booleans())
def test_large_label_maps_have_the_same_components(label_map: np.ndarray, as_mask: bool) -> None:
    """Class by class, and in slabs of a few voxels."""
    label_map = label_map > 0 if as_mask else label_map
    whole, holes = find_components(label_map), find_holes(label_map)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components_module, "ONE_PASS", 0)
        patch.setattr(slabs, "SLAB", 8)
        large, kept = find_components(label_map), np.random.default_rng(0).random(len(whole.sizes)) < 0.5
        assert np.array_equal(find_holes(label_map), holes)
        order = np.argsort(whole.values, kind="stable")  # one class after the other, each in raster order
        assert np.array_equal(whole.sizes[order], large.sizes) and np.array_equal(whole.values[order], large.values)
        assert np.array_equal(np.argsort(order)[whole.numbers], large.numbers)
        cleaned = keep_components(label_map, large, kept[order])
    assert np.array_equal(keep_components(label_map, whole, kept), cleaned)


@settings(max_examples=60, deadline=None)
@given(maps, st.booleans())
def test_holes_of_one_class_are_scipys(label_map: np.ndarray, fortran: bool) -> None:
    mask = (label_map == 0).astype(np.uint8) * 7  # dense, so that there are holes
    mask = np.asfortranarray(mask) if fortran else mask
    expected = ndimage.binary_fill_holes(mask > 0) & (mask == 0)
    assert np.array_equal(find_holes(mask), expected * 7)


def test_largest_component() -> None:
    label_map = np.zeros((8, 8), np.uint16)
    label_map[0, 0:3], label_map[4, 0:3], label_map[7, 7] = 300, 300, 300
    label_map[2, 2:4] = 5
    components = find_components(label_map)
    own = components.values == 300
    largest = components.largest(own)
    assert components.sizes[largest] == 3 and components.largest(components.values == 77) == 0
    kept = ~own
    kept[largest] = True
    cleaned = keep_components(label_map, components, kept)
    assert (cleaned[0, 0:3] == 300).all(), "the first of equals stays"
    assert (cleaned == 300).sum() == 3 and (cleaned == 5).sum() == 2
    assert (label_map == 300).sum() == 7, "the input is left alone"


def test_corners_connect() -> None:
    assert len(find_components(np.eye(5, dtype=np.uint8)).sizes) == 2


def test_a_hole_belongs_to_the_class_that_alone_encloses_it() -> None:
    label_map = np.zeros((9, 20), np.uint8)
    label_map[1:8, 1:8], label_map[3:6, 3:6], label_map[4, 4] = 1, 2, 0  # inside 2, which is inside 1
    label_map[1:8, 11:18], label_map[4, 14], label_map[4, 15] = 1, 0, 2  # between 1 and 2
    label_map[0, 9] = 3
    holes = find_holes(label_map)
    assert holes[4, 4] == 2 and holes.sum() == 2


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (1, 1)])
def test_nothing_there(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape, np.uint8)
    components = find_components(empty)
    assert list(components.sizes) == [0] and components.largest() == 0
    assert not keep_components(empty, components, np.zeros(1, bool)).any() and not find_holes(empty).any()
    full = np.ones(shape, np.uint8)
    assert list(find_components(full).sizes[1:]) == [full.size] and not find_holes(full).any()
