"""LayerNorm of tokens, with a scaled residual added on the way in: Triton kernels, forward and backward.

Neither the sum with the residual nor the statistics go through memory: the backward pass computes them again from
the inputs, which it has to read anyway.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device_guard import device_guard
from . import check_dtype

__all__ = ["layer_norm_backward", "layer_norm_forward"]

TILE_FORWARD = 4096  # elements of one tile of (rows, channels), 32 a thread: enough loads in flight
TILE_BACKWARD = 2048  # half as many, for three inputs and two accumulators a thread
# Programs of the backward pass, each with its own partial sums. On an H100 (132 SMs) all run at once; the number
# does not depend on the GPU, so that gradients do not either.
MAX_PROGRAMS = 1024


def layer_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """LayerNorm over the last dimension of t, where t is `x`, or `x + scale * residual`.

    Args:
        x: (..., C), fp32, bf16 or fp16; C at most 4096.
        weight, bias: (C,).
        residual: like x, its dtype may differ. Goes with `scale`, one element on x's device.
        out_dtype: of the result; None: x's.

    Returns:
        (..., C), contiguous.

    Raises:
        ValueError: shapes do not fit, x has another dtype, or only one of `residual` and `scale` is given.
    """
    _check(x, weight, residual=residual, scale=scale)
    x, residual = x.contiguous(), _contiguous(residual)
    y = torch.empty(x.shape, dtype=out_dtype or x.dtype, device=x.device)
    rows, C, BLOCK_C, BLOCK_R = _tiling(x, TILE_FORWARD)
    if rows:
        with device_guard(x.device):
            _forward_kernel[(triton.cdiv(rows, BLOCK_R),)](
                x, residual, scale, weight, bias, y, rows, eps, C, BLOCK_C, BLOCK_R
            )
    return y


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    add: Tensor | None = None,
    add_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `layer_norm_forward`.

    Args:
        dy: gradient of the result, (..., C).
        x, weight, eps, residual, scale: as in the forward pass.
        add: (..., C), added to dt; times `add_scale` (one element) if that is given.
        out_dtype: of dt; None: x's.

    Returns:
        dt, (..., C), contiguous: the gradient at t (so at x; `scale * dt` at `residual`), plus `add_scale * add`;
        dweight and dbias, (C,), in weight's dtype;
        dscale, shaped like `scale` and in its dtype: the sum of the gradient at t (without `add`) times `residual`;
        None without `residual`.

    Raises:
        ValueError: shapes do not fit, x has another dtype, only one of `residual` and `scale` is given, or
            `add_scale` without `add`.
    """
    _check(x, weight, dy=dy, residual=residual, scale=scale, add=add, add_scale=add_scale)
    dy, x, residual, add = dy.contiguous(), x.contiguous(), _contiguous(residual), _contiguous(add)
    dt = torch.empty(x.shape, dtype=out_dtype or x.dtype, device=x.device)
    rows, C, BLOCK_C, BLOCK_R = _tiling(x, TILE_BACKWARD)
    programs = _programs(triton.cdiv(rows, BLOCK_R))
    partial = torch.empty((programs, 2 * C + (residual is not None)), dtype=torch.float32, device=x.device)
    if rows:
        with device_guard(x.device):
            _backward_kernel[(programs,)](
                dy, x, residual, scale, add, add_scale, weight, dt, partial, rows, eps, C, BLOCK_C, BLOCK_R
            )
    sums = partial.sum(0)
    dweight, dbias = sums[:C].to(weight.dtype), sums[C : 2 * C].to(weight.dtype)
    dscale = None if scale is None else sums[2 * C :].reshape(scale.shape).to(scale.dtype)
    return dt, dweight, dbias, dscale


def _check(x: Tensor, weight: Tensor, **others: Tensor | None) -> None:
    check_dtype("x", x)
    if weight.dim() != 1 or x.shape[-1:] != weight.shape:
        raise ValueError(f"weight: expected shape {tuple(x.shape[-1:])}, got {tuple(weight.shape)}")
    for name in ("dy", "residual", "add"):
        other = others.get(name)
        if other is not None and other.shape != x.shape:
            raise ValueError(f"{name}: expected shape {tuple(x.shape)} like x, got {tuple(other.shape)}")
    for name in ("scale", "add_scale"):
        other = others.get(name)
        if other is not None and other.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(other.shape)}")
    if (others.get("residual") is None) != (others.get("scale") is None):
        raise ValueError("residual and scale go together: give both or neither")
    if others.get("add") is None and others.get("add_scale") is not None:
        raise ValueError("add_scale: needs add")


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _tiling(x: Tensor, tile: int) -> tuple[int, int, int, int]:
    """Rows and channels of x, and the two sizes of a tile, which are powers of two."""
    C = x.shape[-1]
    BLOCK_C = triton.next_power_of_2(C)
    return x.numel() // C, C, BLOCK_C, max(1, tile // BLOCK_C)


def _programs(tiles: int) -> int:
    """As many programs as share the tiles evenly, at most MAX_PROGRAMS."""
    rounds = triton.cdiv(tiles, MAX_PROGRAMS)
    return triton.cdiv(tiles, rounds) if tiles else 0


@triton.jit
def _load(ptr, offsets, mask):
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_sum(x_ptr, residual, scale_ptr, offsets, mask):
    """x, or x + scale * residual."""
    t = _load(x_ptr, offsets, mask)
    if scale_ptr is not None:
        t += tl.load(scale_ptr).to(tl.float32) * residual
    return t


@triton.jit
def _normalise(t, eps, columns, C: tl.constexpr):
    """Rows with mean 0 and variance 1, and the reciprocal of their standard deviation. The tile is in registers,
    so two passes cost no memory, and a large mean costs no digits."""
    mean = tl.sum(t, axis=1) / C
    centred = tl.where((columns < C)[None, :], t - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def _forward_kernel(
    x_ptr,
    residual_ptr,
    scale_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    rows,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    offsets = row[:, None] * C + columns[None, :]
    mask = (row < rows)[:, None] & (columns < C)[None, :]
    residual = 0.0
    if residual_ptr is not None:
        residual = _load(residual_ptr, offsets, mask)
    t = _load_sum(x_ptr, residual, scale_ptr, offsets, mask)
    normalised, _ = _normalise(t, eps, columns, C)
    weight = _load(weight_ptr, columns, columns < C)
    bias = _load(bias_ptr, columns, columns < C)
    tl.store(y_ptr + offsets, normalised * weight[None, :] + bias[None, :], mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr,
    x_ptr,
    residual_ptr,
    scale_ptr,
    add_ptr,
    add_scale_ptr,
    weight_ptr,
    dt_ptr,
    partial_ptr,
    rows,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    weight = _load(weight_ptr, columns, columns < C)[None, :]
    # Summed over rows only after the loop: within it, no thread waits for another one's sums.
    dweight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    dbias = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    dscale = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), tl.num_programs(0)):
        row = tile * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        offsets = row[:, None] * C + columns[None, :]
        mask = (row < rows)[:, None] & (columns < C)[None, :]
        dy = _load(dy_ptr, offsets, mask)
        residual = 0.0
        if residual_ptr is not None:
            residual = _load(residual_ptr, offsets, mask)
        t = _load_sum(x_ptr, residual, scale_ptr, offsets, mask)
        normalised, rstd = _normalise(t, eps, columns, C)
        dweight += dy * normalised
        dbias += dy
        dy *= weight
        mean = tl.sum(dy, axis=1) / C
        along = tl.sum(dy * normalised, axis=1) / C
        dt = rstd[:, None] * (dy - mean[:, None] - normalised * along[:, None])
        if residual_ptr is not None:
            dscale += dt * residual
        if add_ptr is not None:
            add = _load(add_ptr, offsets, mask)
            if add_scale_ptr is not None:
                add *= tl.load(add_scale_ptr).to(tl.float32)
            dt += add
        tl.store(dt_ptr + offsets, dt, mask=mask)
    width = 2 * C
    if residual_ptr is not None:
        width = 2 * C + 1
    partial_ptr += tl.program_id(0) * width
    tl.store(partial_ptr + columns, tl.sum(dweight, axis=0), mask=columns < C)
    tl.store(partial_ptr + C + columns, tl.sum(dbias, axis=0), mask=columns < C)
    if residual_ptr is not None:
        tl.store(partial_ptr + 2 * C, tl.sum(dscale))
