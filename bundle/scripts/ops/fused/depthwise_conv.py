"""Depthwise convolution of width 3 over channels-last images, 2D and 3D: Triton kernels, forward and backward.

PyTorch's own depthwise kernels want the channels first, so that a channels-last network would copy every image twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..device_guard import device_guard
from . import check_dtype

__all__ = [
    "depthwise_conv",
    "depthwise_conv_backward_input",
    "depthwise_conv_backward_weight",
    "depthwise_conv_forward",
]

MAX_BLOCK_C = 64  # channels of a tile of (positions, channels)
TILE_PER_BYTE = (
    512  # its elements are so many times the bytes of one: halves need more registers, as they come by eights
)
TILE_WEIGHT = 512  # of the weight's gradient, which has nine accumulators for each element
MAX_PROGRAMS = 1024  # of the weight's gradient, for each plane of taps; each has its own partial sums


def depthwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise convolution of width 3, padding 1, stride 1, no bias. Differentiable in both arguments.

    Args:
        x: (batch, *spatial, C) with two or three spatial dimensions, fp32, bf16 or fp16.
        weight: (C, 1, 3, 3) or (C, 1, 3, 3, 3), as PyTorch lays it out.

    Returns:
        like x, contiguous.

    Raises:
        ValueError: a shape or x's dtype does not fit.
    """
    return _DepthwiseConv.apply(x, weight)


def depthwise_conv_forward(x: Tensor, weight: Tensor) -> Tensor:
    """Arguments, result and errors as of `depthwise_conv`; not differentiable."""
    return _convolve(x, weight, flip=False)


def depthwise_conv_backward_input(dy: Tensor, weight: Tensor) -> Tensor:
    """Gradient at x from the gradient of the result, (batch, *spatial, C): the same convolution, weights mirrored."""
    return _convolve(dy, weight, flip=True)


def depthwise_conv_backward_weight(dy: Tensor, x: Tensor) -> Tensor:
    """Gradient at the weight, (C, 1, 3, 3[, 3]), fp32.

    Args:
        dy: gradient of the result. x: input of the forward pass. Both (batch, *spatial, C).

    Raises:
        ValueError: a shape or x's dtype does not fit.
    """
    check_dtype("x", x)
    if dy.shape != x.shape or x.dim() not in (4, 5):
        raise ValueError(f"dy and x: expected one shape (batch, *spatial, C), got {tuple(dy.shape)}, {tuple(x.shape)}")
    dy, x = dy.contiguous(), x.contiguous()
    C, positions, depth, height, width = _sizes(x)
    planes = 3 if x.dim() == 5 else 1
    BLOCK_P, BLOCK_C = _tile(C, TILE_WEIGHT)
    all_tiles = triton.cdiv(positions, BLOCK_P)
    tiles = triton.cdiv(all_tiles, MAX_PROGRAMS)
    programs = triton.cdiv(all_tiles, tiles) if positions else 0
    partial = torch.empty((programs, planes * 9, C), dtype=torch.float32, device=x.device)
    if partial.numel():
        with device_guard(x.device):
            _dweight_kernel[(programs * planes, triton.cdiv(C, BLOCK_C))](
                dy, x, partial, positions, tiles, depth, height, width, C, planes, BLOCK_P, BLOCK_C
            )
    return partial.sum(0).t().reshape(C, 1, *(3,) * (x.dim() - 2))


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return depthwise_conv_forward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = depthwise_conv_backward_input(dy, weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        dweight = depthwise_conv_backward_weight(dy, x).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dweight


def _convolve(x: Tensor, weight: Tensor, flip: bool) -> Tensor:
    check_dtype("x", x)
    expected = (x.shape[-1], 1, *(3,) * (x.dim() - 2))
    if x.dim() not in (4, 5):
        raise ValueError(f"x: expected shape (batch, *spatial, C) with 2 or 3 spatial sizes, got {tuple(x.shape)}")
    if weight.shape != expected:
        raise ValueError(f"weight: expected shape {expected}, got {tuple(weight.shape)}")
    x = x.contiguous()
    y = torch.empty_like(x)
    C, positions, depth, height, width = _sizes(x)
    BLOCK_P, BLOCK_C = _tile(C, TILE_PER_BYTE * x.element_size())
    # Channels innermost, as in the image: read as they lie, the weights would take longer than the image.
    taps = weight.flatten(1).t().contiguous()
    if x.numel():
        with device_guard(x.device):
            _convolution_kernel[(triton.cdiv(positions, BLOCK_P), triton.cdiv(C, BLOCK_C))](
                x, taps, y, positions, depth, height, width, C, taps.shape[0], flip, BLOCK_P, BLOCK_C
            )
    return y


def _sizes(x: Tensor) -> tuple[int, int, int, int, int]:
    """Channels, positions, depth, height and width; an image has a depth of 1."""
    return x.shape[-1], math.prod(x.shape[:-1]), x.shape[1] if x.dim() == 5 else 1, x.shape[-3], x.shape[-2]


def _tile(C: int, tile: int) -> tuple[int, int]:
    BLOCK_C = min(MAX_BLOCK_C, triton.next_power_of_2(C))
    return tile // BLOCK_C, BLOCK_C


@triton.jit
def _load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _within(coordinate, size):
    return (coordinate >= 0) & (coordinate < size)


@triton.jit
def _convolution_kernel(
    x_ptr,
    taps_ptr,
    y_ptr,
    positions,
    depth,
    height,
    width,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Reads each neighbour of a tile by itself: all but the first reads come from the caches."""
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column, row = position % width, position // width % height
    plane = position // width // height % depth
    y = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tap in tl.static_range(TAPS):
        dx, dy, dz = tap % 3 - 1, tap // 3 % 3 - 1, tap // 9 - TAPS // 27
        inside = _within(column + dx, width) & _within(row + dy, height) & _within(plane + dz, depth)
        mask = (inside & (position < positions))[:, None] & (channel < C)[None, :]
        source = position.to(tl.int64) + ((dz * height + dy) * width + dx)
        x = _load(x_ptr + source[:, None] * C + channel[None, :], mask)
        weight = taps_ptr + (TAPS - 1 - tap if FLIP else tap) * C + channel
        y += x * _load(weight, channel < C)[None, :]
    mask = (position < positions)[:, None] & (channel < C)[None, :]
    tl.store(y_ptr + position.to(tl.int64)[:, None] * C + channel[None, :], y, mask=mask)


@triton.jit
def _dweight_kernel(
    dy_ptr,
    x_ptr,
    partial_ptr,
    positions,
    tiles,
    depth,
    height,
    width,
    C: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One plane of nine taps over `tiles` tiles. The planes of a tile are neighbouring programs: their reads meet in
    the cache. The three rows of taps are an axis of the tile (with a fourth, idle), the three columns variables."""
    dz = tl.program_id(0) % PLANES - PLANES // 2
    program = tl.program_id(0) // PLANES
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    dy = tl.arange(0, 4) - 1
    left = tl.zeros((4, BLOCK_P, BLOCK_C), tl.float32)
    middle = tl.zeros((4, BLOCK_P, BLOCK_C), tl.float32)
    right = tl.zeros((4, BLOCK_P, BLOCK_C), tl.float32)
    for i in range(tiles):
        position = (program * tiles + i) * BLOCK_P + tl.arange(0, BLOCK_P)
        column, row = position % width, position // width % height
        valid = _within(position // width // height % depth + dz, depth) & (position < positions)
        inside = valid[None, :] & _within(row[None, :] + dy[:, None], height) & (dy < 2)[:, None]
        at = position.to(tl.int64)[:, None] * C + channel[None, :]
        gradient = _load(dy_ptr + at, valid[:, None] & (channel < C)[None, :])[None, :, :]
        x_at = x_ptr + at[None, :, :] + ((dz * height + dy).to(tl.int64) * width * C)[:, None, None]
        mask = inside[:, :, None] & (channel < C)[None, None, :]
        left += gradient * _load(x_at - C, mask & (column > 0)[None, :, None])
        middle += gradient * _load(x_at, mask)
        right += gradient * _load(x_at + C, mask & (column + 1 < width)[None, :, None])
    tap = ((dz + PLANES // 2) * 3 + dy + 1) * 3
    at = partial_ptr + (program * (PLANES * 9) + tap)[:, None] * C + channel[None, :]
    mask = (dy < 2)[:, None] & (channel < C)[None, :]
    tl.store(at, tl.sum(left, axis=1), mask=mask)
    tl.store(at + C, tl.sum(middle, axis=1), mask=mask)
    tl.store(at + 2 * C, tl.sum(right, axis=1), mask=mask)
