"""The CPU kernels of `numba_cpu`, compiled by Numba on first use and then kept on disk.

One call runs a range of tasks; a task is one image of the batch and `LANES` channels, from the first step to
the last. Tasks share no output and their split depends on the shapes alone: the results are the same bits for
any number of threads.

The sequence is read in tiles of `TILE` steps, whose rows are copied into scratch arrays that stay in the
processor's cache. A last tile that is shorter is filled up with steps of delta = delta u = 0, which leave the
state as it is. Inside a tile the states run one after the other, each in a register over all steps.

Arrays of any strides arrive as flat memory with an element stride for batch and step (see `numba_cpu.flat`).
States and A are (..., state, LANES), padded with zero channels; A is times log2(e).
"""

from __future__ import annotations

import numpy as np

from .numba_cache import compiled
from .numba_lanes import LANES, exp2_parts, get, get_at, ln_2, one, put, put_at, sigmoid, softplus, splat, total, zero

__all__ = ["LANES", "TILE", "backward", "forward"]

TILE = 64  # steps of a tile; in training the state before each tile is kept for backward


# --- rows of a tile ---


@compiled
def load(rows: np.ndarray, flat: np.ndarray, start: int, stride: int, steps: int, width: int) -> None:
    """Copy `width` numbers of each of `steps` steps of flat memory into rows; the steps after become zero."""
    # Not by slices: one assignment between slices costs as much as twenty of these copies.
    if width == LANES and rows.shape[1] == LANES:
        for t in range(steps):
            put(rows, t, get_at(flat, start + t * stride))
    else:
        for t in range(steps):
            for k in range(width):
                rows[t, k] = flat[start + t * stride + k]
    if steps < TILE:
        rows[steps:] = 0


@compiled
def store(flat: np.ndarray, start: int, stride: int, rows: np.ndarray, steps: int, width: int) -> None:
    """Copy the first `width` numbers of the first `steps` rows into flat memory."""
    if width == LANES and rows.shape[1] == LANES:
        for t in range(steps):
            put_at(flat, start + t * stride, get(rows, t))
    else:
        for t in range(steps):
            for k in range(width):
                flat[start + t * stride + k] = rows[t, k]


@compiled
def step_sizes(
    delta: np.ndarray, x: np.ndarray, raw: np.ndarray, u: np.ndarray, bias: np.ndarray, steps: int, smooth: bool
) -> None:
    """Add the bias to raw; delta = softplus(raw), if `smooth`, and x = delta u, zero after the last step."""
    b = get(bias, 0)
    for t in range(steps):
        value = get(raw, t) + b
        put(raw, t, value)
        if smooth:
            value = softplus(value)
        put(delta, t, value)
        put(x, t, value * get(u, t))
    if steps < TILE:
        delta[steps:] = 0
        x[steps:] = 0


# --- forward ---


@compiled
def recur(
    delta: np.ndarray, x: np.ndarray, y: np.ndarray, B: np.ndarray, C: np.ndarray, A: np.ndarray, h: np.ndarray
) -> None:
    """Carry h, (state, LANES), over a tile, and y = C . h."""
    y[:] = 0
    for n in range(A.shape[0]):
        a, state = get(A, n), get(h, n)
        for t in range(TILE):
            scale, fraction = exp2_parts(a * get(delta, t))
            scaled = scale * state
            state = scaled * fraction + (scale * state + splat(B[t, n]) * get(x, t))
            put(y, t, get(y, t) + splat(C[t, n]) * state)
        put(h, n, state)


@compiled
def gate(y: np.ndarray, u: np.ndarray, z: np.ndarray, D: np.ndarray, gated: bool) -> None:
    """y = (y + D u) SiLU(z)"""
    d = get(D, 0)
    for t in range(TILE):
        value = get(y, t) + d * get(u, t)
        if gated:
            value = value * (get(z, t) * sigmoid(get(z, t)))
        put(y, t, value)


@compiled
def forward(
    u: np.ndarray,
    delta: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    z: np.ndarray,
    strides: np.ndarray,
    A: np.ndarray,
    D: np.ndarray,
    bias: np.ndarray,
    smooth: bool,
    gated: bool,
    state: np.ndarray,
    starts: np.ndarray,
    y: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Tasks first..last - 1 of the scan: y and the last state, written over `state`.

    Args:
        u, delta, B, C, z: flat; z is not read unless gated.
        strides: (5, 2), theirs for batch and step.
        A: (blocks, state, LANES), times log2(e). D, bias: (blocks, LANES).
        smooth: whether delta goes through softplus.
        state: (batch, blocks, state, LANES).
        starts: (batch, blocks, tiles, state, LANES) takes the state before each tile; no tiles: not kept.
        y: (batch, length, channels).
    """
    _, length, channels = y.shape
    flat_y = y.reshape(-1)
    blocks, states, _ = A.shape
    scratch, projections = np.zeros((6, TILE, LANES), y.dtype), np.zeros((2, TILE, states), y.dtype)
    us, ds, xs, ys, zs, raw = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5]
    Bs, Cs = projections[0], projections[1]
    for task in range(first, last):
        i, block = task // blocks, task % blocks
        channel = block * LANES
        width = min(LANES, channels - channel)
        scratch[:] = 0
        h = state[i, block]
        for tile in range((length + TILE - 1) // TILE):
            t = tile * TILE
            steps = min(TILE, length - t)
            if starts.shape[2] > 0:
                starts[i, block, tile] = h
            load(us, u, i * strides[0, 0] + t * strides[0, 1] + channel, strides[0, 1], steps, width)
            load(raw, delta, i * strides[1, 0] + t * strides[1, 1] + channel, strides[1, 1], steps, width)
            load(Bs, B, i * strides[2, 0] + t * strides[2, 1], strides[2, 1], steps, states)
            load(Cs, C, i * strides[3, 0] + t * strides[3, 1], strides[3, 1], steps, states)
            if gated:
                load(zs, z, i * strides[4, 0] + t * strides[4, 1] + channel, strides[4, 1], steps, width)
            step_sizes(ds, xs, raw, us, bias[block], steps, smooth)
            recur(ds, xs, ys, Bs, Cs, A[block], h)
            gate(ys, us, zs, D[block], gated)
            store(flat_y, (i * length + t) * channels + channel, channels, ys, steps, width)


# --- backward ---


@compiled
def recompute(
    delta: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    A: np.ndarray,
    start: np.ndarray,
    h: np.ndarray,
    scales: np.ndarray,
    fractions: np.ndarray,
) -> None:
    """The states of a tile, h: (state, TILE + 1, LANES) from its start on, its decays, and y = C . h."""
    y[:] = 0
    for n in range(A.shape[0]):
        a, state = get(A, n), get(start, n)
        put(h, n * (TILE + 1), state)
        for t in range(TILE):
            scale, fraction = exp2_parts(a * get(delta, t))
            put(scales, n * TILE + t, scale)
            put(fractions, n * TILE + t, fraction)
            scaled = scale * state
            state = scaled * fraction + (scale * state + splat(B[t, n]) * get(x, t))
            put(h, n * (TILE + 1) + t + 1, state)
            put(y, t, get(y, t) + splat(C[t, n]) * state)


@compiled
def gate_backward(dy: np.ndarray, dz: np.ndarray, y: np.ndarray, u: np.ndarray, z: np.ndarray, D: np.ndarray) -> None:
    """dz, and dy becomes the gradient before the gate; y comes without its skip connection."""
    d = get(D, 0)
    for t in range(TILE):
        value = get(z, t)
        slope = sigmoid(value)
        silu = value * slope
        # d SiLU(z) / dz = sigmoid(z) (1 + z - SiLU(z))
        gradient = get(dy, t)
        put(dz, t, gradient * (get(y, t) + d * get(u, t)) * slope * (one(value) + value - silu))
        put(dy, t, gradient * silu)


@compiled
def adjoint(
    delta: np.ndarray,
    x: np.ndarray,
    dy: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    A: np.ndarray,
    h: np.ndarray,
    scales: np.ndarray,
    fractions: np.ndarray,
    q: np.ndarray,
    dx: np.ndarray,
    ddelta: np.ndarray,
    dA: np.ndarray,
    dB: np.ndarray,
    dC: np.ndarray,
) -> None:
    """The tile backwards. With g_t the gradient at h_t, q is a_t g_t, carried; ddelta is that of exp(delta A)."""
    dx[:] = 0
    ddelta[:] = 0
    for n in range(A.shape[0]):
        a, carry = get(A, n), get(q, n)
        sum_A = zero(a)
        for t in range(TILE - 1, -1, -1):
            gradient = get(dy, t)
            g = splat(C[t, n]) * gradient + carry
            put(dx, t, get(dx, t) + splat(B[t, n]) * g)
            dB[t, n] = total(get(x, t) * g)
            dC[t, n] = total(get(h, n * (TILE + 1) + t + 1) * gradient)
            scaled = get(scales, n * TILE + t) * g
            carry = scaled + scaled * get(fractions, n * TILE + t)
            dexponent = carry * get(h, n * (TILE + 1) + t)
            put(ddelta, t, get(ddelta, t) + dexponent * a)
            sum_A = sum_A + dexponent * get(delta, t)
        put(q, n, carry)
        put(dA, n, sum_A)


@compiled
def input_gradients(
    du: np.ndarray,
    ddelta: np.ndarray,
    dx: np.ndarray,
    dy: np.ndarray,
    u: np.ndarray,
    delta: np.ndarray,
    raw: np.ndarray,
    D: np.ndarray,
    sums: np.ndarray,
    steps: int,
    smooth: bool,
) -> None:
    """du; ddelta, which comes times log2(e), becomes the gradient at the raw delta; sums: those of D and bias."""
    d = get(D, 0)
    sum_D, sum_bias = zero(d), zero(d)
    for t in range(steps):
        gradient, value, step = get(dy, t), get(u, t), get(dx, t)
        put(du, t, step * get(delta, t) + d * gradient)
        step = step * value + ln_2(d) * get(ddelta, t)
        if smooth:
            step = step * sigmoid(get(raw, t))
        put(ddelta, t, step)
        sum_D = sum_D + gradient * value
        sum_bias = sum_bias + step
    put(sums, 0, sum_D)
    put(sums, 1, sum_bias)


@compiled
def backward(
    u: np.ndarray,
    delta: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    z: np.ndarray,
    dy: np.ndarray,
    strides: np.ndarray,
    A: np.ndarray,
    D: np.ndarray,
    bias: np.ndarray,
    smooth: bool,
    gated: bool,
    starts: np.ndarray,
    q: np.ndarray,
    du: np.ndarray,
    ddelta: np.ndarray,
    dz: np.ndarray,
    dB: np.ndarray,
    dC: np.ndarray,
    dA: np.ndarray,
    dD: np.ndarray,
    dbias: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Tasks first..last - 1 of the gradients, tiles from the last to the first.

    Args:
        u .. gated, starts: as in `forward`; dy: flat, a sixth row of strides.
        q: the gradient at the last state, (batch, blocks, state, LANES); becomes that at the first.
        du, ddelta, dz: (batch, length, channels); dz has length 0 unless gated.
        dB, dC: (blocks, batch, length, state), to be summed over blocks.
        dA: (batch, blocks, state, LANES); dD, dbias: (batch, blocks, LANES); zero at first, to be summed over
            the batch. float64, since sequences are long.
    """
    batch, length, channels = du.shape
    flat_du, flat_ddelta, flat_dz = du.reshape(-1), ddelta.reshape(-1), dz.reshape(-1)
    flat_dB, flat_dC = dB.reshape(-1), dC.reshape(-1)
    blocks, states, _ = A.shape
    scratch, projections = np.zeros((11, TILE, LANES), A.dtype), np.zeros((4, TILE, states), A.dtype)
    us, ds, xs, ys, zs, raw = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5]
    gs, dus, dds, dxs, dzs = scratch[6], scratch[7], scratch[8], scratch[9], scratch[10]
    Bs, Cs, dBs, dCs = projections[0], projections[1], projections[2], projections[3]
    h, decays = np.zeros((states, TILE + 1, LANES), A.dtype), np.zeros((2, states, TILE, LANES), A.dtype)
    dAs, sums = np.zeros((states, LANES), A.dtype), np.zeros((2, LANES), A.dtype)
    for task in range(first, last):
        i, block = task // blocks, task % blocks
        channel = block * LANES
        width = min(LANES, channels - channel)
        scratch[:] = 0
        for tile in range((length + TILE - 1) // TILE - 1, -1, -1):
            t = tile * TILE
            steps = min(TILE, length - t)
            place = (i * length + t) * channels + channel
            load(us, u, i * strides[0, 0] + t * strides[0, 1] + channel, strides[0, 1], steps, width)
            load(raw, delta, i * strides[1, 0] + t * strides[1, 1] + channel, strides[1, 1], steps, width)
            load(Bs, B, i * strides[2, 0] + t * strides[2, 1], strides[2, 1], steps, states)
            load(Cs, C, i * strides[3, 0] + t * strides[3, 1], strides[3, 1], steps, states)
            load(gs, dy, i * strides[5, 0] + t * strides[5, 1] + channel, strides[5, 1], steps, width)
            step_sizes(ds, xs, raw, us, bias[block], steps, smooth)
            recompute(ds, xs, ys, Bs, Cs, A[block], starts[i, block, tile], h, decays[0], decays[1])
            if gated:
                load(zs, z, i * strides[4, 0] + t * strides[4, 1] + channel, strides[4, 1], steps, width)
                gate_backward(gs, dzs, ys, us, zs, D[block])
                store(flat_dz, place, channels, dzs, steps, width)
            adjoint(ds, xs, gs, Bs, Cs, A[block], h, decays[0], decays[1], q[i, block], dxs, dds, dAs, dBs, dCs)
            input_gradients(dus, dds, dxs, gs, us, ds, raw, D[block], sums, steps, smooth)
            dA[i, block] += dAs
            dD[i, block] += sums[0]
            dbias[i, block] += sums[1]
            store(flat_du, place, channels, dus, steps, width)
            store(flat_ddelta, place, channels, dds, steps, width)
            store(flat_dB, ((block * batch + i) * length + t) * states, states, dBs, steps, states)
            store(flat_dC, ((block * batch + i) * length + t) * states, states, dCs, steps, states)
