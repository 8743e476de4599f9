"""GroupNorm and ReLU over channels-last tokens: Triton kernels, forward and backward, and one differentiable operator.

The backward pass keeps the input and each group's mean and standard deviation; the normalised values and the ReLU's
mask are computed again. Means and sums of squared deviations are merged chunk by chunk (Chan, Golub and LeVeque 1983),
which stays exact where a mean is much larger than the deviation.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..device_guard import device_guard
from . import check_dtype
from .group_norm_kernels import (
    apply_kernel,
    combine_moments_kernel,
    combine_sums_kernel,
    dx_kernel,
    moments_kernel,
    sums_kernel,
)

__all__ = [
    "group_norm_relu",
    "group_norm_relu_again",
    "group_norm_relu_backward",
    "group_norm_relu_channels_last",
    "group_norm_relu_forward",
]

TILE = 2048  # elements of a tile of (rows, channels), 16 a thread
# Programs that sum over the length, each over a chunk of it with its own partial sums, and the tiles that a chunk has
# at least. The numbers do not depend on the GPU, so that results do not either.
MAX_PROGRAMS = 1024
MIN_TILES = 4
TILE_COMBINE = 1024  # elements of a tile of (chunks, channels of a group)


def group_norm_relu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, relu: bool = True
) -> Tensor:
    """GroupNorm over length and the channels of a group, then ReLU. Differentiable in x, weight and bias.

    Args:
        x: (batch, length, C), fp32, bf16 or fp16.
        num_groups: groups of neighbouring channels; divides C.
        weight, bias: (C,).
        relu: False leaves the ReLU out.

    Returns:
        (batch, length, C), contiguous, in x's dtype.

    Raises:
        ValueError: a shape or x's dtype does not fit, or C is not a multiple of `num_groups`.
    """
    if torch.compiler.is_compiling():
        return torch.ops.lightm_unet.group_norm_relu(x, num_groups, weight, bias, eps, relu)[0]
    return _GroupNormReLU.apply(x, num_groups, weight, bias, eps, relu)


def group_norm_relu_channels_last(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, relu: bool = True
) -> Tensor:
    """`group_norm_relu` of (batch, C, *spatial) that lies channels-last in memory, as does the result.

    A tensor that lies otherwise is copied first.
    """
    tokens = x.movedim(1, -1)
    y = group_norm_relu(tokens.flatten(1, -2), num_groups, weight, bias, eps, relu)
    return y.view(tokens.shape).movedim(-1, 1)


def group_norm_relu_forward(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, relu: bool = True
) -> tuple[Tensor, Tensor]:
    """Arguments and errors as of `group_norm_relu`; not differentiable.

    Returns:
        the result, and what the backward pass needs: each group's mean and reciprocal standard deviation,
        (batch, 2, num_groups), fp32.
    """
    _check(x, num_groups, weight, bias)
    x = x.contiguous()
    batch, length, C = x.shape
    statistics = torch.empty((batch, 2, num_groups), dtype=torch.float32, device=x.device)
    if x.numel():
        BLOCK_R, BLOCK_C, tiles, chunks = _chunking(x)
        CG = C // num_groups
        partial = torch.empty((batch * chunks * 2 * C,), dtype=torch.float32, device=x.device)
        with device_guard(x.device):
            moments_kernel[(batch * chunks,)](x, partial, length, chunks, tiles, C, CG, BLOCK_R, BLOCK_C)
            combine_moments_kernel[(batch * num_groups,)](
                partial, statistics, length, chunks, tiles * BLOCK_R, eps, num_groups, CG, *_combine_tile(CG)
            )
    return group_norm_relu_again(x, statistics, num_groups, weight, bias, relu), statistics


def group_norm_relu_again(
    x: Tensor, statistics: Tensor, num_groups: int, weight: Tensor, bias: Tensor, relu: bool = True
) -> Tensor:
    """The first result of `group_norm_relu_forward` from its second, in one pass over x."""
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        batch, length, C = x.shape
        BLOCK_R, BLOCK_C, _, _ = _chunking(x)
        blocks = triton.cdiv(length, BLOCK_R)
        with device_guard(x.device):
            apply_kernel[(batch * blocks,)](
                x, statistics, weight, bias, y, length, blocks, relu, C, C // num_groups, BLOCK_R, BLOCK_C
            )
    return y


def group_norm_relu_backward(
    dy: Tensor, x: Tensor, statistics: Tensor, num_groups: int, weight: Tensor, bias: Tensor, relu: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `group_norm_relu_forward`.

    Args:
        dy: gradient of the result, (batch, length, C).
        statistics: the second result of the forward pass; the others as there.

    Returns:
        dx, (batch, length, C), contiguous, in x's dtype; dweight and dbias, (C,), in weight's dtype.

    Raises:
        ValueError: a shape or x's dtype does not fit.
    """
    _check(x, num_groups, weight, bias)
    if dy.shape != x.shape:
        raise ValueError(f"dy: expected shape {tuple(x.shape)} like x, got {tuple(dy.shape)}")
    dy, x = dy.contiguous(), x.contiguous()
    batch, length, C = x.shape
    dx = torch.empty_like(x)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    if not x.numel():
        return dx, dweight.zero_(), dbias.zero_()
    BLOCK_R, BLOCK_C, tiles, chunks = _chunking(x)
    CG = C // num_groups
    partial = torch.empty((batch * chunks * 2 * C,), dtype=torch.float32, device=x.device)
    means = torch.empty_like(statistics)
    blocks = triton.cdiv(length, BLOCK_R)
    with device_guard(x.device):
        sums_kernel[(batch * chunks,)](
            dy, x, statistics, weight, bias, partial, length, chunks, tiles, relu, C, CG, BLOCK_R, BLOCK_C
        )
        combine_sums_kernel[(num_groups,)](
            partial, weight, means, dweight, dbias, batch, length, chunks, num_groups, CG, *_combine_tile(CG)
        )
        dx_kernel[(batch * blocks,)](
            dy, x, statistics, means, weight, bias, dx, length, blocks, relu, C, CG, BLOCK_R, BLOCK_C
        )
    return dx, dweight, dbias


class _GroupNormReLU(torch.autograd.Function):
    """For eager mode: a registered operator costs several times as much per call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> Tensor:
        y, statistics = group_norm_relu_forward(x, num_groups, weight, bias, eps, relu)
        ctx.save_for_backward(x, statistics, weight, bias)
        ctx.num_groups, ctx.relu = num_groups, relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = group_norm_relu_backward(dy, x, statistics, ctx.num_groups, weight, bias, ctx.relu)
        return dx, None, dweight, dbias, None, None


def _forward_operator(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    return group_norm_relu_forward(x, num_groups, weight, bias, eps, relu)


def _fake(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], 2, num_groups), dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), statistics


def _backward_operator(
    dy: Tensor, x: Tensor, statistics: Tensor, num_groups: int, weight: Tensor, bias: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return group_norm_relu_backward(dy, x, statistics, num_groups, weight, bias, relu)


def _fake_backward(
    dy: Tensor, x: Tensor, statistics: Tensor, num_groups: int, weight: Tensor, bias: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), torch.empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.num_groups, weight, bias, _, ctx.relu = inputs
    ctx.save_for_backward(x, output[1], weight, bias)


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, statistics, weight, bias = ctx.saved_tensors
    backward = torch.ops.lightm_unet.group_norm_relu_backward
    dx, dweight, dbias = backward(dy, x, statistics, ctx.num_groups, weight, bias, ctx.relu)
    return dx, None, dweight, dbias, None, None


def _register() -> None:
    """Make one operator of a graph of it, for torch.compile and torch.export; once a process (see three_phase.py)."""
    forward = torch.library.custom_op("lightm_unet::group_norm_relu", _forward_operator, mutates_args=())
    backward = torch.library.custom_op("lightm_unet::group_norm_relu_backward", _backward_operator, mutates_args=())
    forward.register_fake(_fake)
    backward.register_fake(_fake_backward)
    forward.register_autograd(_backward, setup_context=_setup_context)


if not hasattr(torch.ops.lightm_unet, "group_norm_relu"):
    _register()


def _check(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor) -> None:
    check_dtype("x", x)
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (batch, length, channels), got {tuple(x.shape)}")
    C = x.shape[2]
    if num_groups < 1 or C % num_groups:
        raise ValueError(f"num_groups: expected a divisor of the {C} channels, got {num_groups}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (C,):
            raise ValueError(f"{name}: expected shape ({C},), got {tuple(tensor.shape)}")


def _chunking(x: Tensor) -> tuple[int, int, int, int]:
    """The two sizes of a tile, the tiles of a chunk and the chunks of a batch item."""
    batch, length, C = x.shape
    BLOCK_C = triton.next_power_of_2(C)
    BLOCK_R = max(1, TILE // BLOCK_C)
    all_tiles = triton.cdiv(length, BLOCK_R)
    chunks = max(1, min(all_tiles // MIN_TILES, MAX_PROGRAMS // batch))
    tiles = triton.cdiv(all_tiles, chunks)
    return BLOCK_R, BLOCK_C, tiles, triton.cdiv(all_tiles, tiles)


def _combine_tile(CG: int) -> tuple[int, int]:
    BLOCK_CG = triton.next_power_of_2(CG)
    return max(1, TILE_COMBINE // BLOCK_CG), BLOCK_CG
