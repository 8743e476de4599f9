"""Labels that have a side are found however they are written, and others are left alone."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from scripts.common.errors import UserError
from scripts.images.sides import check_mirror_axes, left_right_axis, one_sided_labels, sided_labels


@pytest.mark.parametrize(
    "pair",
    [
        ("LeftParotid", "RightParotid"),
        ("LParotid", "RParotid"),
        ("KidneyL", "KidneyR"),
        ("Parotid_R", "Parotid_L"),
        ("kidney (right)", "kidney (left)"),
        ("L.Kidney", "R.Kidney"),
        ("lh-cortex", "rh-cortex"),
        ("ctx_lh_insula", "ctx_rh_insula"),
        ("Left-Amygdala", "right amygdala"),
        ("HippocampusLt", "HippocampusRt"),
        ("hippocampus sin", "hippocampus dex"),
        ("Niere_links", "Niere_rechts"),
        ("左肾", "右肾"),
        ("leftkidney", "rightkidney"),
        ("kidneyl", "kidneyr"),
        ("LKIDNEY", "RKIDNEY"),
        ("LV", "RV"),
        ("rib_left_3", "rib_right_3"),
        ("rib_left_3", "rib_right_7"),  # both sides, if not of one rib
        ("T12L", "T12R"),
        ("Left3", "Right3"),
        ("left", "right"),
        ("L", "R"),
        ("LeftKidney", "KidneyR"),
        ("kidney", "left kidney"),  # the other one is the right one
    ],
)
def test_both_sides(pair: tuple[str, str]) -> None:
    assert sided_labels(["liver", *pair]) == list(pair)
    assert sided_labels(["liver"], pair) == (list(pair) if "kidney" not in pair else [])


@pytest.mark.parametrize(
    "labels",
    [
        ["left atrium", "myocardium"],
        ["L1", "L2", "L3", "L4", "L5"],
        ["C7", "T1", "T12", "L1", "L5", "S1"],
        ["Vertebra L5", "Vertebra T12"],
        ["vertebrae_L5", "vertebrae_5"],
        ["liver", "cleft", "bright spot", "tumor", "renal", "pillar", "lobular"],
        ["anterior", "posterior"],
        ["LargeBowel", "Rectum"],
    ],
)
def test_no_sides(labels: list[str]) -> None:
    assert sided_labels(labels) == []


def test_a_single_side_is_named() -> None:
    assert one_sided_labels(["left atrium", "L5", "liver", "aorta"]) == ["left atrium"]


@pytest.mark.parametrize(
    ("dims", "slice_axis", "volume_axis", "axis"),
    [(3, None, 0, 0), (2, None, 0, 1), (2, 0, 0, None), (2, 1, 0, 0), (2, 2, 0, 0), (3, None, 2, 2), (2, 0, 2, 1)],
)
def test_the_axis(dims: int, slice_axis: int | None, volume_axis: int, axis: int | None) -> None:
    assert left_right_axis(dims, slice_axis, volume_axis) == axis


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({}, True),
        ({"mirror_axes": [1, 2]}, False),
        ({"labels": {"left atrium": 1}}, False),
        ({"labels": {"a": 1, "b": 2}, "regions": {"L_lung": ["a"], "R_lung": ["b"]}}, True),
        ({"spatial_dims": 2, "slice_axis": "null", "mirror_axes": [0, 1]}, True),
        ({"spatial_dims": 2, "slice_axis": 0, "mirror_axes": [0, 1]}, False),
    ],
)
def test_older_plans_are_warned_of(settings: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    usual = {"mirror_axes": [0, 1, 2], "spatial_dims": 3, "slice_axis": None, "regions": {}}
    with caplog.at_level(logging.WARNING):
        check_mirror_axes(**(usual | {"labels": {"KidneyL": 1, "KidneyR": 2}} | settings))
    assert ("out of mirror_axes" in caplog.text) is warns


def test_mirror_axes_must_be_a_list() -> None:
    with pytest.raises(UserError, match=r"mirror_axes must be a list .* not 0"):
        check_mirror_axes(0, 3, None, {"organ": 1}, {})
