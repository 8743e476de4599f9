"""Label maps a part at a time: an index or a count takes eight bytes a voxel, eight times as much as a label."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

__all__ = ["count_in_slabs", "is_among", "slabs"]

SLAB = 1 << 22  # voxels, which bounds the memory


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Parts of the first axis of about SLAB voxels."""
    step = max(1, SLAB // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def count_in_slabs(numbers: np.ndarray, length: int) -> np.ndarray:
    """How often each number from 0 to ``length`` - 1 stands in an array, (length) int64."""
    counts = np.zeros(length, np.int64)
    for slab in slabs(numbers.shape):
        counts += np.bincount(numbers[slab].ravel(), minlength=length)
    return counts


def is_among(label_map: np.ndarray, values: Collection[int]) -> np.ndarray:
    """Where a label map holds one of some values, as booleans."""
    result = np.empty(label_map.shape, bool)
    for slab in slabs(label_map.shape):
        result[slab] = np.isin(label_map[slab], list(values))
    return result
