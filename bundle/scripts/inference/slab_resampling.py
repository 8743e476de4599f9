"""Resampling of logits back to a finer (or coarser) grid, slab by slab: only neighbouring planes are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

__all__ = ["resized_slabs"]

BLOCK_BYTES = {"cpu": 2**23, "cuda": 2**27}  # of what is handed on at once: it stays in a CPU's cache


def resized_slabs(
    slabs: Iterable[torch.Tensor],
    axis: int,
    size: Sequence[int],
    target: Sequence[int],
    nearest_axis: int | None = None,
) -> Iterator[torch.Tensor]:
    """Resample linearly as ``resampling.resize`` does (equal up to rounding), from slabs to slabs.

    Args:
        slabs: (classes, planes, *other axes), float, in order; the planes lie along ``axis``.
        axis: of the volume.
        size, target: of the volume, before and after.
        nearest_axis: axis along which the nearest voxel is taken instead.
    """
    others = [length for other, length in enumerate(target) if other != axis]
    thin = None if nearest_axis in (None, axis) else nearest_axis - (nearest_axis > axis)
    unchanged = others == [length for other, length in enumerate(size) if other != axis]
    pieces = (piece for slab in slabs for piece in _pieces(slab, others))
    planes = pieces if unchanged else (_resize_planes(piece, others, thin) for piece in pieces)
    if size[axis] == target[axis]:
        yield from planes
    else:
        yield from _along(planes, size[axis], target[axis], nearest_axis == axis)


def _pieces(slab: torch.Tensor, others: Sequence[int]) -> Iterator[torch.Tensor]:
    return iter(slab.split(_planes_of_block(slab, others), dim=1))


def _planes_of_block(slab: torch.Tensor, others: Sequence[int]) -> int:
    plane = len(slab) * slab.element_size() * torch.Size(others).numel()
    return max(1, BLOCK_BYTES.get(slab.device.type, BLOCK_BYTES["cpu"]) // max(1, plane))


def _resize_planes(planes: torch.Tensor, others: Sequence[int], thin: int | None) -> torch.Tensor:
    """(classes, planes, *old) to (classes, planes, *others)."""
    if thin is not None:
        position = _positions(planes.shape[thin + 2], others[thin])
        planes = planes.index_select(thin + 2, torch.floor(position + 0.5).long().to(planes.device))
    if list(planes.shape[2:]) == list(others):
        return planes
    mode = {1: "linear", 2: "bilinear"}[len(others)]
    flat = planes.flatten(0, 1)[None]  # one image of many channels
    resized = torch.nn.functional.interpolate(flat, tuple(others), mode=mode, align_corners=False)
    return resized.view(*planes.shape[:2], *others)


def _positions(length: int, size: int) -> torch.Tensor:
    """Where the voxels of a new grid lie in the old one; the outer borders coincide."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5
    return position.clamp(0, length - 1)


def _along(planes: Iterable[torch.Tensor], length: int, size: int, nearest: bool) -> Iterator[torch.Tensor]:
    """Resample along the axis of the planes: what lies between two of them is made when the second one comes."""
    position = _positions(length, size)
    position = torch.floor(position + 0.5) if nearest else position
    first = torch.floor(position).long()
    second = (first + 1).clamp(max=length - 1)
    fraction = (position - first).float()
    second = torch.where(fraction > 0, second, first)
    held, begin, done = None, 0, 0
    for piece in planes:
        held = piece if held is None else torch.cat([held.to(piece.device), piece], dim=1)
        ready = int(torch.searchsorted(second, begin + held.shape[1]))  # those whose two planes are there
        step = _planes_of_block(held, held.shape[2:])
        for low in range(done, ready, step):
            part = slice(low, min(low + step, ready))
            yield _between(held, first[part] - begin, second[part] - begin, fraction[part])
        done = max(done, ready)
        keep = int(first[done]) if done < size else begin + held.shape[1]
        drop = max(0, min(keep - begin, held.shape[1]))
        held, begin = held[:, drop:], begin + drop


def _between(held: torch.Tensor, first: torch.Tensor, second: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    before = _planes(held, first)
    if not fraction.any():
        return before
    after = _planes(held, second)
    weight = fraction.to(held).view(-1, *[1] * (held.ndim - 2))
    return torch.lerp(before, after, weight)


def _planes(held: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return held.narrow(1, int(index), 1) if len(index) == 1 else held.index_select(1, index.to(held.device))
