"""Scores against numbers worked out by hand, and against MONAI's and SimpleITK's."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from scipy.ndimage import gaussian_filter

from scripts.metrics import METRICS, case_scores, size_metrics, units

LABELS = {"a": 1, "b": 5}


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A label map with the values 0, 1 and 5 in random blobs that reach the edges."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal(shape), 2, mode="wrap")
    low, high = np.quantile(smooth, [0.25, 0.8])
    return np.where(smooth < low, 5, np.where(smooth > high, 1, 0)).astype(np.uint8)


def two_maps(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)


def monai_scores(prediction: np.ndarray, label: np.ndarray, value: int, spacing: list[float], tolerance: float) -> dict:
    predicted, expected = (torch.from_numpy(m == value)[None, None] for m in (prediction, label))
    options = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = {
            "dice": compute_dice(predicted, expected),
            "iou": compute_iou(predicted, expected),
            "nsd": compute_surface_dice(predicted, expected, [tolerance], **options),
            "hd95": compute_hausdorff_distance(predicted, expected, percentile=95, **options),
            "assd": compute_average_surface_distance(predicted, expected, symmetric=True, **options),
        }
    return {name: float(score) for name, score in scores.items()}


@pytest.mark.parametrize(
    ("shape", "spacing"), [((20, 24, 17), [0.7, 1.3, 2.9]), ((40, 33), [1.1, 0.6]), ((12, 30, 9), [1.0, 1.0, 1.0])]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_monai(shape: tuple[int, ...], spacing: list[float], seed: int) -> None:
    prediction, label = blobs(seed, shape), blobs(seed + 10, shape)
    label[:4] = prediction[:4]
    ours = case_scores(prediction, label, LABELS, spacing, tolerance=1.45)
    for name, value in LABELS.items():
        theirs = monai_scores(prediction, label, value, spacing, 1.45)
        assert {key: ours[name][key] for key in theirs} == pytest.approx(theirs, rel=1e-5)


def test_equals_simpleitk() -> None:
    prediction, label = blobs(3, (16, 20, 24)), blobs(4, (16, 20, 24))
    images = [sitk.GetImageFromArray((m == 5).astype(np.uint8)) for m in (prediction, label)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(images[1], images[0])  # source, target
    scores = case_scores(prediction, label, LABELS, [1.0, 1.0, 1.0])["b"]
    assert scores["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    assert scores["iou"] == pytest.approx(overlap.GetJaccardCoefficient())
    assert scores["precision"] == pytest.approx((prediction == 5)[label == 5].sum() / (prediction == 5).sum())
    assert scores["recall"] == pytest.approx((label == 5)[prediction == 5].sum() / (label == 5).sum())
    assert scores["volume_error_percent"] == pytest.approx(100 * ((prediction == 5).sum() / (label == 5).sum() - 1))


def test_largest_distance_equals_simpleitks_hausdorff() -> None:
    """Solid boxes, whose farthest voxels lie on the surface; the 95th percentile of one voxel is its distance."""
    prediction, label = two_maps(20, 20, 20)
    prediction[3, 4, 5], label[10, 4, 7] = 1, 1
    images = [sitk.GetImageFromArray(m) for m in (prediction, label)]
    for image in images:
        image.SetSpacing((2.0, 1.0, 0.5))  # x, y, z: the last axis of the array first
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(*images)
    scores = case_scores(prediction, label, LABELS, [0.5, 1.0, 2.0])["a"]
    assert scores["hd95"] == pytest.approx(hausdorff.GetHausdorffDistance()) == scores["assd"]


def test_overlap_by_hand() -> None:
    prediction, label = two_maps(10, 10, 10)
    prediction[2, 2, 2:6], label[2, 2, 4:9] = 1, 1
    scores = case_scores(prediction, label, LABELS, (1, 1, 3))["a"]
    assert scores["dice"] == pytest.approx(4 / 9) and scores["iou"] == pytest.approx(2 / 7)
    assert scores["precision"] == 0.5 and scores["recall"] == pytest.approx(2 / 5)
    assert scores["volume_ml"] == pytest.approx(0.012) and scores["reference_volume_ml"] == pytest.approx(0.015)
    assert scores["volume_error_ml"] == pytest.approx(-0.003) and scores["volume_error_percent"] == pytest.approx(-20)


def test_distances_by_hand() -> None:
    prediction, label = two_maps(9, 9, 9)
    prediction[1, 1, 1], label[4, 5, 1] = 5, 5
    scores = case_scores(prediction, label, LABELS, (1.0, 2.0, 5.0))["b"]
    assert scores["hd95"] == scores["assd"] == pytest.approx(math.hypot(3, 8))
    assert scores["dice"] == scores["nsd"] == 0
    near = case_scores(prediction, label, LABELS, (0.3, 0.0001, 5.0), tolerance=0.9)
    assert near["b"]["nsd"] == 1, "three steps of 0.3 mm are within 0.9 mm"


def test_absent_classes_are_undefined_not_perfect() -> None:
    prediction, label = two_maps(8, 8)
    label[2:4, 2:4] = 1
    scores = case_scores(prediction, label, LABELS)
    missed, absent = scores["a"], scores["b"]
    assert missed["dice"] == missed["iou"] == missed["recall"] == missed["nsd"] == 0
    assert all(math.isnan(missed[key]) for key in ("precision", "hd95", "assd"))
    assert all(math.isnan(absent[key]) for key in METRICS) and math.isnan(absent["area_error_percent"])
    assert absent["area_px"] == absent["reference_area_px"] == absent["area_error_px"] == 0
    invented = case_scores(label, prediction, LABELS)["a"]
    assert invented["dice"] == invented["precision"] == 0 and math.isnan(invented["recall"])
    assert invented["area_error_px"] == 4 and math.isnan(invented["area_error_percent"])


def test_region_is_scored_as_the_union() -> None:
    prediction, label = blobs(5, (14, 15, 16)), blobs(6, (14, 15, 16))
    scores = case_scores(prediction, label, LABELS, [1, 2, 3], regions={"whole": ["a", "b"]})
    union = case_scores(prediction > 0, label > 0, {"whole": 1}, [1, 2, 3])
    assert scores["whole"] == pytest.approx(union["whole"]) and list(scores) == ["a", "b", "whole"]


def test_ignored_voxels_count_nowhere() -> None:
    prediction, label = two_maps(12, 12, 12)
    label[2:10, 2:6] = 1
    prediction[2:10, 2:6] = 1
    label[6:], prediction[6:, 6:] = 255, 5
    scores = case_scores(prediction, label, LABELS, [1, 1, 1], ignore_label=255)
    assert scores["a"]["dice"] == scores["a"]["nsd"] == 1 and scores["a"]["hd95"] == 0
    assert scores["a"]["volume_ml"] == pytest.approx(4 * 4 * 12 / 1000) and math.isnan(scores["b"]["dice"])
    prediction[5, 2:6] = 0  # the outermost known layer is missed: no surface where the unknown begins
    missed = case_scores(prediction, label, LABELS, [1, 1, 1], ignore_label=255)["a"]
    assert missed["recall"] == pytest.approx(3 / 4) and missed["nsd"] > 0


def test_a_volume_of_one_slice_is_scored_as_its_slice() -> None:
    prediction, label = blobs(7, (30, 30)), blobs(8, (30, 30))
    flat = case_scores(prediction, label, LABELS, [1.0, 1.5])
    thick = case_scores(prediction[..., None], label[..., None], LABELS, [1.0, 1.5, 4.0])
    assert {key: thick["a"][key] for key in METRICS} == pytest.approx({key: flat["a"][key] for key in METRICS})


def test_units_are_in_the_names() -> None:
    assert size_metrics(3, [1, 1, 1])[0] == "volume_ml" and size_metrics(3, None)[0] == "volume_voxels"
    assert size_metrics(2, [1, 1])[2] == "area_error_mm2" and size_metrics(2, None)[1] == "reference_area_px"
    for dims, spacing in ((3, [1.0, 1.0, 1.0]), (2, None)):
        scores = case_scores(*two_maps(*[4] * dims), LABELS, spacing)["a"]
        assert list(units(dims, spacing)) == list(scores)
    assert units(2, None)["hd95"] == "px" and units(3, [1, 1, 1])["volume_error_ml"] == "ml"


def test_takes_tensors_and_unknown_values() -> None:
    prediction, label = blobs(1, (9, 9)), blobs(2, (9, 9))
    expected = case_scores(prediction, label, LABELS)
    floats = torch.from_numpy(prediction).float(), torch.from_numpy(label).float()
    assert case_scores(*floats, LABELS) == expected
    prediction[prediction == 0] = 77
    assert case_scores(prediction, label, LABELS) == expected


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        case_scores(np.zeros((4, 4)), np.zeros((4, 5)), LABELS)
    with pytest.raises(ValueError, match="3 spacings for 2 axes"):
        case_scores(*two_maps(4, 4), LABELS, [1, 1, 1])


maps = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).choice([0, 0, 1, 5], (6, 5, 4)))


@settings(max_examples=40, deadline=None)
@given(maps, maps)
def test_symmetry_and_bounds(first: np.ndarray, second: np.ndarray) -> None:
    there, back = (case_scores(*pair, LABELS, [1.0, 2.0, 0.5]) for pair in ((first, second), (second, first)))
    for name in LABELS:
        for key in ("dice", "iou", "nsd", "hd95", "assd"):
            assert there[name][key] == pytest.approx(back[name][key], nan_ok=True)
        assert there[name]["precision"] == pytest.approx(back[name]["recall"], nan_ok=True)
        assert there[name]["volume_error_ml"] == pytest.approx(-back[name]["volume_error_ml"])
        assert there[name]["iou"] <= there[name]["dice"] <= 1
    itself = case_scores(first, first, LABELS, [1.0, 2.0, 0.5])["a"]
    assert itself["dice"] == itself["nsd"] == 1 and itself["hd95"] == itself["assd"] == 0


@settings(max_examples=15, deadline=None)
@given(maps, maps, st.permutations([0, 1, 2]))
def test_the_order_of_axes_does_not_matter(first: np.ndarray, second: np.ndarray, axes: list[int]) -> None:
    spacing = [1.0, 2.0, 0.5]
    turned = case_scores(first.transpose(axes), second.transpose(axes), LABELS, [spacing[axis] for axis in axes])
    assert turned["a"] == pytest.approx(case_scores(first, second, LABELS, spacing)["a"], nan_ok=True)
