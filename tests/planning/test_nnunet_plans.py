"""What is taken of an nnU-Net plan: its axis order, schemes and configurations, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fingerprints import nnunet_plan

from scripts.common.errors import UserError
from scripts.planning.nnunet_plans import dataset_name, read_nnunet_plan

CT = {"ct": {"lower": -60.0, "upper": 240.0, "mean": 100.0, "std": 25.0}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plans.json"


@pytest.mark.parametrize("orientation", [None, "LPS", "RAS"])
def test_axes_are_reversed(file: Path, orientation: str | None) -> None:
    plan = read_nnunet_plan(nnunet_plan(file), 3, 3, orientation)
    assert plan.configuration == "3d_fullres" and plan.slice_axis is None
    assert plan.spacing == [0.7, 0.8, 5.0] and plan.patch_size == [192, 250, 20]
    assert plan.batch_size == 3 and plan.normalization == [CT]


def test_sagittal_files(file: Path) -> None:
    # The file's axes are posterior, superior, right: nnU-Net's first axis is the file's last one, left-right.
    plan = read_nnunet_plan(nnunet_plan(file), 3, 3, "PSR")
    assert plan.spacing == [5.0, 0.7, 0.8] and plan.patch_size == [20, 192, 250]


def test_transposed_plan(file: Path) -> None:
    # nnU-Net read z, y, x and put x first: spacing and patch are in the order x, z, y.
    plan = read_nnunet_plan(nnunet_plan(file, transpose_forward=[2, 0, 1]), 3, 3)
    assert plan.spacing == [5.0, 0.7, 0.8] and plan.patch_size == [20, 192, 250]


def test_slices_of_volumes(file: Path) -> None:
    plan = read_nnunet_plan(nnunet_plan(file), 3, 2)
    assert plan.configuration == "2d" and plan.slice_axis == 2
    assert plan.spacing == [0.7, 0.8, 5.0] and plan.patch_size == [448, 510] and plan.batch_size == 12


def test_pictures(file: Path) -> None:
    flat = {"patch_size": [512, 384], "spacing": [1.0, 1.0], "batch_size": 12}
    flat |= {"normalization_schemes": ["RGBTo01Normalization"] * 3, "use_mask_for_norm": [False] * 3}
    plan = read_nnunet_plan(nnunet_plan(file, configurations={"2d": flat}), 2, 2)
    assert plan.spacing is None and plan.slice_axis is None
    assert plan.patch_size == [512, 384] and plan.normalization == ["rgb"] * 3


def test_schemes_and_inheritance(file: Path) -> None:
    full = json.loads(nnunet_plan(file).read_text())["configurations"]["3d_fullres"]
    schemes = ["ZScoreNormalization", "ZScoreNormalization", "NoNormalization"]
    configurations = {
        "base": full,
        "3d_fullres": {
            "inherits_from": "base",
            "normalization_schemes": schemes,
            "use_mask_for_norm": [True, False, False],
        },
    }
    plan = read_nnunet_plan(nnunet_plan(file, configurations=configurations), 3, 3)
    assert plan.normalization == ["zscore_nonzero", "zscore", "none"] and plan.batch_size == 3


def test_configurations_that_inherit_in_a_circle_are_named(file: Path) -> None:
    circle = {"3d_fullres": {"inherits_from": "base"}, "base": {"inherits_from": "3d_fullres"}}
    with pytest.raises(UserError, match="the configurations 3d_fullres, base inherit from each other in a circle"):
        read_nnunet_plan(nnunet_plan(file, configurations=circle), 3, 3)


@pytest.mark.parametrize("configuration", [5, ["x"], {"inherits_from": ["x"]}, {"patch_size": "x", "spacing": 1}])
def test_a_configuration_of_another_type_is_refused(file: Path, configuration: object) -> None:
    with pytest.raises(UserError, match="configuration"):
        read_nnunet_plan(nnunet_plan(file, configurations={"3d_fullres": configuration}), 3, 3)


def test_dataset_name(file: Path) -> None:
    assert dataset_name(nnunet_plan(file)) == "Dataset042_Example"


def test_what_is_wrong(file: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_nnunet_plan(file, 3, 3)
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_nnunet_plan(file, 3, 3)
    file.write_text("[]")
    with pytest.raises(UserError, match="no nnU-Net v2 plan"):
        read_nnunet_plan(file, 3, 3)
    with pytest.raises(UserError, match=r"no configuration 3d_fullres \(only 2d\): try --dimensions 2"):
        read_nnunet_plan(nnunet_plan(file, configurations={"2d": {}}), 3, 3)
    with pytest.raises(UserError, match="3d_fullres is not one of an nnU-Net v2 plan"):
        read_nnunet_plan(nnunet_plan(file, configurations={"3d_fullres": {"patch_size": [1]}}), 3, 3)
    with pytest.raises(UserError, match="dataset_name"):
        dataset_name(nnunet_plan(file, dataset_name=None))


def test_unknown_scheme(file: Path) -> None:
    full = json.loads(nnunet_plan(file).read_text())["configurations"]["3d_fullres"]
    full["normalization_schemes"] = ["MyNormalization"]
    with pytest.raises(UserError, match="unknown normalization scheme MyNormalization"):
        read_nnunet_plan(nnunet_plan(file, configurations={"3d_fullres": full}), 3, 3)
