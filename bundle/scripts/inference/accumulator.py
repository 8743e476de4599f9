"""The weighted sum of what windows say, of the planes that windows still touch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

__all__ = ["Accumulator"]


class Accumulator:
    """Sums values over windows and hands out their mean, plane by plane, as a ring along one axis.

    Args:
        classes: channels of the values.
        size: of the image.
        axis: the spatial axis along which planes are finished and handed out.
        planes: how many of them are open at a time.
        dtype, device: of the sums.
    """

    def __init__(
        self, classes: int, size: Sequence[int], axis: int, planes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.axis, self.planes = axis, planes
        shape = [planes if other == axis else length for other, length in enumerate(size)]
        self.total = torch.zeros((classes, *shape), dtype=dtype, device=device)
        self.weight = torch.zeros((1, *shape), dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        return self.total.device

    def to(self, device: torch.device) -> None:
        """Move what is there."""
        self.total, self.weight = self.total.to(device), self.weight.to(device)

    def add(self, start: Sequence[int], values: torch.Tensor, weight: torch.Tensor, passes: int) -> None:
        """Add ``passes`` results of a window.

        Args:
            start: the window's first voxel.
            values: (classes, *window), the sum of the results.
            weight: (*window).
            passes: how many results ``values`` is the sum of.
        """
        values, weight = values.to(self.total), weight.to(self.weight)
        size = values.shape[1:]
        where = [slice(None), *(slice(first, first + length) for first, length in zip(start, size, strict=True))]
        for held, part in self._pieces(start[self.axis], start[self.axis] + size[self.axis]):
            where[self.axis + 1] = held
            share = weight.narrow(self.axis, part.start, part.stop - part.start)
            self.total[tuple(where)].addcmul_(_along(values, self.axis, part), share)
            self.weight[tuple(where)].add_(share, alpha=passes)

    def take(self, first: int, last: int, most: int) -> Iterator[torch.Tensor]:
        """The mean of the planes from ``first`` to before ``last``, which no window will touch any more, at most
        ``most`` of them at a time, as (classes, planes, *other axes); their place is free then."""
        for begin in range(first, last, most):
            for held, _ in self._pieces(begin, min(begin + most, last)):
                total, weight = _along(self.total, self.axis, held), _along(self.weight, self.axis, held)
                mean = torch.movedim(total / weight, self.axis + 1, 1).contiguous()
                total.zero_(), weight.zero_()
                yield mean

    def mean(self) -> torch.Tensor:
        """All planes at once (classes, *size), where all are open; in place."""
        return self.total.div_(self.weight)

    def _pieces(self, first: int, last: int) -> list[tuple[slice, slice]]:
        """Where planes lie in the ring, and which of them these are; two pieces where they go over its end."""
        begin, count = first % self.planes, last - first
        here = min(count, self.planes - begin)
        pieces = [(slice(begin, begin + here), slice(0, here))]
        return pieces if here == count else [*pieces, (slice(0, count - here), slice(here, count))]


def _along(values: torch.Tensor, axis: int, part: slice) -> torch.Tensor:
    return values.narrow(axis + 1, part.start, part.stop - part.start)
