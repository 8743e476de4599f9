"""Plans from fingerprints: every rule, its reason, and the overlay that comes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fingerprints import STATISTICS, fingerprint, nnunet_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.common.errors import UserError
from scripts.networks import LightMUNet
from scripts.planning.make_plan import make_plan
from scripts.planning.memory import load_memory_table, step_memory
from scripts.planning.patch import total_stride
from scripts.planning.plan import Plan, Wishes

KEYS = (
    "name dataset_dir spatial_dims slice_axis in_channels labels ignore_label regions spacing normalization "
    "crop_nonzero patch_size strides batch_size mirror_axes overlap init_filters conv_stages "
    "recompute_activations epochs iterations_per_epoch val_interval weights"
).split()
TABLE = {
    "classes": 3,
    "bytes_per_class_and_voxel": 24,
    "fits": [
        {"spatial_dims": 2, "init_filters": 32, "mode": "amp", "base_gib": 0.075, "bytes_per_voxel": 3500},
        {"spatial_dims": 3, "init_filters": 32, "mode": "amp", "base_gib": 0.075, "bytes_per_voxel": 2141},
    ],
}


def plan_of(facts: dict[str, Any], gpu_gib: float | None = 16.0, **options: Any) -> Plan:
    patients = options.pop("patients", None)
    return make_plan(facts, "task", "/data/task", TABLE, Wishes(gpu_gib, **options), patients)


def reason(plan: Plan, setting: str) -> str:
    return next(f"{row.value}: {row.reason}" for row in plan.rows if row.setting == setting)


def test_overlay_holds_what_the_contract_names() -> None:
    plan = plan_of(fingerprint(ignore_label=9, regions={"all": ["organ"]}))
    assert list(plan.overlay) == KEYS
    assert json.loads(json.dumps(plan.overlay, allow_nan=False)) == plan.overlay
    assert plan.overlay["ignore_label"] == 9 and plan.overlay["regions"] == {"all": ["organ"]}
    assert plan.overlay["name"] == "task" and plan.overlay["dataset_dir"] == "/data/task"
    said = {row.setting for row in plan.rows}
    assert {key for key in KEYS if key not in said} == {
        "name", "dataset_dir", "slice_axis", "in_channels", "ignore_label", "regions", "normalization"
    }  # fmt: skip
    assert all(row.reason and row.value for row in plan.rows)


# --- dimensions


@pytest.mark.parametrize(
    ("shape", "spacing", "asked", "dims", "slice_axis"),
    [
        ((64, 64, 32), (1.0, 1.0, 1.0), None, 3, None),
        ((512, 384), None, None, 2, None),
        ((512, 384, 1), (1.0, 1.0, 8.0), None, 2, 2),
        ((1, 512, 384), (1.0, 1.0, 1.0), 2, 2, 0),
        ((64, 64, 32), (1.0, 4.0, 1.0), 2, 2, 1),
        ((64, 64, 32), (1.0, 1.0, 1.0), 2, 2, 2),
        ((64, 64, 32), None, 2, 2, 2),
    ],
)
def test_dimensions(shape: tuple, spacing: tuple | None, asked: int | None, dims: int, slice_axis: int | None) -> None:
    overlay = plan_of(fingerprint(shape, spacing), dimensions=asked).overlay
    assert overlay["spatial_dims"] == dims and overlay["slice_axis"] == slice_axis
    assert len(overlay["patch_size"]) == dims and overlay["mirror_axes"] == list(range(dims))
    if overlay["spacing"] is not None:
        assert len(overlay["spacing"]) == len(shape)
        assert [axis for axis, mm in enumerate(overlay["spacing"]) if mm is None] == (
            [] if slice_axis is None else [slice_axis]
        )


@pytest.mark.parametrize("shape", [(512, 512), (512, 512, 1)])
def test_no_three_dimensions_where_there_are_two(shape: tuple) -> None:
    with pytest.raises(UserError, match=r"--dimensions 3: the data set example holds (pictures|volumes of a single)"):
        plan_of(fingerprint(shape), dimensions=3)


# --- spacing and intensities


def test_spacing_of_thick_slices() -> None:
    facts = fingerprint((512, 512, 40), (0.7, 0.7, 5.0), channels=["CT"])
    facts["per_case"][0] = facts["per_case"][0] | {"spacing": [0.7, 0.7, 3.0]}
    facts["per_case"][1] = facts["per_case"][1] | {"spacing": [0.7, 0.7, 3.0]}
    plan = plan_of(facts)
    assert plan.overlay["spacing"] == [0.7, 0.7, 3.0] and "10th percentile" in reason(plan, "spacing")
    assert plan.overlay["strides"][0] == [2, 2, 1]


def test_spacing_is_null_where_it_is_unknown() -> None:
    facts = fingerprint()
    facts["per_case"][3] = facts["per_case"][3] | {"spacing": None}
    plan = plan_of(facts)
    assert plan.overlay["spacing"] is None and "not every case" in reason(plan, "spacing")
    assert plan_of(fingerprint((64, 64), None)).overlay["spacing"] is None


CT = {"ct": {"lower": -60.0, "upper": 240.0, "mean": 100.0, "std": 25.0}}


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (["CT"], [CT]),
        (["ct", "noNorm"], [CT, "none"]),
        (["MRI"], ["zscore"]),
        (["X-ray"], ["zscore"]),
        (["CTA mask", "None"], ["zscore", "none"]),
        (["rgb_to_0_1"], ["rgb"]),
        (["T1", "T2", "FLAIR"], ["zscore"] * 3),
    ],
)
def test_normalization_by_name(channels: list[str], expected: list[Any]) -> None:
    assert plan_of(fingerprint(channels=channels)).overlay["normalization"] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, ["rgb"] * 3), ({"dtype": "uint16"}, ["zscore"] * 3)],
)
def test_colour_pictures_of_8_bits(changes: dict[str, Any], expected: list[str]) -> None:
    facts = fingerprint((64, 64), None, channels=["R", "G", "B"])
    facts["per_case"] = [case | changes for case in facts["per_case"]]
    assert plan_of(facts).overlay["normalization"] == expected


def test_a_ct_whose_foreground_has_one_intensity_is_z_scored() -> None:
    flat = STATISTICS | {"p00_5": 7.0, "p99_5": 7.0, "std": 0.0}
    plan = plan_of(fingerprint(channels=["CT"], intensity=[flat]))
    assert plan.overlay["normalization"] == ["zscore"] and "one intensity" in reason(plan, "normalization of CT")


def test_grey_pictures_are_z_scored() -> None:
    assert plan_of(fingerprint((64, 64), None)).overlay["normalization"] == ["zscore"]


@pytest.mark.parametrize(("kept", "cropped"), [(0.74, True), (0.75, False), (1.0, False)])
def test_nonzero_crop(kept: float, cropped: bool) -> None:
    facts = fingerprint((240, 240, 155), channels=["T1", "CT"], cropped_fraction=kept)
    facts["per_case"] = [case | {"cropped_shape": [140, 170, 140]} for case in facts["per_case"]]
    overlay = plan_of(facts, gpu_gib=80.0).overlay
    assert overlay["crop_nonzero"] is cropped
    assert overlay["normalization"] == ["zscore_nonzero" if cropped else "zscore", CT]
    assert overlay["patch_size"] == ([144, 176, 144] if cropped else [240, 240, 160])


# --- network and batch


def test_hippocampus_as_nnunet_plans_it() -> None:
    plan = plan_of(fingerprint((35, 50, 36), (1.0, 1.0, 1.0), cases=260))
    assert plan.overlay["patch_size"] == [40, 56, 40] and plan.overlay["batch_size"] == 9
    assert plan.overlay["spacing"] == [1, 1, 1] and plan.overlay["strides"] is None
    assert "5%" in reason(plan, "batch_size")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(16, 400), min_size=3, max_size=3),
    st.lists(st.floats(0.3, 8), min_size=3, max_size=3),
    st.sampled_from([4.0, 8.0, 24.0, 80.0]),
    st.sampled_from([None, 2, 3]),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(1, 500),
)
def test_every_plan_fits(
    shape: list[int], spacing: list[float], gpu_gib: float, dims: int | None, filters: int, cases: int
) -> None:
    facts = fingerprint(shape, spacing, cases)
    table = load_memory_table()
    plan = make_plan(facts, "task", "/data", table, Wishes(gpu_gib, filters, dims))
    overlay = plan.overlay
    strides = overlay["strides"] or [[2] * overlay["spatial_dims"]] * 3
    memory = step_memory(table, overlay["spatial_dims"], filters, "amp", 2)
    assert memory.gib(overlay["batch_size"] * math.prod(overlay["patch_size"]), strides) <= gpu_gib
    assert not any(size % step for size, step in zip(overlay["patch_size"], total_stride(strides), strict=True))
    assert 2 <= overlay["batch_size"] <= 32
    assert not plan.warnings


def test_more_memory_means_larger_patches() -> None:
    facts = fingerprint((512, 512, 200), (0.8, 0.8, 1.5), 50, ["CT"])
    voxels = [math.prod(plan_of(facts, gib).overlay["patch_size"]) for gib in (4, 8, 16, 48)]
    assert voxels == sorted(set(voxels))
    many = fingerprint((512, 512, 200), (0.8, 0.8, 1.5), 50, ["CT"], labels={f"o{i}": i for i in range(1, 118)})
    assert math.prod(plan_of(many, 16).overlay["patch_size"]) < voxels[2]


def test_small_data_sets_get_small_batches() -> None:
    plan = plan_of(fingerprint((512, 512), None, cases=6))
    assert plan.overlay["batch_size"] == 2 and "would be fewer" in reason(plan, "batch_size")


def test_too_little_memory() -> None:
    with pytest.raises(UserError, match=r"0.1 GiB hold no train step of this network.*--init_filters"):
        plan_of(fingerprint(), 0.1, init_filters=64)


@pytest.mark.parametrize(
    ("shape", "spacing", "most"), [((300, 400, 200), (1.0, 1.0, 1.0), 64**3), ((2000, 3000), None, 256**2)]
)
def test_a_plan_for_a_cpu(shape: tuple, spacing: tuple | None, most: int) -> None:
    plan = plan_of(fingerprint(shape, spacing), None)
    overlay = plan.overlay
    assert most / 2 < math.prod(overlay["patch_size"]) <= most and overlay["batch_size"] == 2
    assert overlay["init_filters"] == 16
    assert overlay["epochs"] * overlay["iterations_per_epoch"] == 1000
    assert "CPU" in reason(plan, "epochs") and "CPU" in reason(plan, "patch_size")


# --- mirroring and folds


@pytest.mark.parametrize(
    ("shape", "spacing", "dims", "axes"),
    [
        ((64, 64, 32), (1.0, 1.0, 1.0), None, [1, 2]),
        ((64, 64, 32), (1.0, 1.0, 4.0), 2, [1]),
        ((64, 64, 32), (1.0, 4.0, 1.0), 2, [1]),
        ((512, 384), None, None, [0]),
    ],
)
def test_labels_with_sides_are_not_mirrored(shape: tuple, spacing: tuple, dims: int | None, axes: list[int]) -> None:
    sides = {"LeftParotid": 1, "RightParotid": 2}
    plan = plan_of(fingerprint(shape, spacing, labels=sides), dimensions=dims)
    assert plan.overlay["mirror_axes"] == axes and "LeftParotid, RightParotid" in reason(plan, "mirror_axes")
    parts = {"label_1": 1, "label_2": 2}
    regions = {"left lung": ["label_1"], "right lung": ["label_2"]}
    plan = plan_of(fingerprint(shape, spacing, labels=parts, regions=regions), dimensions=dims)
    assert plan.overlay["mirror_axes"] == axes and not plan.warnings
    for alone in ("left atrium", "L5", "cleft"):
        plan = plan_of(fingerprint(shape, spacing, labels={alone: 1}), dimensions=dims)
        assert plan.overlay["mirror_axes"] == list(range(len(axes) + 1)) and not plan.warnings


def test_sides_in_slices_from_left_to_right_and_in_tiff_stacks(tmp_path: Path) -> None:
    sides = {"KidneyL": 1, "KidneyR": 2}
    sagittal = plan_of(fingerprint(spacing=(4.0, 1.0, 1.0), labels=sides), dimensions=2)
    assert sagittal.overlay["mirror_axes"] == [0, 1] and "cannot tell them apart" in sagittal.warnings[0]
    assert plan_of(fingerprint(labels=sides, file_ending=".tif")).overlay["mirror_axes"] == [0, 1]
    imported = plan_of(fingerprint(labels=sides), nnunet_plan=nnunet_plan(tmp_path / "plans.json"))
    assert imported.overlay["mirror_axes"] == [1, 2]


def test_images_that_may_be_one_patients() -> None:
    facts = fingerprint(cases=10)
    facts["per_case"] = [case | {"name": f"p{i // 2:02d}_{'ab'[i % 2]}"} for i, case in enumerate(facts["per_case"])]
    (warning,) = plan_of(facts).warnings
    assert "p00_a, p00_b" in warning and '"patients"' in warning
    assert not plan_of(facts, patients={"p00_a": "p00", "p00_b": "p00"}).warnings


def test_validation_of_all_cases() -> None:
    """Without held-out cases, every case is predicted: five times as many."""
    few, five = (plan_of(fingerprint((256, 256, 200), cases=cases)) for cases in (4, 20))
    patches = [int(reason(plan, "val_interval").split("about ")[1].split()[0]) for plan in (few, five)]
    assert few.fold == "all" and patches[0] == patches[1]
    many = plan_of(fingerprint((256, 256, 200), cases=100))
    longer = min(10, 5 * many.overlay["val_interval"])
    assert f"then --val_interval {longer}" in reason(many, "val_interval")


def test_folds() -> None:
    assert plan_of(fingerprint(cases=5)).fold == 0
    few = plan_of(fingerprint(cases=4))
    assert few.fold == "all" and "too few" in reason(few, "fold")
    patients = {f"case_{i}": f"patient_{i // 3}" for i in range(9)}
    grouped = plan_of(fingerprint(cases=9), patients=patients)
    assert grouped.fold == "all" and "3 patients" in reason(grouped, "fold")


# --- from nnU-Net


def test_from_nnunet(tmp_path: Path) -> None:
    file = nnunet_plan(tmp_path / "plans.json")
    plan = plan_of(fingerprint((512, 400, 60), (1.0, 1.0, 1.0), channels=["MRI"]), nnunet_plan=file)
    overlay = plan.overlay
    assert overlay["spacing"] == [0.7, 0.8, 5.0] and overlay["normalization"] == [CT]
    assert overlay["patch_size"] == [192, 256, 20] and "192 x 250 x 20 rounded up" in reason(plan, "patch_size")
    assert overlay["strides"] == [[2, 2, 1], [2, 2, 1], [2, 2, 2]] and overlay["batch_size"] == 3
    assert all("nnU-Net plan" in reason(plan, key) for key in ("spacing", "normalization of MRI", "batch_size"))


def test_from_nnunet_through_slices(tmp_path: Path) -> None:
    file = nnunet_plan(tmp_path / "plans.json")
    overlay = plan_of(fingerprint(), 40.0, dimensions=2, nnunet_plan=file).overlay
    assert overlay["slice_axis"] == 2 and overlay["spacing"] == [0.7, 0.8, None]
    assert overlay["patch_size"] == [448, 512] and overlay["batch_size"] == 12


def test_from_nnunet_with_less_memory(tmp_path: Path) -> None:
    file = nnunet_plan(tmp_path / "plans.json")
    plan = plan_of(fingerprint(), 6.0, nnunet_plan=file)
    assert plan.overlay["batch_size"] == 2 and "memory" in reason(plan, "batch_size") and not plan.warnings
    tight = plan_of(fingerprint(), 2.0, nnunet_plan=file)
    assert tight.overlay["batch_size"] == 1 and "more than the 2 there are" in tight.warnings[0]


def test_from_a_plan_of_other_channels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"for 1 channel\(s\), the data set has 2"):
        plan_of(fingerprint(channels=["T1", "T2"]), nnunet_plan=nnunet_plan(tmp_path / "plans.json"))


@pytest.mark.parametrize(("shape", "spacing"), [((20, 24, 18), (1, 1, 1)), ((33, 40, 9), (1, 1, 5)), ((5, 30), None)])
def test_the_network_takes_the_plan(shape: tuple, spacing: tuple | None) -> None:
    overlay = plan_of(fingerprint(shape, spacing)).overlay
    network = LightMUNet(overlay["spatial_dims"], 1, 2, init_filters=8, strides=overlay["strides"])
    image = torch.zeros(1, 1, *overlay["patch_size"])
    with torch.no_grad():
        assert network(image).shape == (1, 2, *overlay["patch_size"])


def test_validation_is_seldom_where_cases_are_large() -> None:
    small = plan_of(fingerprint(shape=(40, 56, 40), cases=20)).overlay
    large = plan_of(fingerprint(shape=(512, 512, 400), cases=100)).overlay
    assert small["val_interval"] == 1 and 1 < large["val_interval"] <= 10
    assert large["epochs"] % large["val_interval"] == 0, "the last epoch is validated"
