"""GroupNorm and ReLU over channels-last tokens: Triton kernels, forward and backward, and one differentiable operator.

The backward pass keeps the input and each group's mean and standard deviation; the normalised values and the ReLU's
mask are computed again. Means and sums of squared deviations are merged chunk by chunk (Chan, Golub and LeVeque 1983),
which stays exact where a mean is much larger than the deviation.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import check_dtype, device_guard

__all__ = [
    "group_norm_relu",
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
        return _operator(x, num_groups, weight, bias, eps, relu)[0]
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
    y = torch.empty_like(x)
    statistics = torch.empty((batch, 2, num_groups), dtype=torch.float32, device=x.device)
    if not x.numel():
        return y, statistics
    BLOCK_R, BLOCK_C, tiles, chunks = _chunking(x)
    CG = C // num_groups
    partial = torch.empty((batch * chunks * 2 * C,), dtype=torch.float32, device=x.device)
    blocks = triton.cdiv(length, BLOCK_R)
    with device_guard(x.device):
        _moments_kernel[(batch * chunks,)](x, partial, length, chunks, tiles, C, CG, BLOCK_R, BLOCK_C)
        _combine_moments_kernel[(batch * num_groups,)](
            partial, statistics, length, chunks, tiles * BLOCK_R, eps, num_groups, CG, *_combine_tile(CG)
        )
        _apply_kernel[(batch * blocks,)](x, statistics, weight, bias, y, length, blocks, relu, C, CG, BLOCK_R, BLOCK_C)
    return y, statistics


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
        _sums_kernel[(batch * chunks,)](
            dy, x, statistics, weight, bias, partial, length, chunks, tiles, relu, C, CG, BLOCK_R, BLOCK_C
        )
        _combine_sums_kernel[(num_groups,)](
            partial, weight, means, dweight, dbias, batch, length, chunks, num_groups, CG, *_combine_tile(CG)
        )
        _dx_kernel[(batch * blocks,)](
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


# For torch.compile and torch.export: one operator in the graph.
@torch.library.custom_op("lightm_unet::group_norm_relu", mutates_args=())
def _operator(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    return group_norm_relu_forward(x, num_groups, weight, bias, eps, relu)


@_operator.register_fake
def _(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], 2, num_groups), dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.contiguous_format), statistics


@torch.library.custom_op("lightm_unet::group_norm_relu_backward", mutates_args=())
def _backward_operator(
    dy: Tensor, x: Tensor, statistics: Tensor, num_groups: int, weight: Tensor, bias: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return group_norm_relu_backward(dy, x, statistics, num_groups, weight, bias, relu)


@_backward_operator.register_fake
def _(
    dy: Tensor, x: Tensor, statistics: Tensor, num_groups: int, weight: Tensor, bias: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), torch.empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.num_groups, weight, bias, _, ctx.relu = inputs
    ctx.save_for_backward(x, output[1], weight, bias)


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, statistics, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _backward_operator(dy, x, statistics, ctx.num_groups, weight, bias, ctx.relu)
    return dx, None, dweight, dbias, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)


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


@triton.jit
def _load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _partial_at(partial_ptr, item, chunk, chunks, column, C: tl.constexpr, CG: tl.constexpr):
    """Where a chunk's two sums of a channel lie: (batch, group, chunk, 2, channel of the group), so that what is
    combined lies together. The second is CG further on."""
    group_chunk = (item * (C // CG) + column // CG) * chunks + chunk
    return partial_ptr + group_chunk * (2 * CG) + column % CG


@triton.jit
def _group_values(ptr, item, column, C: tl.constexpr, CG: tl.constexpr):
    """The two values of each column's group from (batch, 2, groups)."""
    at = ptr + item * (2 * (C // CG)) + column // CG
    first = _load(at, column < C)
    second = _load(at + C // CG, column < C)
    return first[None, :], second[None, :]


@triton.jit
def _moments_kernel(
    x_ptr,
    partial_ptr,
    length,
    chunks,
    tiles,
    C: tl.constexpr,
    CG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations of each channel over a chunk of the length."""
    item, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    column = tl.arange(0, BLOCK_C)
    lane = tl.arange(0, BLOCK_R)
    first = chunk * tiles * BLOCK_R
    x_ptr += item.to(tl.int64) * length * C
    # Each lane of the tile has moments of its own, merged after the loop: within it, no thread waits for another.
    mean = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for i in range(tiles):
        row = first + i * BLOCK_R + lane
        mask = (row < length)[:, None] & (column < C)[None, :]
        x = _load(x_ptr + row.to(tl.int64)[:, None] * C + column[None, :], mask)
        deviation = tl.where(mask, x - mean, 0.0)
        mean += deviation * (1.0 / (i + 1))
        squares += deviation * (x - mean)
    rows = tl.minimum(length - first, tiles * BLOCK_R)
    count = ((rows - lane + BLOCK_R - 1) // BLOCK_R).to(tl.float32)[:, None]
    merged = tl.sum(mean * count, axis=0) / rows
    deviation = mean - merged[None, :]
    squares = tl.sum(squares + count * deviation * deviation, axis=0)
    at = _partial_at(partial_ptr, item, chunk, chunks, column, C, CG)
    tl.store(at, merged, mask=column < C)
    tl.store(at + CG, squares, mask=column < C)


@triton.jit
def _chunk_rows(chunk, length, rows):
    """Rows of each chunk as a column of floats: the last chunk has what is left, and there are none after it."""
    return tl.maximum(tl.minimum(length - chunk * rows, rows), 0).to(tl.float32)[:, None]


@triton.jit
def _combine_moments_kernel(
    partial_ptr,
    statistics_ptr,
    length,
    chunks,
    rows,
    eps,
    G: tl.constexpr,
    CG: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CG: tl.constexpr,
):
    """Mean and reciprocal standard deviation of one group of one batch item from its chunks of `rows` rows."""
    column = tl.arange(0, BLOCK_CG)[None, :]
    partial_ptr += tl.program_id(0) * chunks * (2 * CG)
    total = tl.zeros((BLOCK_N, BLOCK_CG), tl.float32)
    for start in range(0, chunks, BLOCK_N):
        chunk = start + tl.arange(0, BLOCK_N)
        mask = (chunk < chunks)[:, None] & (column < CG)
        total += _load(partial_ptr + chunk[:, None] * (2 * CG) + column, mask) * _chunk_rows(chunk, length, rows)
    elements = 1.0 * length * CG
    mean = tl.sum(total) / elements
    squares = tl.zeros((BLOCK_N, BLOCK_CG), tl.float32)
    for start in range(0, chunks, BLOCK_N):
        chunk = start + tl.arange(0, BLOCK_N)
        mask = (chunk < chunks)[:, None] & (column < CG)
        at = partial_ptr + chunk[:, None] * (2 * CG) + column
        deviation = tl.where(mask, _load(at, mask) - mean, 0.0)
        squares += _load(at + CG, mask) + deviation * deviation * _chunk_rows(chunk, length, rows)
    at = statistics_ptr + (tl.program_id(0) // G) * (2 * G) + tl.program_id(0) % G
    tl.store(at, mean)
    tl.store(at + G, tl.rsqrt(tl.sum(squares) / elements + eps))


@triton.jit
def _apply_kernel(
    x_ptr,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    length,
    blocks,
    RELU: tl.constexpr,
    C: tl.constexpr,
    CG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    item = tl.program_id(0) // blocks
    row = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_C)
    mask = (row < length)[:, None] & (column < C)[None, :]
    offsets = (item.to(tl.int64) * length + row)[:, None] * C + column[None, :]
    x = _load(x_ptr + offsets, mask)
    mean, rstd = _group_values(statistics_ptr, item, column, C, CG)
    weight = _load(weight_ptr + column, column < C)[None, :]
    bias = _load(bias_ptr + column, column < C)[None, :]
    # The mean first: folding it into the bias would cost digits where it is much larger than the deviation.
    y = (x - mean) * rstd * weight + bias
    if RELU:
        y = tl.where(y <= 0, 0.0, y)  # not a maximum: NaN stays NaN
    tl.store(y_ptr + offsets, y, mask=mask)


@triton.jit
def _masked_gradient(dy, normalised, weight, bias, RELU: tl.constexpr):
    if RELU:
        dy = tl.where(normalised * weight + bias <= 0, 0.0, dy)
    return dy


@triton.jit
def _sums_kernel(
    dy_ptr,
    x_ptr,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    partial_ptr,
    length,
    chunks,
    tiles,
    RELU: tl.constexpr,
    C: tl.constexpr,
    CG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over a chunk of each channel's gradient before the ReLU, and of it times the normalised input."""
    item, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    column = tl.arange(0, BLOCK_C)
    mean, rstd = _group_values(statistics_ptr, item, column, C, CG)
    weight = _load(weight_ptr + column, column < C)[None, :]
    bias = _load(bias_ptr + column, column < C)[None, :]
    dbias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    dweight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for i in range(tiles):
        row = (chunk * tiles + i) * BLOCK_R + tl.arange(0, BLOCK_R)
        mask = (row < length)[:, None] & (column < C)[None, :]
        offsets = (item.to(tl.int64) * length + row)[:, None] * C + column[None, :]
        normalised = (_load(x_ptr + offsets, mask) - mean) * rstd
        dy = _masked_gradient(_load(dy_ptr + offsets, mask), normalised, weight, bias, RELU)
        dbias += dy
        dweight += dy * normalised
    at = _partial_at(partial_ptr, item, chunk, chunks, column, C, CG)
    tl.store(at, tl.sum(dbias, axis=0), mask=column < C)
    tl.store(at + CG, tl.sum(dweight, axis=0), mask=column < C)


@triton.jit
def _combine_sums_kernel(
    partial_ptr,
    weight_ptr,
    means_ptr,
    dweight_ptr,
    dbias_ptr,
    batch,
    length,
    chunks,
    G: tl.constexpr,
    CG: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CG: tl.constexpr,
):
    """For one group: dweight and dbias, and for each batch item the two means that dx needs, (batch, 2, groups)."""
    group = tl.program_id(0)
    column = tl.arange(0, BLOCK_CG)
    weight = _load(weight_ptr + group * CG + column, column < CG)
    dbias = tl.zeros((BLOCK_CG,), tl.float32)
    dweight = tl.zeros((BLOCK_CG,), tl.float32)
    elements = 1.0 * length * CG
    for item in range(batch):
        first = tl.zeros((BLOCK_N, BLOCK_CG), tl.float32)
        second = tl.zeros((BLOCK_N, BLOCK_CG), tl.float32)
        for start in range(0, chunks, BLOCK_N):
            chunk = start + tl.arange(0, BLOCK_N)
            mask = (chunk < chunks)[:, None] & (column < CG)[None, :]
            at = partial_ptr + ((item * G + group) * chunks + chunk)[:, None] * (2 * CG) + column[None, :]
            first += _load(at, mask)
            second += _load(at + CG, mask)
        item_dbias, item_dweight = tl.sum(first, axis=0), tl.sum(second, axis=0)
        tl.store(means_ptr + item * (2 * G) + group, tl.sum(item_dbias * weight) / elements)
        tl.store(means_ptr + item * (2 * G) + G + group, tl.sum(item_dweight * weight) / elements)
        dbias += item_dbias
        dweight += item_dweight
    tl.store(dbias_ptr + group * CG + column, dbias, mask=column < CG)
    tl.store(dweight_ptr + group * CG + column, dweight, mask=column < CG)


@triton.jit
def _dx_kernel(
    dy_ptr,
    x_ptr,
    statistics_ptr,
    means_ptr,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    length,
    blocks,
    RELU: tl.constexpr,
    C: tl.constexpr,
    CG: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    item = tl.program_id(0) // blocks
    row = (tl.program_id(0) % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_C)
    mask = (row < length)[:, None] & (column < C)[None, :]
    offsets = (item.to(tl.int64) * length + row)[:, None] * C + column[None, :]
    mean, rstd = _group_values(statistics_ptr, item, column, C, CG)
    gradient_mean, gradient_along = _group_values(means_ptr, item, column, C, CG)
    weight = _load(weight_ptr + column, column < C)[None, :]
    bias = _load(bias_ptr + column, column < C)[None, :]
    normalised = (_load(x_ptr + offsets, mask) - mean) * rstd
    dy = _masked_gradient(_load(dy_ptr + offsets, mask), normalised, weight, bias, RELU)
    tl.store(dx_ptr + offsets, rstd * (dy * weight - gradient_mean - normalised * gradient_along), mask=mask)
