"""The Triton kernels of the selective scan; `triton_gpu.py` launches them, `three_phase.py` says how they
fit together.

A program is one warp. It walks over tiles of STEPS positions x BLOCK channels x all states: Triton's default
layout then keeps the positions in each thread's registers and spreads channels and states over the lanes, so
that a scan along the positions needs no exchange between threads, and what depends on (position, channel)
alone, such as softplus, is computed once in the two-dimensional layout of its load.

Positions beyond the end load delta = 0 and u = 0: they leave the state as it is.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _row(x, s, k):
    """x[k : k + 1] of x, (steps, states, channels), with s = arange(steps): free, as the steps lie in registers."""
    # As integers, since x + 0 is a no-op for them: a compiler may not drop it from floats.
    bits = tl.where((s == k)[:, None, None], x.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, 0, keep_dims=True).to(tl.float32, bitcast=True)


@triton.jit
def _with_row(x, s, k, row):
    """x with x[k : k + 1] = row; free like `_row`."""
    return tl.where((s == k)[:, None, None], row, x)


@triton.jit
def _softplus(x):
    # log1p(e) = 2 atanh(e / (2 + e)), as a series: log(1 + e) would lose the digits of a small e.
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    r = s * s
    series = 1.0 / 17
    series = series * r + 1.0 / 15
    series = series * r + 1.0 / 13
    series = series * r + 1.0 / 11
    series = series * r + 1.0 / 9
    series = series * r + 1.0 / 7
    series = series * r + 1.0 / 5
    series = series * r + 1.0 / 3
    series = series * r + 1.0
    # Not maximum(x, 0): it would turn NaN into 0.
    return tl.where(x < 0.0, 0.0, x) + 2.0 * s * series


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _load(base, offset, mask):
    return tl.load(base + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _step_size(raw, bias, mask, SOFTPLUS: tl.constexpr):
    delta = raw + bias
    if SOFTPLUS:
        delta = _softplus(delta)
    return tl.where(mask, delta, 0.0)


@triton.jit
def chunk_ends(
    # For each chunk: the state at its end, from zero; and its sum of delta. In reverse: q at its start.
    x, delta, z, B, A, bias, ends, sums,
    x_batch, x_time, delta_batch, delta_time, z_batch, z_time, B_batch, B_time,
    length, channels, states, chunk, chunks,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr,
    STEPS: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Forward, x is u; in reverse x is dy, scaled by the gate, and B is C: q_t = a_t (C_t dy_t + q_(t+1))."""
    index = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, STATES)
    s = tl.arange(0, STEPS)
    in_d = d < channels
    in_n = n < states
    state_mask = in_n[:, None] & in_d[None, :]
    start = index.to(tl.int64) * chunk
    x += batch * x_batch + start * x_time
    delta += batch * delta_batch + start * delta_time
    z += batch * z_batch + start * z_time
    B += batch * B_batch + start * B_time
    steps = tl.minimum(chunk, length - start).to(tl.int32)
    decay_rate = _load(A, d[None, :] * states + n[:, None], state_mask) * LOG2_E
    bias_d = _load(bias, d, in_d)[None, :]
    h = tl.zeros([1, STATES, BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    tiles = tl.cdiv(steps, STEPS)
    for i in range(0, tiles):
        t = (tiles - 1 - i if REVERSE else i) * STEPS + s
        mask = (t < steps)[:, None] & in_d[None, :]
        values = _load(x, t[:, None] * x_time + d[None, :], mask)
        step = _step_size(_load(delta, t[:, None] * delta_time + d[None, :], mask), bias_d, mask, SOFTPLUS)
        rows = _load(B, t[:, None] * B_time + n[None, :], (t < steps)[:, None] & in_n[None, :])
        if REVERSE:
            if GATED:
                gate = _load(z, t[:, None] * z_time + d[None, :], mask)
                values = values * gate * _sigmoid(gate)
        else:
            values = values * step
        decay = tl.exp2(step[:, None, :] * decay_rate[None, :, :])
        new = values[:, None, :] * rows[:, :, None]
        for k in tl.static_range(STEPS):
            if REVERSE:
                h = _row(decay, s, STEPS - 1 - k) * (_row(new, s, STEPS - 1 - k) + h)
            else:
                h = _row(decay, s, k) * h + _row(new, s, k)
        total += tl.sum(step, 0)
    offset = (batch * chunks + index) * channels
    tl.store(ends + offset * states + n[:, None] * channels + d[None, :], tl.sum(h, 0), mask=state_mask)
    tl.store(sums + offset + d, total, mask=in_d)


@triton.jit
def chunk_starts(
    # In place, each chunk's end from zero becomes the state that enters it.
    ends, sums, A, initial, last,
    channels, states, chunks,
    REVERSE: tl.constexpr, HAS_INITIAL: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The recurrence over chunks, CHUNKS at a time, for BLOCK channels of one state and batch item."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    in_d = d < channels
    rate = _load(A, d * states + n, in_d)[None, :] * LOG2_E
    boundary = (batch * channels + d) * states + n  # initial and last are (batch, channels, states)
    h = tl.zeros([1, 1, BLOCK], tl.float32)
    if HAS_INITIAL:
        h += _load(initial, boundary, in_d)[None, None, :]
    c = tl.arange(0, CHUNKS)
    row = batch * chunks + (chunks - 1 - c if REVERSE else c)
    direction = -CHUNKS if REVERSE else CHUNKS
    end_pointers = ends + (row[:, None] * states + n) * channels + d[None, :]
    sum_pointers = sums + row[:, None] * channels + d[None, :]
    mask = (c < chunks)[:, None] & in_d[None, :]
    end = tl.load(end_pointers, mask=mask, other=0.0)
    total = tl.load(sum_pointers, mask=mask, other=0.0)
    for i in range(0, tl.cdiv(chunks, CHUNKS)):
        # Ask for the next rows before these are used: the loads take longer than the arithmetic.
        next_pointers = end_pointers + direction * states * channels
        sum_pointers += direction * channels
        next_mask = ((i + 1) * CHUNKS + c < chunks)[:, None] & in_d[None, :]
        next_end = tl.load(next_pointers, mask=next_mask, other=0.0)
        next_total = tl.load(sum_pointers, mask=next_mask, other=0.0)
        decay = tl.exp2(total * rate)[:, None, :]
        rows = end[:, None, :]
        for k in tl.static_range(CHUNKS):
            before = h
            h = _row(decay, c, k) * h + _row(rows, c, k)
            rows = _with_row(rows, c, k, before)
        tl.store(end_pointers, tl.sum(rows, 1), mask=mask)
        end, total, mask, end_pointers = next_end, next_total, next_mask, next_pointers
    tl.store(last + boundary, tl.sum(tl.sum(h, 0), 0), mask=in_d)


@triton.jit
def outputs(
    # y from each chunk's true start state; if SAVE, also the state before each tile.
    u, delta, z, B, C, A, D, bias, starts, y, saved,
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time, B_batch, B_time, C_batch, C_time,
    length, channels, states, chunk, chunks, saved_tiles,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, SAVE: tl.constexpr,
    STEPS: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, STATES)
    s = tl.arange(0, STEPS)
    in_d = d < channels
    in_n = n < states
    state_mask = in_n[:, None] & in_d[None, :]
    start = index.to(tl.int64) * chunk
    u += batch * u_batch + start * u_time
    delta += batch * delta_batch + start * delta_time
    z += batch * z_batch + start * z_time
    B += batch * B_batch + start * B_time
    C += batch * C_batch + start * C_time
    y += (batch * length + start) * channels
    saved += (batch * saved_tiles + start // STEPS) * channels * states
    steps = tl.minimum(chunk, length - start).to(tl.int32)
    decay_rate = _load(A, d[None, :] * states + n[:, None], state_mask) * LOG2_E
    bias_d = _load(bias, d, in_d)[None, :]
    D_d = _load(D, d, in_d)[None, :]
    state_offset = n[:, None] * channels + d[None, :]
    h = tl.load(starts + (batch * chunks + index) * channels * states + state_offset, mask=state_mask, other=0.0)
    h = h[None, :, :]
    for i in range(0, tl.cdiv(steps, STEPS)):
        t = i * STEPS + s
        mask = (t < steps)[:, None] & in_d[None, :]
        row_mask = (t < steps)[:, None] & in_n[None, :]
        x = _load(u, t[:, None] * u_time + d[None, :], mask)
        step = _step_size(_load(delta, t[:, None] * delta_time + d[None, :], mask), bias_d, mask, SOFTPLUS)
        B_t = _load(B, t[:, None] * B_time + n[None, :], row_mask)
        C_t = _load(C, t[:, None] * C_time + n[None, :], row_mask)
        if SAVE:
            # h + 0.0: Triton 3.0 crashes while it compiles the sum of what the loop carries.
            tl.store(saved + state_offset, tl.sum(h + 0.0, 0), mask=state_mask)
            saved += channels * states
        decay = tl.exp2(step[:, None, :] * decay_rate[None, :, :])
        all_h = (step * x)[:, None, :] * B_t[:, :, None]
        for k in tl.static_range(STEPS):
            h = _row(decay, s, k) * h + _row(all_h, s, k)
            all_h = _with_row(all_h, s, k, h)
        out = tl.sum(all_h * C_t[:, :, None], 1) + D_d * x
        if GATED:
            gate = _load(z, t[:, None] * z_time + d[None, :], mask)
            out = out * gate * _sigmoid(gate)
        tl.store(y + t[:, None] * channels + d[None, :], out, mask=mask)


@triton.jit
def gradients(
    # One chunk of one batch item and GROUP channels, tiles from the last to the first.
    u, delta, z, B, C, A, D, bias, dy, saved, carry,
    du, ddelta, dz, dB, dC, dA, dD, dbias,
    u_batch, u_time, delta_batch, delta_time, z_batch, z_time, B_batch, B_time, C_batch, C_time,
    dy_batch, dy_time, du_batch, du_time, ddelta_batch, ddelta_time, dz_batch, dz_time,
    length, channels, states, chunk, chunks, saved_tiles, groups,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, GROUP: tl.constexpr,
    STEPS: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """With c_t = C_t dy_t, the state's gradient is g_t = c_t + a_(t+1) g_(t+1).

    `carry` holds what enters a chunk from behind, a g of the next position, and then hands g from tile to tile.
    dA, dD and dbias are sums over the chunk (dA is at delta A, not yet at A_log); dB and dC over the group.
    """
    index = tl.program_id(0)
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, STATES)
    s = tl.arange(0, STEPS)
    in_n = n < states
    start = index.to(tl.int64) * chunk
    u += batch * u_batch + start * u_time
    delta += batch * delta_batch + start * delta_time
    z += batch * z_batch + start * z_time
    B += batch * B_batch + start * B_time
    C += batch * C_batch + start * C_time
    dy += batch * dy_batch + start * dy_time
    du += batch * du_batch + start * du_time
    ddelta += batch * ddelta_batch + start * ddelta_time
    dz += batch * dz_batch + start * dz_time
    saved += (batch * saved_tiles + start // STEPS) * channels * states
    rows = ((batch * groups + group) * length + start) * states
    dB += rows
    dC += rows
    part = batch * chunks + index
    carry += part * channels * states
    dA += part * channels * states
    dD += part * channels
    dbias += part * channels
    steps = tl.minimum(chunk, length - start).to(tl.int32)
    tiles = tl.cdiv(steps, STEPS)
    saved += (tiles - 1).to(tl.int64) * channels * states
    for i in range(0, tiles):
        t = (tiles - 1 - i) * STEPS + s
        row_mask = (t < steps)[:, None] & in_n[None, :]
        sum_B = tl.zeros([STEPS, STATES, BLOCK], tl.float32)
        sum_C = tl.zeros([STEPS, STATES, BLOCK], tl.float32)
        for block in range(0, GROUP // BLOCK):
            d = group * GROUP + block * BLOCK + tl.arange(0, BLOCK)
            in_d = d < channels
            mask = (t < steps)[:, None] & in_d[None, :]
            state_mask = in_n[:, None] & in_d[None, :]
            state_offset = n[:, None] * channels + d[None, :]
            rate = _load(A, d[None, :] * states + n[:, None], state_mask)
            bias_d = _load(bias, d, in_d)[None, :]
            x = _load(u, t[:, None] * u_time + d[None, :], mask)
            raw = _load(delta, t[:, None] * delta_time + d[None, :], mask) + bias_d
            step = _step_size(raw, 0.0, mask, SOFTPLUS)
            # The last position of the chunk has decay 1 behind it: `carry` already holds the decayed gradient.
            behind = (t + 1 < steps)[:, None] & in_d[None, :]
            following = _load(delta, (t + 1)[:, None] * delta_time + d[None, :], behind)
            following = _step_size(following, bias_d, behind, SOFTPLUS)
            dout = _load(dy, t[:, None] * dy_time + d[None, :], mask)

            h = tl.load(saved + state_offset, mask=state_mask, other=0.0)[None, :, :]
            # Loaded anew for each block, from the cache: kept in registers they would push others out to memory.
            B_t = _load(B, t[:, None] * B_time + n[None, :], row_mask)[:, :, None]
            C_t = _load(C, t[:, None] * C_time + n[None, :], row_mask)[:, :, None]
            rate2 = (rate * LOG2_E)[None, :, :]
            v = (step * x)[:, None, :]
            decay = tl.exp2(step[:, None, :] * rate2)
            all_h = v * B_t
            for k in tl.static_range(STEPS):
                h = _row(decay, s, k) * h + _row(all_h, s, k)
                all_h = _with_row(all_h, s, k, h)
            if GATED:
                gate = _load(z, t[:, None] * z_time + d[None, :], mask)
                sigmoid = _sigmoid(gate)
                D_d = _load(D, d, in_d)[None, :]
                out = tl.sum(all_h * C_t, 1) + D_d * x
                silu = gate * sigmoid
                # d SiLU(z) / dz = sigmoid(z) (1 + z - SiLU(z))
                dgate = dout * out * sigmoid * (1.0 + gate - silu)
                tl.store(dz + t[:, None] * dz_time + d[None, :], dgate, mask=mask)
                dout = dout * silu
            else:
                D_d = _load(D, d, in_d)[None, :]
            sum_C += all_h * dout[:, None, :]

            pointers = carry + state_offset
            g = tl.load(pointers, mask=state_mask, other=0.0)[None, :, :]
            decay = tl.exp2(following[:, None, :] * rate2)
            all_g = C_t * dout[:, None, :]
            for k in tl.static_range(STEPS):
                g = _row(decay, s, STEPS - 1 - k) * g + _row(all_g, s, STEPS - 1 - k)
                all_g = _with_row(all_g, s, STEPS - 1 - k, g)
            tl.store(pointers, tl.sum(g, 0), mask=state_mask)
            sum_B += all_g * v
            dv = tl.sum(all_g * B_t, 1)
            # The gradient at delta_t A is g_t a_t h_(t-1), and a_t h_(t-1) = h_t - v_t B_t.
            at_exponent = all_g * (all_h - v * B_t)
            dstep = dv * x + tl.sum(at_exponent * rate[None, :, :], 1)
            if SOFTPLUS:
                dstep = dstep * _sigmoid(raw)
            dstep = tl.where(mask, dstep, 0.0)
            dA_tile = tl.sum(at_exponent * step[:, None, :], 0)
            dD_tile = tl.sum(dout * x, 0)
            dbias_tile = tl.sum(dstep, 0)
            if i > 0:
                dA_tile += tl.load(dA + state_offset, mask=state_mask, other=0.0)
                dD_tile += tl.load(dD + d, mask=in_d, other=0.0)
                dbias_tile += tl.load(dbias + d, mask=in_d, other=0.0)
            tl.store(dA + state_offset, dA_tile, mask=state_mask)
            tl.store(dD + d, dD_tile, mask=in_d)
            tl.store(dbias + d, dbias_tile, mask=in_d)
            tl.store(du + t[:, None] * du_time + d[None, :], dv * step + D_d * dout, mask=mask)
            tl.store(ddelta + t[:, None] * ddelta_time + d[None, :], dstep, mask=mask)
        tl.store(dB + t[:, None] * states + n[None, :], tl.sum(sum_B, 2), mask=row_mask)
        tl.store(dC + t[:, None] * states + n[None, :], tl.sum(sum_C, 2), mask=row_mask)
        saved -= channels * states
        # The next tile reads what this one wrote to carry, dA, dD and dbias, perhaps in other lanes.
        tl.debug_barrier()
