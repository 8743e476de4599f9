"""Logits as slabs: those of a network on an image, computed as somebody takes them, and those of a plain tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

__all__ = ["LazyLogits", "Slabs", "TensorSlabs", "as_slabs"]

SLAB_BYTES = 2**24  # of logits that are handed on at once


class Slabs(Protocol):
    """Logits (classes, *spatial) of one image, plane by plane along one spatial axis.

    Attributes:
        axis: that axis.
        size: of the image along each axis.
    """

    axis: int
    size: tuple[int, ...]

    def slabs(self) -> Iterator[torch.Tensor]:
        """Tensors (classes, some planes, *other axes), in the order of the planes, about SLAB_BYTES each."""

    def tensor(self) -> torch.Tensor:
        """All of them, (classes, *spatial)."""


class TensorSlabs:
    """The slabs of a tensor (classes, *spatial)."""

    axis = 0

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = torch.as_tensor(logits).detach()
        self.size = tuple(logits.shape[1:])

    def slabs(self) -> Iterator[torch.Tensor]:
        yield from self.logits.split(planes_of_slab(self.logits[:, :1]), dim=1)

    def tensor(self) -> torch.Tensor:
        return self.logits


class LazyLogits:
    """Logits that a network has yet to compute: what inference hands to postprocessing in place of a large tensor.

    Args:
        axis, size: see Slabs.
        slabs: computes them.
        tensor: computes all of them at once.
    """

    ndim = 0  # MONAI's decollating leaves what calls itself a scalar alone, and takes its item

    def __init__(
        self,
        axis: int,
        size: tuple[int, ...],
        slabs: Callable[[], Iterator[torch.Tensor]],
        tensor: Callable[[], torch.Tensor],
    ) -> None:
        self.axis, self.size = axis, size
        self.slabs, self.tensor = slabs, tensor

    def item(self) -> LazyLogits:
        return self


def as_slabs(logits: torch.Tensor | LazyLogits) -> Slabs:
    """The slabs of logits (classes, *spatial) of either kind."""
    return logits if isinstance(logits, LazyLogits) else TensorSlabs(logits)


def planes_of_slab(plane: torch.Tensor) -> int:
    """How many planes such as this one make a slab, at least one."""
    return max(1, SLAB_BYTES // max(1, plane.numel() * plane.element_size()))
