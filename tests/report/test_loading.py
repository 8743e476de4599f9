"""Reading of label maps, and the comparison of grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_cases import AFFINE, cube, write

from scripts.common.errors import UserError
from scripts.images.task import Task
from scripts.report.loading import check_same_grid, load_channels, load_label_map


def test_label_maps_keep_their_values_and_refuse_unknown_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write(path, cube((6, 6, 6), 1, 3, 5))
    loaded = load_label_map(path, Task(labels={"a": 5}))
    assert loaded.array.dtype == np.uint8
    assert loaded.spacing == (1.0, 1.0, 3.0)
    with pytest.raises(UserError, match=r"label value\(s\) 5; the task knows \[0, 1\]"):
        load_label_map(path, Task(labels={"a": 1}))
    load_label_map(path, Task(labels={"a": 1}, ignore_label=5))


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_refuses_an_image_as_label_map(tmp_path: Path, value: float) -> None:
    write(tmp_path / "a.nii", np.full((4, 4, 4), value, np.float32))
    with pytest.raises(UserError, match=r"a\.nii is no label map"):
        load_label_map(tmp_path / "a.nii", Task())


def test_grids_must_agree_in_size_spacing_and_place(tmp_path: Path) -> None:
    moved, stretched = AFFINE.copy(), AFFINE.copy()
    moved[0, 3], stretched[0, 0] = 4.0, -2.0
    label_map = cube((6, 6, 6), 1, 3)
    for name, array, affine in (
        ("a", label_map, AFFINE),
        ("moved", label_map, moved),
        ("stretched", label_map, stretched),
        ("small", label_map[1:], AFFINE),
    ):
        write(tmp_path / f"{name}.nii", array, affine)
    first = load_label_map(tmp_path / "a.nii", Task())
    check_same_grid(first, first)
    for name, message in (("moved", "positions"), ("stretched", "spacing"), ("small", "size")):
        with pytest.raises(UserError, match=rf"{name}\.nii does not lie on the grid of .*a\.nii \({message}"):
            check_same_grid(first, load_label_map(tmp_path / f"{name}.nii", Task()))


def test_channels_come_from_one_or_several_files(tmp_path: Path) -> None:
    for channel in range(2):
        write(tmp_path / f"a_{channel:04}.nii", np.full((4, 4, 4), channel, np.float32))
    image = load_channels(sorted(tmp_path.iterdir()))
    assert image.array.shape == (2, 4, 4, 4)
    assert image.array[1].min() == 1


def test_one_slice_is_a_plane_for_two_dimensional_tasks(tmp_path: Path) -> None:
    write(tmp_path / "a.nii", cube((5, 4, 1), 0, 1))
    planar = load_label_map(tmp_path / "a.nii", Task()).planar()
    assert planar.array.shape == (4, 5)  # rows and columns
    assert planar.spacing == (1.0, 1.0)
