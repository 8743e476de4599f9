"""The fingerprint against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from generators import Case, DataSet, hard_case, write_msd, write_nnunet

from scripts.planning.fingerprint import fingerprint
from scripts.planning.integrity import check_dataset


def facts(root: Path) -> dict:
    report = check_dataset(root, workers=0, progress=False)
    assert report.errors == []
    return json.loads(json.dumps(fingerprint(report)))


def two_blocks(seed: int) -> Case:
    """A volume in P, I, R axes of 4 x 2 x 1 mm, zero outside a box; "a" in two pieces of 8 voxels, "b" in one of 4."""
    image = np.zeros((1, 12, 10, 8), np.int16)
    image[0, 2:11, 1:9, 3:7] = np.random.default_rng(seed).integers(1, 20, (9, 8, 4))
    label = np.zeros((12, 10, 8), np.uint8)
    label[2:4, 1:3, 3:5] = label[6:8, 5:7, 3:5] = 1
    label[9, 7:9, 5:7] = 4
    image[0][label == 1], image[0][label == 4] = 100, 200
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -4, -2, 1, 1
    return Case(f"case_{seed}", image, label, affine)


def test_figures_of_a_volume(tmp_path: Path) -> None:
    found = facts(write_msd(tmp_path, DataSet("Blocks", [two_blocks(i) for i in range(3)], {"a": 1, "b": 4})))
    case = found["per_case"][0]
    assert case["orientation"] == "PIR" and case["dtype"] == "int16"
    assert case["shape"] == [8, 12, 10] and case["cropped_shape"] == [4, 9, 8] and case["spacing"] == [1, 4, 2]
    assert case["voxels"] == {"a": 16, "b": 4} and case["components"] == {"a": 2, "b": 1}
    assert (case["intensity"][0]["min"], case["intensity"][0]["max"]) == (1, 200)
    assert found["median_shape"] == [4, 9, 8] and found["median_spacing"] == [1, 4, 2]
    assert found["cropped_fraction"] == pytest.approx(4 * 9 * 8 / (8 * 12 * 10))
    assert found["classes"]["a"] == {
        "cases": 3,
        "voxels": 48,
        "share_of_foreground": 0.8,
        "volume_ml_mean": pytest.approx(16 * 8 / 1000),
        "components_mean": 2,
    }
    (intensity,) = found["intensity"]
    assert intensity["mean"] == pytest.approx(120, abs=2) and intensity["std"] == pytest.approx(40, abs=2)
    assert (intensity["min"], intensity["median"], intensity["p99_5"]) == (100, 100, 200)


def test_layout_and_format_do_not_change_the_figures(tmp_path: Path) -> None:
    data = hard_case("four_channels", 2)
    one, other = facts(write_msd(tmp_path / "m", data)), facts(write_nnunet(tmp_path / "n", data, ".nrrd"))
    assert one["intensity"] == other["intensity"] and one["classes"] == other["classes"]
    assert one["per_case"][1]["shape"] == other["per_case"][1]["shape"]
    assert one["channels"] == ["FLAIR", "T1w", "T1gd", "T2w"] and len(one["per_case"][0]["intensity"]) == 4


def test_pictures_and_flat_volumes(tmp_path: Path) -> None:
    photos = facts(write_nnunet(tmp_path / "photos", hard_case("rgb_pictures", 3)))
    assert photos["image_dims"] == 2 and photos["median_spacing"] is None
    assert photos["per_case"][1]["shape"] == [43, 54] and photos["per_case"][1]["orientation"] is None
    assert photos["classes"]["lesion"]["volume_ml_mean"] is None
    flat = facts(write_msd(tmp_path / "flat", hard_case("flat_volumes", 3)))
    assert flat["per_case"][1]["shape"] == [35, 30] and flat["median_spacing"] == pytest.approx([0.5, 0.5])


def test_the_ignore_label_is_no_foreground(tmp_path: Path) -> None:
    data = hard_case("partly_labelled", 2)
    for case in data.cases:
        case.image[0][case.label == 3] = 1e6
    found = facts(write_nnunet(tmp_path, data))
    assert found["ignore_label"] == 3 and found["intensity"][0]["max"] < 1e4


def test_a_class_that_no_case_has(tmp_path: Path) -> None:
    data = hard_case("tiny", 2)
    data.labels["ghost"] = 9
    assert facts(write_msd(tmp_path, data))["classes"]["ghost"] == {
        "cases": 0,
        "voxels": 0,
        "share_of_foreground": 0.0,
        "volume_ml_mean": None,
        "components_mean": 0.0,
    }
