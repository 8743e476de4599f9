"""Causal depthwise convolution and SiLU over channels-last tokens: Triton kernels, forward and backward.

The value before the SiLU is not kept: the backward pass computes it again from the input.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device_guard import device_guard
from . import check_dtype

__all__ = ["causal_conv_silu_backward", "causal_conv_silu_forward"]

MAX_WIDTH = 4  # the kernels keep so many positions in registers
MAX_BLOCK_D = 128  # channels of a tile of (segments, channels)
TILE_FORWARD = 512  # its elements: four channels of one segment a thread
TILE_BACKWARD = 256  # two channels a thread, with all that it keeps of them
# Positions of a segment, a multiple of four: as few as give about so many programs, within these bounds. At each end
# of a segment three positions are read twice, and each program of the backward pass writes its partial sums.
PROGRAMS_FORWARD, PROGRAMS_BACKWARD = 4096, 2048
MIN_STEPS, MAX_STEPS = 16, 128


def causal_conv_silu_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of a depthwise convolution in which each position sees itself and the K - 1 before it.

    Args:
        x: (batch, length, D), fp32, bf16 or fp16; may be a view whose last stride is 1.
        weight: (D, K), K from 1 to 4; the last tap is the position itself. bias: (D,).

    Returns:
        (batch, length, D), contiguous, in x's dtype.

    Raises:
        ValueError: a shape or x's dtype does not fit, K is larger than 4, or x's last stride is not 1.
    """
    _check(x, weight, bias)
    batch, length, D = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        BLOCK_S, BLOCK_D, steps, blocks = _walk(batch, length, D, TILE_FORWARD, PROGRAMS_FORWARD)
        with device_guard(x.device):
            _forward_kernel[(batch * blocks, triton.cdiv(D, BLOCK_D))](
                x, weight, bias, y, length, blocks, steps,
                x.stride(0), x.stride(1), D, weight.shape[1], BLOCK_S, BLOCK_D,
            )  # fmt: skip
    return y


def causal_conv_silu_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `causal_conv_silu_forward`.

    Args:
        dy: gradient of the result, (batch, length, D).
        x, weight, bias: as in the forward pass.
        dx: (batch, length, D), filled with x's gradient; may be a view whose last stride is 1, but no part of x.

    Returns:
        dweight, (D, K), and dbias, (D,), contiguous, in weight's dtype.

    Raises:
        ValueError: a shape or x's dtype does not fit, K is larger than 4, or the last stride of x or dx is not 1.
    """
    _check(x, weight, bias, dy=dy, dx=dx)
    batch, length, D = x.shape
    K = weight.shape[1]
    BLOCK_S, BLOCK_D, steps, blocks = _walk(batch, length, D, TILE_BACKWARD, PROGRAMS_BACKWARD)
    partial = torch.empty((batch * blocks, D * (K + 1)), dtype=torch.float32, device=x.device)
    if x.numel():
        with device_guard(x.device):
            _backward_kernel[(batch * blocks, triton.cdiv(D, BLOCK_D))](
                dy.contiguous(), x, weight, bias, dx, partial, length, blocks, steps,
                x.stride(0), x.stride(1), dx.stride(0), dx.stride(1), D, K, BLOCK_S, BLOCK_D,
            )  # fmt: skip
    sums = partial.sum(0)
    return sums[: D * K].view(D, K).to(weight.dtype), sums[D * K :].to(bias.dtype)


def _check(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor | None = None, dx: Tensor | None = None) -> None:
    check_dtype("x", x)
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (batch, length, channels), got {tuple(x.shape)}")
    D = x.shape[2]
    if weight.dim() != 2 or weight.shape[0] != D or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise ValueError(f"weight: expected shape ({D}, 1 to {MAX_WIDTH}), got {tuple(weight.shape)}")
    if bias.shape != (D,):
        raise ValueError(f"bias: expected shape ({D},), got {tuple(bias.shape)}")
    for name, tensor in (("dy", dy), ("dx", dx)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name}: expected shape {tuple(x.shape)} like x, got {tuple(tensor.shape)}")
    for name, tensor in (("x", x), ("dx", dx)):
        if tensor is not None and D > 1 and tensor.stride(2) != 1:
            raise ValueError(f"{name}: expected a last stride of 1, got strides {tensor.stride()}")
    if not (weight.is_contiguous() and bias.is_contiguous()):
        raise ValueError("weight and bias: expected contiguous")


def _walk(batch: int, length: int, D: int, tile: int, programs: int) -> tuple[int, int, int, int]:
    """The two sizes of a tile, the positions of a segment (powers of two) and the programs of a batch item."""
    BLOCK_D = min(MAX_BLOCK_D, triton.next_power_of_2(D))
    BLOCK_S = tile // BLOCK_D
    tile_steps = batch * triton.cdiv(length, BLOCK_S) * triton.cdiv(D, BLOCK_D)
    steps = min(MAX_STEPS, max(MIN_STEPS, triton.next_power_of_2(tile_steps // programs)))
    return BLOCK_S, BLOCK_D, steps, triton.cdiv(length, BLOCK_S * steps)


@triton.jit
def _load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _tap(weight_ptr, channel, age, D: tl.constexpr, K: tl.constexpr):
    """The weight of the position `age` steps ago; zero beyond the kernel's width."""
    return _load(weight_ptr + channel * K + (K - 1 - age), (channel < D) & (age < K))[None, :]


@triton.jit
def _weights(weight_ptr, bias_ptr, channel, D: tl.constexpr, K: tl.constexpr):
    w0 = _tap(weight_ptr, channel, 0, D, K)
    w1 = _tap(weight_ptr, channel, 1, D, K)
    w2 = _tap(weight_ptr, channel, 2, D, K)
    w3 = _tap(weight_ptr, channel, 3, D, K)
    return w0, w1, w2, w3, _load(bias_ptr + channel, channel < D)[None, :]


@triton.jit
def _load_past_three(at, stride, start, length, inside):
    """The inputs one to three positions before a segment: zero before the first one."""
    mask = inside & (start > 0) & (start < length)
    return _load(at - stride, mask), _load(at - 2 * stride, mask), _load(at - 3 * stride, mask)


@triton.jit
def _load_four(at, stride, t, length, inside):
    """Positions t, t + 1, t + 2 and t + 3 of each segment: all in flight together."""
    a = _load(at, inside & (t < length))
    b = _load(at + stride, inside & (t + 1 < length))
    c = _load(at + 2 * stride, inside & (t + 2 < length))
    d = _load(at + 3 * stride, inside & (t + 3 < length))
    return a, b, c, d


@triton.jit
def _convolve(x0, x1, x2, x3, w0, w1, w2, w3, bias):
    """Named by age: x1 is one position ago."""
    return bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3


@triton.jit
def _convolve_silu(x0, x1, x2, x3, w0, w1, w2, w3, bias):
    pre = _convolve(x0, x1, x2, x3, w0, w1, w2, w3, bias)
    return pre * tl.sigmoid(pre)


@triton.jit
def _forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    length,
    blocks,
    steps,
    x_stride_b,
    x_stride_t,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each row of the tile walks along a segment of `steps` positions, four at a time (a to d), and keeps the last
    three inputs, so that each is read once."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    t = (((tl.program_id(0) % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)) * steps)[:, None]
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (channel < D)[None, :]
    x_at = x_ptr + item * x_stride_b + t.to(tl.int64) * x_stride_t + channel[None, :]
    y_at = y_ptr + item * length * D + t.to(tl.int64) * D + channel[None, :]
    w0, w1, w2, w3, bias = _weights(weight_ptr, bias_ptr, channel, D, K)
    x1, x2, x3 = _load_past_three(x_at, x_stride_t, t, length, inside)
    for _ in range(0, steps, 4):
        xa, xb, xc, xd = _load_four(x_at, x_stride_t, t, length, inside)
        ya = _convolve_silu(xa, x1, x2, x3, w0, w1, w2, w3, bias)
        yb = _convolve_silu(xb, xa, x1, x2, w0, w1, w2, w3, bias)
        yc = _convolve_silu(xc, xb, xa, x1, w0, w1, w2, w3, bias)
        yd = _convolve_silu(xd, xc, xb, xa, w0, w1, w2, w3, bias)
        tl.store(y_at, ya, mask=inside & (t < length))
        tl.store(y_at + D, yb, mask=inside & (t + 1 < length))
        tl.store(y_at + 2 * D, yc, mask=inside & (t + 2 < length))
        tl.store(y_at + 3 * D, yd, mask=inside & (t + 3 < length))
        x1, x2, x3 = xd, xc, xb
        t += 4
        x_at += 4 * x_stride_t
        y_at += 4 * D


@triton.jit
def _pre_gradient(dy, x0, x1, x2, x3, w0, w1, w2, w3, bias):
    """Gradient before the SiLU at one position."""
    pre = _convolve(x0, x1, x2, x3, w0, w1, w2, w3, bias)
    sigmoid = tl.sigmoid(pre)
    return dy * sigmoid * (1 + pre * (1 - sigmoid))


@triton.jit
def _pre_gradient_four(ya, yb, yc, yd, xa, xb, xc, xd, x1, x2, x3, w0, w1, w2, w3, bias):
    a = _pre_gradient(ya, xa, x1, x2, x3, w0, w1, w2, w3, bias)
    b = _pre_gradient(yb, xb, xa, x1, x2, w0, w1, w2, w3, bias)
    c = _pre_gradient(yc, xc, xb, xa, x1, w0, w1, w2, w3, bias)
    d = _pre_gradient(yd, xd, xc, xb, xa, w0, w1, w2, w3, bias)
    return a, b, c, d


@triton.jit
def _store_past_three(at, stride, t, length, mask, da, db, dc, d1, d2, d3, w0, w1, w2, w3):
    """Gradients of the inputs one to three steps before t: only now are all the positions known that they act on."""
    tl.store(at - 3 * stride, w0 * d3 + w1 * d2 + w2 * d1 + w3 * da, mask=mask & (t - 3 < length))
    tl.store(at - 2 * stride, w0 * d2 + w1 * d1 + w2 * da + w3 * db, mask=mask & (t - 2 < length))
    tl.store(at - stride, w0 * d1 + w1 * da + w2 * db + w3 * dc, mask=mask & (t - 1 < length))


@triton.jit
def _store_sums(partial_ptr, channel, dw0, dw1, dw2, dw3, dbias, D: tl.constexpr, K: tl.constexpr):
    """Sums over the segments, laid out as weight (D, K) and then bias (D,)."""
    tl.store(partial_ptr + channel * K + (K - 1), tl.sum(dw0, axis=0), mask=channel < D)
    if K > 1:
        tl.store(partial_ptr + channel * K + (K - 2), tl.sum(dw1, axis=0), mask=channel < D)
    if K > 2:
        tl.store(partial_ptr + channel * K + (K - 3), tl.sum(dw2, axis=0), mask=channel < D)
    if K > 3:
        tl.store(partial_ptr + channel * K + (K - 4), tl.sum(dw3, axis=0), mask=channel < D)
    tl.store(partial_ptr + D * K + channel, tl.sum(dbias, axis=0), mask=channel < D)


@triton.jit
def _backward_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    partial_ptr,
    length,
    blocks,
    steps,
    x_stride_b,
    x_stride_t,
    dx_stride_b,
    dx_stride_t,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Walks like the forward pass and keeps the last three pre-activation gradients too (d1 is one position old), so
    that the SiLU and its derivative are computed once for each position, and for the three after the segment, on
    which its last inputs act."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    start = (((tl.program_id(0) % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)) * steps)[:, None]
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (channel < D)[None, :]
    dy_at = dy_ptr + item * length * D + start.to(tl.int64) * D + channel[None, :]
    x_at = x_ptr + item * x_stride_b + start.to(tl.int64) * x_stride_t + channel[None, :]
    dx_at = dx_ptr + item * dx_stride_b + start.to(tl.int64) * dx_stride_t + channel[None, :]
    w0, w1, w2, w3, bias = _weights(weight_ptr, bias_ptr, channel, D, K)
    x1, x2, x3 = _load_past_three(x_at, x_stride_t, start, length, inside)
    zero = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    d1, d2, d3 = zero, zero, zero
    dw0, dw1, dw2, dw3, dbias = zero, zero, zero, zero, zero
    t = start
    for _ in range(0, steps, 4):
        xa, xb, xc, xd = _load_four(x_at, x_stride_t, t, length, inside)
        ya, yb, yc, yd = _load_four(dy_at, D, t, length, inside)
        da, db, dc, dd = _pre_gradient_four(ya, yb, yc, yd, xa, xb, xc, xd, x1, x2, x3, w0, w1, w2, w3, bias)
        own = inside & (t > start)  # what lies before the start, the segment before writes
        _store_past_three(dx_at, dx_stride_t, t, length, own, da, db, dc, d1, d2, d3, w0, w1, w2, w3)
        tl.store(dx_at, w0 * da + w1 * db + w2 * dc + w3 * dd, mask=inside & (t < length))
        dw0 += da * xa + db * xb + dc * xc + dd * xd
        dw1 += da * x1 + db * xa + dc * xb + dd * xc
        dw2 += da * x2 + db * x1 + dc * xa + dd * xb
        dw3 += da * x3 + db * x2 + dc * x1 + dd * xa
        dbias += da + db + dc + dd
        x1, x2, x3, d1, d2, d3 = xd, xc, xb, dd, dc, db
        t += 4
        x_at += 4 * x_stride_t
        dy_at += 4 * D
        dx_at += 4 * dx_stride_t
    xa, xb, xc, xd = _load_four(x_at, x_stride_t, t, length, inside)
    ya, yb, yc, yd = _load_four(dy_at, D, t, length, inside)
    da, db, dc, dd = _pre_gradient_four(ya, yb, yc, yd, xa, xb, xc, xd, x1, x2, x3, w0, w1, w2, w3, bias)
    _store_past_three(dx_at, dx_stride_t, t, length, inside, da, db, dc, d1, d2, d3, w0, w1, w2, w3)
    partial_ptr += tl.program_id(0) * (D * (K + 1))
    _store_sums(partial_ptr, channel, dw0, dw1, dw2, dw3, dbias, D, K)
