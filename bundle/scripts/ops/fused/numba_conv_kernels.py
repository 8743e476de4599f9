"""The CPU kernels of `numba_conv`, compiled by Numba: SiLU of a causal depthwise convolution, channels last.

Memory is flat, as in `numba_kernels`: x is read where it lies, its steps `stride` numbers apart.
"""

from __future__ import annotations

import numpy as np

from ..selective_scan.numba_cache import compiled
from ..selective_scan.numba_lanes import LANES, get_at, one, put_at, sigmoid, zero

__all__ = ["convolve", "convolve_range", "gradients_range"]


@compiled
def convolve(x: np.ndarray, stride: int, taps: np.ndarray, bias: np.ndarray, back: int, out: np.ndarray) -> None:
    """SiLU of a causal depthwise convolution, channels last.

    Args:
        x: flat, (back + length) steps `stride` numbers apart; the first `back` are the past, before it are zeros.
        taps: (width, channels), the last for the present step. bias: (channels,).
        out: (length, channels), contiguous.
    """
    length, channels = out.shape
    width = len(taps)
    whole = channels - channels % LANES
    flat_taps, flat_out, rest = taps.reshape(-1), out.reshape(-1), np.zeros(LANES, out.dtype)
    for t in range(length):
        first = max(0, width - 1 - back - t)  # the taps before this one see nothing
        start = (back + t - width + 1) * stride
        for k in range(0, whole, LANES):
            value = get_at(bias, k)
            for i in range(first, width):
                value = value + get_at(flat_taps, i * channels + k) * get_at(x, start + i * stride + k)
            put_at(flat_out, t * channels + k, value * sigmoid(value))
        if whole < channels:
            for k in range(whole, channels):
                rest[k - whole] = bias[k]
                for i in range(first, width):
                    rest[k - whole] += taps[i, k] * x[start + i * stride + k]
            put_at(rest, 0, get_at(rest, 0) * sigmoid(get_at(rest, 0)))
            out[t, whole:] = rest[: channels - whole]


@compiled
def convolve_range(
    x: np.ndarray,
    strides: tuple[int, int],
    taps: np.ndarray,
    bias: np.ndarray,
    tile: int,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Tasks first..last - 1 of `convolve`; a task is an image of the batch and `tile` steps of it.

    Args:
        x: flat. strides: its for batch and step.
        out: (batch, length, channels).
    """
    length = out.shape[1]
    tiles = (length + tile - 1) // tile
    for task in range(first, last):
        i, t = task // tiles, task % tiles * tile
        back = min(len(taps) - 1, t)
        past = i * strides[0] + (t - back) * strides[1]
        convolve(x[past:], strides[1], taps, bias, back, out[i, t : min(t + tile, length)])


@compiled
def before_silu(
    out: np.ndarray,
    row: int,
    x: np.ndarray,
    past: int,
    stride: int,
    first: int,
    dy: np.ndarray,
    place: int,
    flat_taps: np.ndarray,
    bias: np.ndarray,
) -> None:
    """A step's gradient at the convolution's output, from that at the SiLU's; taps before `first` see nothing."""
    channels = len(bias)
    for k in range(0, channels, LANES):
        value = get_at(bias, k)
        for tap in range(first, len(flat_taps) // channels):
            value = value + get_at(flat_taps, tap * channels + k) * get_at(x, past + tap * stride + k)
        slope = sigmoid(value)
        # d SiLU(v) / dv = sigmoid(v) (1 + v - v sigmoid(v))
        slope = slope * (one(value) + value - value * slope)
        put_at(out, row + k, get_at(dy, place + k) * slope)


@compiled
def add_products(
    sums: np.ndarray, recent: np.ndarray, row: int, x: np.ndarray, past: int, stride: int, first: int, channels: int
) -> None:
    """Add a step's part in the gradients of the taps and, in the last row, of the bias."""
    width = len(recent) // channels
    for k in range(0, channels, LANES):
        gradient = get_at(recent, row + k)
        for tap in range(first, width):
            at = tap * channels + k
            put_at(sums, at, get_at(sums, at) + gradient * get_at(x, past + tap * stride + k))
        put_at(sums, width * channels + k, get_at(sums, width * channels + k) + gradient)


@compiled
def correlate(
    dx: np.ndarray, place: int, recent: np.ndarray, oldest: int, flat_taps: np.ndarray, channels: int
) -> None:
    """dx of a step from the `width` gradients from its own on, the first of them step `oldest` of `recent`."""
    width = len(recent) // channels
    for k in range(0, channels, LANES):
        value = zero(get_at(recent, k))
        for lag in range(width):
            tap = get_at(flat_taps, (width - 1 - lag) * channels + k)
            value = value + tap * get_at(recent, (oldest + lag) % width * channels + k)
        put_at(dx, place + k, value)


@compiled
def gradients_range(
    x: np.ndarray,
    strides: tuple[int, int],
    dy: np.ndarray,
    dy_strides: tuple[int, int],
    taps: np.ndarray,
    bias: np.ndarray,
    tile: int,
    dx: np.ndarray,
    sums: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Tasks first..last - 1 of the gradients.

    A step of x has a part in the `width` steps of y from its own on, so a tile reads `width - 1` steps of dy beyond
    its end. Those steps' parts in the sums are the next tile's.

    Args:
        x, dy: flat, each with its strides for batch and step.
        dx: (batch, length, channels), a multiple of LANES channels.
        sums: (tasks, width + 1, channels): those of the taps and of the bias, to be summed over tasks.
    """
    _, length, channels = dx.shape
    width = len(taps)
    tiles = (length + tile - 1) // tile
    flat_taps, flat_dx = taps.reshape(-1), dx.reshape(-1)
    # The last `width` steps' gradients at the convolution's output, step t in row t % width.
    recent = np.zeros(width * channels, dx.dtype)
    for task in range(first, last):
        i, begin = task // tiles, task % tiles * tile
        end = min(begin + tile, length)
        task_sums = sums[task].reshape(-1)
        task_sums[:] = 0
        for t in range(begin, end + width - 1):
            row = t % width * channels
            past = i * strides[0] + (t - width + 1) * strides[1]
            if t < length:
                place = i * dy_strides[0] + t * dy_strides[1]
                before_silu(recent, row, x, past, strides[1], max(0, width - 1 - t), dy, place, flat_taps, bias)
            else:
                recent[row : row + channels] = 0
            if t < end:
                add_products(task_sums, recent, row, x, past, strides[1], max(0, width - 1 - t), channels)
            if t - width + 1 >= begin:
                correlate(flat_dx, (i * length + t - width + 1) * channels, recent, t + 1, flat_taps, channels)
