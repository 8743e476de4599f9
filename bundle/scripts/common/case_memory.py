"""Memory that a process takes to prepare a case, beside Python and the libraries; benchmarks/large_case.py measures it.

The rule follows the arrays that are there at once, in bytes a voxel and channel: what was read (4) and what becomes of
it (4); the label map is one more, and one while it is changed. Resampling adds the new image (4), the share that the
new voxels have of a class, the largest so far and a class that is resampled along some axes (4 each), and the label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["case_memory", "most_workers"]

SLAB, SLAB_BYTES = 1 << 22, 36  # voxels that are worked on at a time, and what each takes
SHARE = 0.9  # of free memory that is planned with


def case_memory(shape: Sequence[float], size: Sequence[float], channels: int) -> int:
    """Bytes at the peak of one case.

    Args:
        shape, size: voxels along each axis, before and after resampling.
        channels: of the image.
    """
    old, new = math.prod(shape), math.prod(size)
    normalising = old * (8 * channels + 2)
    resampling = old * (4 * channels + 2) + new * (4 * channels + 13) if list(shape) != list(size) else 0
    return int(max(normalising, resampling) + SLAB_BYTES * min(SLAB, max(old, new)))


def most_workers(wanted: int, cases: Sequence[int], free: int | None) -> int:
    """How many of the wanted processes, 1 at least, free memory holds when each prepares one of the largest cases.

    Args:
        cases: bytes of each case.
        free: bytes; None: nobody knows.
    """
    if free is None:
        return wanted
    largest = sorted(cases, reverse=True)[:wanted]
    fitting = sum(total <= SHARE * free for total in accumulate(largest))
    return wanted if fitting == len(largest) else max(1, fitting)
