"""What a plan says of the machine: the memory that preparing takes, and the time that inference takes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.case_memory import case_memory, most_workers
from .plan import Plan, Row, Wishes

__all__ = ["WORKERS", "choose_workers", "describe_cpu_time"]

WORKERS = 4  # train.json's num_workers
LIBRARIES = 0.6e9  # bytes that a process takes before it opens a case
# Of one core for a million voxels of a window, 32 filters wide, and how it grows with the width: 3.3 s in 3D and 3.9 s
# in 2D with 32 filters, 1.2 s and 1.3 s with 16 (three convolutional stages, one thread of a server's CPU).
SECONDS, GROWTH = {2: 3.9, 3: 3.3}, 1.45


def choose_workers(plan: Plan, fingerprint: Mapping[str, Any], shapes: np.ndarray, wishes: Wishes) -> None:
    """How many processes prepare cases at once, by the memory that the largest cases take.

    Args:
        plan: gets ``num_workers``, which the commands name where it is not the configs' own.
        fingerprint: of the data set.
        shapes: size of every case after resampling, (cases, image axes).
        wishes: knows the free memory.
    """
    key, channels = "cropped_shape" if plan.overlay["crop_nonzero"] else "shape", len(fingerprint["channels"])
    pairs = zip(fingerprint["per_case"], shapes.tolist(), strict=True)
    cases = [case_memory(case["shape"], size if size != case[key] else case["shape"], channels) for case, size in pairs]
    needed, free = max(cases) + LIBRARIES, wishes.free_memory
    plan.num_workers = most_workers(WORKERS, [case + int(LIBRARIES) for case in cases], free)
    reason = f"each takes up to {_gb(needed)} of memory to prepare or load a case"
    reason += "" if free is None else f"; {_gb(free)} are free here"
    plan.rows.append(Row("num_workers", str(plan.num_workers), reason))
    if free is not None and needed > free:
        plan.warnings.append(
            f"preparing the largest case takes about {_gb(needed)} of memory, more than the {_gb(free)} that are free"
        )


def describe_cpu_time(plan: Plan, windows: np.ndarray) -> None:
    """Say how long inference takes without a GPU.

    Args:
        plan: with the settings of the network.
        windows: number of windows of every case.
    """
    dims, filters = plan.overlay["spatial_dims"], plan.overlay["init_filters"]
    millions = math.prod(plan.overlay["patch_size"]) / 1e6
    seconds = float(np.median(windows)) * millions * SECONDS[dims] * (filters / 32) ** GROWTH
    flips = 2 ** len(plan.overlay["mirror_axes"])
    value = _duration(seconds) + (f", with mirroring {_duration(seconds * flips)}" if flips > 1 else "")
    switch = " (the default; --tta false leaves mirroring out)" if flips > 1 else ""
    windows_of_case = f"{np.median(windows):,.0f} windows of a median case"
    reason = f"roughly, of one core, for the {windows_of_case}{switch}; more cores share it"
    plan.rows.append(Row("inference on a CPU", value, reason))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.2g} h"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
