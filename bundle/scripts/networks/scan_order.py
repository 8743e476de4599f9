"""In which order the VSS layers of a network read an image's voxels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from torch import Tensor

__all__ = ["RASTER", "SCAN_ORDERS", "ScanPath", "scan_paths"]

SCAN_ORDERS = ("raster", "alternating", "axes", "bidirectional")


class ScanPath(NamedTuple):
    """One way through an image.

    Attributes:
        shift: how many spatial axes move from the front to the back: the last axis is the one that a path
            walks along first.
        reverse: from the last voxel to the first.
        both_ways: there and back, with the same weights; :meth:`ways` are the two.
    """

    shift: int = 0
    reverse: bool = False
    both_ways: bool = False

    def ways(self) -> tuple[ScanPath, ...]:
        """The paths to walk, one or two."""
        if not self.both_ways:
            return (self,)
        return tuple(ScanPath(self.shift, reverse) for reverse in (self.reverse, not self.reverse))

    def lay_out(self, x: Tensor) -> Tensor:
        """(batch, channels, *spatial) so turned that raster order is this path."""
        x = x.permute(0, 1, *self._axes(x.ndim))
        return x.flip(*range(2, x.ndim)) if self.reverse else x

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`lay_out`."""
        axes = self._axes(x.ndim)
        x = x.flip(*range(2, x.ndim)) if self.reverse else x
        return x.permute(0, 1, *(2 + axes.index(axis) for axis in range(2, x.ndim)))

    def _axes(self, ndim: int) -> list[int]:
        spatial = list(range(2, ndim))
        shift = self.shift % len(spatial)
        return spatial[shift:] + spatial[:shift]


RASTER = ScanPath()


def scan_paths(order: str) -> Iterator[ScanPath]:
    """The path of each VSS layer of a network, first to last, without end.

    A scan is causal: along one path the last voxel never informs the first.

    Args:
        order: "raster", every layer as in the paper; "alternating", every second layer from the last voxel to the
            first; "axes", the same, and every pair of layers walks along another axis first; "bidirectional", every
            layer both ways, at twice the time: its output is the mean.

    Raises:
        ValueError: an unknown order.
    """
    if order not in SCAN_ORDERS:
        raise ValueError(f"scan_order must be one of {', '.join(SCAN_ORDERS)}, not {order!r}")
    for layer in count():
        yield ScanPath(
            shift=layer // 2 if order == "axes" else 0,
            reverse=order in ("alternating", "axes") and layer % 2 == 1,
            both_ways=order == "bidirectional",
        )
