"""What a plan says of the machine: the memory that preparing takes, and the time that inference takes on a CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..common.case_memory import case_memory, most_workers
from .plan import Plan, Row, Wishes

__all__ = ["WORKERS", "choose_workers", "describe_cpu_time"]

WORKERS = 4  # train.json's num_workers
LIBRARIES = 600_000_000  # bytes of Python, PyTorch and MONAI
# Of one core, for a million voxels of windows and 32 filters: two threads times the forward pass of the default network
# in benchmarks/results/networks_cpu_default.json. With 16 filters it took 2.7 (3D) and 2.9 (2D) times less.
SECONDS, GROWTH = {2: 4.3, 3: 3.5}, 1.45


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
    plan.num_workers = most_workers(WORKERS, cases, None if free is None else max(0, free - LIBRARIES))
    reason = f"each takes up to {_gb(max(cases))} of memory for a case, beside {_gb(LIBRARIES)} that they share"
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
    count = round(float(np.median(windows)))
    what = f"{count:,} window{'s' if count > 1 else ''} of a median case, very roughly; more cores share it"
    without = f", with mirroring; {_duration(seconds)} without (--tta false)" if flips > 1 else ""
    plan.rows.append(Row("inference on a CPU", _duration(seconds * flips), f"of one core{without}: {what}"))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.2g} h"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(1, count / 1e6):.0f} MB"
