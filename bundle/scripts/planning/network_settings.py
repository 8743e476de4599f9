"""What a plan says of the network and its batches: width, patch, strides, batch size; all bound by memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..images.geometry import times
from .memory import StepMemory, step_memory
from .nnunet_plans import NnUnetPlan
from .patch import Patch, choose_patch, fit_to_strides, total_stride
from .plan import Plan, Row, Wishes

__all__ = ["CONV_STAGES", "choose_network"]

MODE, MODE_KEPT = "amp", "amp_kept"  # train.json's default on a GPU, with and without recompute_activations
SMALLEST_BATCH, LARGEST_BATCH = 2, 32
LARGEST_BATCH_SHARE = 0.05  # of the data set's voxels
GPU_FILTERS, CPU_FILTERS = 32, 16
CONV_STAGES = 3  # of four: benchmarks/NOTES.md has the measurement that chose it
CPU_PATCH_VOXELS = {2: 256**2, 3: 64**3}


def choose_network(
    plan: Plan,
    shapes: np.ndarray,
    table: Mapping[str, Any],
    wishes: Wishes,
    imported: NnUnetPlan | None,
) -> None:
    """Width, patch, strides and batch, all of which the memory binds.

    Args:
        plan: with the settings of the images.
        shapes: size of every case after resampling, (cases, image axes).
        table: memory.json.
        wishes: what is prescribed.
        imported: an nnU-Net plan whose patch and batch are taken.

    Raises:
        UserError: memory does not hold even the smallest patch.
    """
    dims, axis, spacing = (plan.overlay[key] for key in ("spatial_dims", "slice_axis", "spacing"))
    on_cpu = wishes.gpu_gib is None
    filters = wishes.init_filters or (CPU_FILTERS if on_cpu else GPU_FILTERS)
    chosen = "for a CPU, half the paper's" if on_cpu else "the paper's"
    plan.set("init_filters", filters, "asked for" if wishes.init_filters else chosen)
    plan.set("conv_stages", CONV_STAGES, "convolutions in the finest stages, Mamba below; 0 is the paper's network")

    in_plane = [a for a in range(shapes.shape[1]) if a != axis]
    spacing = [spacing[a] for a in in_plane] if spacing else None
    classes = len(plan.overlay["labels"]) + 1
    memory = step_memory(table, dims, filters, MODE, classes)
    if imported is not None:
        patch, reason = _imported_patch(imported, spacing)
    else:
        patch, reason = _patch(np.median(shapes[:, in_plane], axis=0), spacing, memory, wishes.gpu_gib)
    plan.set("patch_size", patch.size, reason, times(patch.size))
    _strides(plan, patch)
    _batch(plan, patch, shapes.prod(axis=1).sum(), memory, wishes.gpu_gib, imported)
    _memory_row(plan, patch, memory, wishes.gpu_gib)
    _recomputation(plan, patch, step_memory(table, dims, filters, MODE_KEPT, classes), wishes.gpu_gib)


def _imported_patch(imported: NnUnetPlan, spacing: Sequence[float] | None) -> tuple[Patch, str]:
    patch = fit_to_strides(imported.patch_size, spacing)
    changed = "" if patch.size == imported.patch_size else f", {times(imported.patch_size)} rounded up"
    return patch, f"from the nnU-Net plan{changed}"


def _patch(
    median: np.ndarray, spacing: Sequence[float] | None, memory: StepMemory, gpu_gib: float | None
) -> tuple[Patch, str]:
    fits, limit = _limit(memory, gpu_gib)
    patch = choose_patch(median, spacing, fits)
    if patch is None:
        raise UserError(
            f"{gpu_gib:g} GiB hold no train step of this network: choose a narrower one with --init_filters, or plan "
            "for a CPU with --gpu_memory_gb 0"
        )
    if any(size < whole for size, whole in zip(patch.size, median, strict=True)):
        return patch, f"of the median image, {times(median)}, {limit}"
    rounded = "" if patch.size == median.tolist() else f", {times(median)}, rounded up to the strides"
    return patch, f"the whole median image{rounded}"


def _limit(memory: StepMemory, gpu_gib: float | None) -> tuple[Callable[[Patch], bool], str]:
    """Whether a patch fits, and what limits it, in words."""
    if gpu_gib is None:
        most = CPU_PATCH_VOXELS[memory.spatial_dims]
        return lambda patch: patch.voxels <= most, f"at most {most:,} voxels on a CPU"
    return (
        lambda patch: memory.gib(SMALLEST_BATCH * patch.voxels, patch.strides) <= gpu_gib,
        f"so large that a batch of {SMALLEST_BATCH} fits in {gpu_gib:.4g} GiB",
    )


def _strides(plan: Plan, patch: Patch) -> None:
    if all(step == 2 for stride in patch.strides for step in stride):
        plan.set("strides", None, "every axis is pooled three times, as in the paper", "2 everywhere")
        return
    factors = times(total_stride(patch.strides))
    shown = ", ".join(times(stride) for stride in patch.strides)
    reason = f"coarse or short axes are pooled later or not at all; {factors} in all"
    plan.set("strides", patch.strides, reason, shown)


def _batch(
    plan: Plan, patch: Patch, voxels: float, memory: StepMemory, gpu_gib: float | None, imported: NnUnetPlan | None
) -> None:
    share = int(LARGEST_BATCH_SHARE * voxels / patch.voxels)
    most = {f"{LARGEST_BATCH_SHARE:.0%} of the data set's voxels": share, "no more is useful": LARGEST_BATCH}
    if imported is not None:
        most = {"from the nnU-Net plan": imported.batch_size}
    elif gpu_gib is None:
        most = {"small, for a CPU": SMALLEST_BATCH}
    if gpu_gib is not None:
        most["what memory holds"] = _largest_batch(patch, memory, gpu_gib)
    reason, batch = min(most.items(), key=lambda item: item[1])
    if batch < SMALLEST_BATCH and imported is None:
        reason, batch = f"the smallest; {reason} would be fewer", SMALLEST_BATCH
    plan.set("batch_size", max(1, batch), reason)


def _largest_batch(patch: Patch, memory: StepMemory, gpu_gib: float) -> int:
    item = memory.gib(patch.voxels, patch.strides) - memory.base_gib
    return math.floor((gpu_gib - memory.base_gib) / item + 1e-9)


def _memory_row(plan: Plan, patch: Patch, memory: StepMemory, gpu_gib: float | None) -> None:
    if gpu_gib is None:
        plan.rows.append(Row("memory", "CPU", "no GPU; --gpu_memory_gb G plans for one of G GiB"))
        return
    needed = memory.gib(plan.overlay["batch_size"] * patch.voxels, patch.strides)
    reason = f"of {gpu_gib:.4g} for a train step in bfloat16, {memory.origin}; --gpu_memory_gb changes it"
    plan.rows.append(Row("memory", f"{needed:.1f} GiB", reason))
    if needed > gpu_gib:
        plan.warnings.append(f"a train step needs about {needed:.1f} GiB, more than the {gpu_gib:.4g} there are")


def _recomputation(plan: Plan, patch: Patch, kept: StepMemory, gpu_gib: float | None) -> None:
    needed = kept.gib(plan.overlay["batch_size"] * patch.voxels, patch.strides)
    if gpu_gib is None:
        plan.set("recompute_activations", True, "a CPU keeps everything anyway")
    else:
        fits = needed <= gpu_gib
        takes = "takes" if fits else "would take"
        plan.set("recompute_activations", not fits, f"keeping them {takes} {needed:.1f} GiB, for a little less time")
