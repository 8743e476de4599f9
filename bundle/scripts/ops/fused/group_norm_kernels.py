"""The Triton kernels of GroupNorm and ReLU; `group_norm.py` launches them and says what they add up to."""

from __future__ import annotations

import triton
import triton.language as tl


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
def moments_kernel(
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
def combine_moments_kernel(
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
def apply_kernel(
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
def sums_kernel(
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
def combine_sums_kernel(
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
def dx_kernel(
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
