"""From a data set's fingerprint to a training plan, with the reason of every choice (nnU-Net's rules).

Everything here is a pure function: the fingerprint, the memory table and what the user asked for go in, the task
overlay that training, evaluation and inference read comes out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..common.errors import UserError, first_few
from ..common.run_folder import RunFolder
from ..data.layouts import NUM_FOLDS
from ..images.files import TIFF_SUFFIXES
from ..images.geometry import times
from ..images.sides import left_right_axis, one_sided_labels, sided_labels
from .image_settings import (
    choose_dimensions,
    choose_normalization,
    choose_slice_axis,
    choose_spacing,
    describe_orientation,
)
from .machine import choose_workers, describe_cpu_time
from .network_settings import choose_network
from .nnunet_plans import NnUnetPlan, read_nnunet_plan
from .patients import same_person
from .plan import Plan, Row, Wishes
from .spacing import resampled_shapes

__all__ = ["make_plan"]

OVERLAP = 0.5
CROP_KEEPS = 0.75  # a nonzero crop that keeps less is worth it
VALIDATION_SHARE, MOST_EPOCHS_BETWEEN = 0.25, 10
COLUMNS_OF_TIFF = 2  # axis of a stack
GPU_LENGTH, CPU_LENGTH = (100, 250), (20, 50)  # epochs, iterations an epoch
# The overlay's keys, as a person would want to read them.
KEYS = (
    "name dataset_dir spatial_dims slice_axis rows_first in_channels labels ignore_label regions spacing normalization "
    "crop_nonzero patch_size strides batch_size mirror_axes overlap init_filters conv_stages "
    "recompute_activations epochs iterations_per_epoch val_interval weights"
).split()


def make_plan(
    fingerprint: Mapping[str, Any],
    name: str,
    dataset_dir: str,
    table: Mapping[str, Any],
    wishes: Wishes,
    patients: Mapping[str, str] | None = None,
) -> Plan:
    """Choose every setting.

    Args:
        fingerprint: see fingerprint.py.
        name, dataset_dir: go into the overlay.
        table: memory.json.
        wishes: what is prescribed.
        patients: case -> patient, where several cases are one person's.

    Raises:
        UserError: the wishes cannot be met: 3D for pictures, too little memory, an unsuitable nnU-Net plan.
    """
    plan = Plan({"name": name, "dataset_dir": dataset_dir})
    _describe(plan, fingerprint)
    dims = choose_dimensions(plan, fingerprint, wishes)
    imported = _imported(fingerprint, dims, wishes)
    choose_slice_axis(plan, fingerprint, imported)
    plan.overlay["in_channels"] = len(fingerprint["channels"])
    for key in ("labels", "ignore_label", "regions"):
        plan.overlay[key] = fingerprint[key]
    describe_orientation(plan, fingerprint)
    cropped = fingerprint["cropped_fraction"] < CROP_KEEPS
    choose_spacing(plan, fingerprint, cropped, imported)
    choose_normalization(plan, fingerprint, cropped, imported)
    share = f"{fingerprint['cropped_fraction']:.0%} of a case remain around its nonzero voxels"
    plan.set("crop_nonzero", cropped, f"{share}; worth it below {CROP_KEEPS:.0%}")
    shapes = resampled_shapes(fingerprint["per_case"], plan.overlay["spacing"], cropped)
    choose_network(plan, shapes, table, wishes, imported)
    _mirroring(plan, dims, COLUMNS_OF_TIFF if fingerprint.get("file_ending") in TIFF_SUFFIXES else 0)
    plan.set("overlap", OVERLAP, "of neighbouring windows in inference, nnU-Net's")
    _length(plan, wishes)
    _folds(plan, fingerprint, patients or {})
    windows = _windows(plan, shapes)
    _validation(plan, windows)
    describe_cpu_time(plan, windows)
    choose_workers(plan, fingerprint, shapes, wishes)
    weights = RunFolder(f"output/{name}/fold_{plan.fold}").best
    plan.set("weights", weights.as_posix(), "what inference takes, until --checkpoint names others")
    plan.overlay = {key: plan.overlay[key] for key in KEYS if key in plan.overlay}
    return plan


def _describe(plan: Plan, fingerprint: Mapping[str, Any]) -> None:
    median = times(np.median([case["shape"] for case in fingerprint["per_case"]], axis=0).astype(int))
    channels = ", ".join(fingerprint["channels"])
    kind = "pictures" if fingerprint["image_dims"] == 2 else "volumes"
    labels = ", ".join(f"{label} = {value}" for label, value in fingerprint["labels"].items())
    ignored = fingerprint["ignore_label"]
    plan.rows.append(Row("cases", str(fingerprint["cases"]), f"{kind}, median size {median}; channels: {channels}"))
    unlabelled = "" if ignored is None else f"; {ignored} marks voxels that nobody labelled"
    plan.rows.append(Row("labels", str(len(fingerprint["labels"])), labels + unlabelled))


def _imported(fingerprint: Mapping[str, Any], dims: int, wishes: Wishes) -> NnUnetPlan | None:
    if wishes.nnunet_plan is None:
        return None
    orientations = Counter(case.get("orientation") for case in fingerprint["per_case"])
    imported = read_nnunet_plan(wishes.nnunet_plan, fingerprint["image_dims"], dims, orientations.most_common(1)[0][0])
    if len(imported.normalization) != len(fingerprint["channels"]):
        raise UserError(
            f"{wishes.nnunet_plan} is for {len(imported.normalization)} channel(s), the data set has "
            f"{len(fingerprint['channels'])}: is it the plan of another data set?"
        )
    return imported


def _mirroring(plan: Plan, dims: int, volume_axis: int) -> None:
    """All axes, but left-right where labels have sides: a mirrored left kidney is a right one."""
    sided = sided_labels(plan.overlay["labels"], plan.overlay["regions"])
    axis = left_right_axis(dims, plan.overlay["slice_axis"], volume_axis)
    named = first_few(sided, 4)
    reason = "all axes, in training and TTA; take out those that change the meaning"
    if sided and axis is not None:
        where = "the width" if plan.overlay["slice_axis"] is None and dims == 2 else "left-right"
        reason = f"in training and TTA; not axis {axis}, {where}: labels of both sides ({named})"
    elif sided:
        plan.warnings.append(
            f"labels of both sides ({named}), but a network that sees one slice from left to right at a time cannot "
            "tell them apart: leave --dimensions 2 out"
        )
    elif (one_sided := one_sided_labels(plan.overlay["labels"])) and axis is not None:
        reason = f"all axes, in training and TTA; take out {axis} if the other side of {one_sided[0]} looks alike"
    plan.set("mirror_axes", [other for other in range(dims) if not sided or other != axis], reason)


def _length(plan: Plan, wishes: Wishes) -> None:
    on_cpu = wishes.gpu_gib is None
    epochs, iterations = CPU_LENGTH if on_cpu else GPU_LENGTH
    reason = "short, for a CPU; more is better" if on_cpu else "a tenth of nnU-Net's 1000; more is better"
    plan.set("epochs", epochs, reason)
    plan.set("iterations_per_epoch", iterations, "short, for a CPU" if on_cpu else "nnU-Net's")


def _windows(plan: Plan, shapes: np.ndarray) -> np.ndarray:
    """How many windows the sliding window takes for each case."""
    patch = np.asarray(plan.overlay["patch_size"])
    sizes = np.delete(shapes, plan.overlay["slice_axis"], axis=1) if plan.overlay["slice_axis"] is not None else shapes
    steps = np.ceil(np.maximum(sizes / patch - 1, 0) / (1 - OVERLAP)) + 1
    return steps.prod(axis=1) * (1 if plan.overlay["slice_axis"] is None else shapes[:, plan.overlay["slice_axis"]])


def _validation(plan: Plan, windows: np.ndarray) -> None:
    """Validate so seldom that it takes at most VALIDATION_SHARE of training's time: a patch's forward pass is about a
    third of its train step, and whole cases are predicted; a fifth of them, or with --fold all every one.
    """
    every = float(np.sum(windows))
    held_out = every if plan.fold == "all" else every / NUM_FOLDS
    interval, of_all = _interval(plan, held_out), _interval(plan, every)
    with_all = f"; with --fold all {every:,.0f}: then --val_interval {of_all}" if of_all != interval else ""
    plan.set("val_interval", interval, f"epochs; a validation predicts about {held_out:,.0f} patches{with_all}")


def _interval(plan: Plan, windows: float) -> int:
    allowed = VALIDATION_SHARE * 3 * plan.overlay["iterations_per_epoch"] * plan.overlay["batch_size"]
    needed, epochs = min(max(1, math.ceil(windows / allowed)), MOST_EPOCHS_BETWEEN), plan.overlay["epochs"]
    return next(count for count in range(needed, epochs + 1) if epochs % count == 0)  # the last epoch counts


def _folds(plan: Plan, fingerprint: Mapping[str, Any], patients: Mapping[str, str]) -> None:
    alike = [] if patients else same_person([case["name"] for case in fingerprint["per_case"]])
    if alike:
        plan.warnings.append(
            f"several images may be one patient's ({', '.join(alike)}, …): name patients in dataset.json "
            '("patients": {"case": "patient"}), or folds hold out images of patients that they train on'
        )
    groups = len({patients.get(case["name"], case["name"]) for case in fingerprint["per_case"]})
    who = "patients" if patients else "cases"
    if groups < NUM_FOLDS:
        plan.fold = "all"
        plan.rows.append(Row("fold", "all", f"{groups} {who} are too few for {NUM_FOLDS} folds: none is held out"))
    else:
        plan.rows.append(
            Row("fold", "0", f"of {NUM_FOLDS} over {groups} {who}; train with --fold 0 to {NUM_FOLDS - 1}")
        )
