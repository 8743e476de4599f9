"""The selective scan in plain PyTorch, for any device: parallel along the sequence, memory O(length).

The sequence is cut into tiles that run one after the other and hand on the state, so that the tensors of size
length x state exist for one tile only (on a CPU they stay in the cache). A tile is cut again, into chunks
that run side by side, in three phases:

1. each chunk's end state, starting from zero;
2. the recurrence over the chunks: a chunk decays the state by exp(A * its sum of delta), whatever its length;
3. each chunk again, now from its true start state.

Backward keeps each tile's start state, recomputes the tile's states from it, and runs the adjoint the same
way. With g_t the gradient at h_t and a_t = exp(delta_t A), the adjoint is g_t = C_t dy_t + a_(t+1) g_(t+1).
It is run on q_t = a_t g_t = a_t C_t dy_t + a_t q_(t+1): the forward recurrence with time reversed.

Tensors inside a tile are (steps, batch, state, chunks, channels), "step" being the position in a chunk: then
one step of all chunks is one contiguous block, and every broadcast is along the innermost axis.

Non-finite inputs give non-finite outputs where naive has them, for states that decay (delta A <= 0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

LOG2_E = 1 / math.log(2)

# Elements (batch x state x tile x channels) of one tile. CPU: the two to four tensors of that size that a
# pass needs stay in the last-level cache. Others: large, so that a whole scan takes few kernel launches.
TILE_ELEMENTS_CPU = 2**20
TILE_ELEMENTS_GPU = 2**26
# Elements of one step of all chunks, CPU: enough for PyTorch to use two threads and to hide a call's cost.
STEP_ELEMENTS_CPU = 2**16
# Chunk length on other devices: 2 * STEPS_GPU launches a tile, each over 1 / STEPS_GPU of it.
STEPS_GPU = 32
# A tile's start state is kept for backward, so the shortest tile bounds that memory.
SHORTEST_TILE = 32
# Up to this many chunks the recurrence over them (phase 2) runs step by step.
SEQUENTIAL_CHUNKS = 64


class Inputs(NamedTuple):
    """The arguments of the scan; A, now (state, channels), D and delta_bias in the accumulators' dtype."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool


class Segment(NamedTuple):
    """`steps * chunks` consecutive positions from `start` on."""

    start: int
    steps: int
    chunks: int


class Tile(NamedTuple):
    """One segment of the inputs as (steps, batch, state or 1, chunks, channels or 1)."""

    u: Tensor
    raw: Tensor  # delta with its bias, before softplus
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None: it can."""
    return None


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The scan in tiles; arguments, shapes and dtypes as in `selective_scan`."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    A, D, delta_bias = (None if t is None else t.to(dtype) for t in (A, D, delta_bias))
    state = A.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(dtype)
    # Channels innermost, and really in memory: tensors inside a tile inherit their layout from A.
    A, state = A.t().contiguous(), state.transpose(1, 2).contiguous()
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    tensors = [t for t in (*inputs, state) if isinstance(t, Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        y, last_state = _Scan.apply(*inputs, state)
    else:
        # Not through the Function: tracing and export then see plain operations.
        if torch.jit.is_tracing():
            # They write in place, which the traced file, whose weights want gradients, otherwise refuses to do.
            inputs, state = Inputs(*(t.detach() if isinstance(t, Tensor) else t for t in inputs)), state.detach()
        y, last_state, _ = _forward(inputs, state)
    return y, last_state.transpose(1, 2)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *args: Tensor | bool | None) -> tuple[Tensor, Tensor]:
        *arguments, state = args
        inputs = Inputs(*arguments)
        y, last_state, starts = _forward(inputs, state, keep_starts=True)
        ctx.delta_softplus = inputs.delta_softplus
        ctx.save_for_backward(*inputs[:-1], starts)
        ctx.set_materialize_grads(False)
        return y, last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor | None, dlast_state: Tensor | None) -> tuple[Tensor | None, ...]:
        *arguments, starts = ctx.saved_tensors
        with torch.autocast(starts.device.type, enabled=False):
            return _backward(Inputs(*arguments, ctx.delta_softplus), starts, dy, dlast_state)


def _forward(inputs: Inputs, state: Tensor, keep_starts: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, the last state and, if asked for, the state before each tile; states: (batch, state, channels)."""
    y = torch.empty_like(inputs.u, memory_format=torch.contiguous_format)
    segments = _tiles(inputs)
    starts = state.new_empty(len(segments), *state.shape) if keep_starts else None
    for i, segment in enumerate(segments):
        if starts is not None:
            starts[i] = state
        tile = _load(inputs, segment)
        _, states, state = _states(tile, inputs.A, state)
        _store(y, segment, _output(inputs, tile, states[1:].mul_(tile.C)))
    return y, state, starts


def _tiles(inputs: Inputs) -> list[Segment]:
    # int: under torch.jit.trace sizes are tensors.
    batch, length, channels, state = (int(n) for n in (*inputs.u.shape, inputs.A.shape[0]))
    one_position = batch * channels * state
    if inputs.u.device.type == "cpu" and not torch.jit.is_tracing():  # a trace holds each step: keep it short
        chunks = max(1, STEP_ELEMENTS_CPU // one_position)
        steps = TILE_ELEMENTS_CPU // (chunks * one_position)
        steps = max(steps, SHORTEST_TILE // chunks)
    else:
        steps = STEPS_GPU
        chunks = max(1, max(SHORTEST_TILE, TILE_ELEMENTS_GPU // one_position) // steps)
    return list(_segments(length, steps, chunks))


def _segments(length: int, steps: int, chunks: int) -> Iterator[Segment]:
    """Cut `length` positions into segments, the largest `steps` x `chunks`, none padded."""
    start = 0
    while start < length:
        left = length - start
        segment = Segment(start, min(steps, left), max(1, min(chunks, left // steps)))
        yield segment
        start += segment.steps * segment.chunks


def _split(x: Tensor, segment: Segment, dim: int) -> Tensor:
    """A segment of axis `dim` of x, as two axes: chunks, steps."""
    start, steps, chunks = segment
    return x.narrow(dim, start, steps * chunks).unflatten(dim, (chunks, steps))


def _load(inputs: Inputs, segment: Segment) -> Tile:
    dtype = inputs.A.dtype

    def channels(x: Tensor) -> Tensor:
        x = _split(x, segment, dim=1).permute(2, 0, 1, 3).unsqueeze(2)
        return x.to(dtype).contiguous()

    def states(x: Tensor) -> Tensor:
        x = _split(x, segment, dim=1).permute(2, 0, 3, 1).unsqueeze(-1)
        return x.to(dtype).contiguous()

    raw = channels(inputs.delta)
    raw = raw if inputs.delta_bias is None else raw + inputs.delta_bias
    delta = F.softplus(raw) if inputs.delta_softplus else raw
    z = None if inputs.z is None else channels(inputs.z)
    return Tile(channels(inputs.u), raw, delta, states(inputs.B), states(inputs.C), z)


def _store(out: Tensor, segment: Segment, x: Tensor) -> None:
    """Write x, (steps, batch, chunks, channels), to its segment of out, (batch, length, channels)."""
    _split(out, segment, dim=1).copy_(x.permute(1, 2, 0, 3))


def _decay(delta: Tensor, A: Tensor) -> Tensor:
    # exp2 and not exp: on CPUs it is twice as fast, and exp slows down tenfold where it underflows.
    # Both are exactly 1 at 0.
    return torch.mul(delta, (A * LOG2_E).unsqueeze(1)).exp2_()


def _states(tile: Tile, A: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decays; all states, with one more slot in front for each chunk's start; the last state."""
    decay = _decay(tile.delta, A)
    states = decay.new_empty(decay.shape[0] + 1, *decay.shape[1:])
    torch.mul(tile.delta * tile.u, tile.B, out=states[1:])
    return decay, states, _recurrence_(states, decay, tile.delta, A, state)


def _recurrence_(x: Tensor, decay: Tensor, delta: Tensor, A: Tensor, state: Tensor, reverse: bool = False) -> Tensor:
    """In place, x_t += decay_t x_(t-1) from `state` on, along chunks and steps; returns the last state.

    x has one slot more than decay has steps, in front (reverse: behind), for each chunk's start state.
    """
    slots, decays = list(x.unbind(0)), list(decay.unbind(0))
    if reverse:
        slots.reverse()
        decays.reverse()
    if x.shape[3] == 1:
        slots[0].copy_(state.unsqueeze(2))
    else:
        end = slots[1].clone()
        for slot, a in zip(slots[2:], decays[1:], strict=True):
            torch.addcmul(slot, a, end, out=end)
        _start_states(slots[0], end, delta.sum(0), A, state, reverse)
    for previous, slot, a in zip(slots, slots[1:], decays, strict=False):
        slot.addcmul_(a, previous)
    return slots[-1][:, :, 0 if reverse else -1].clone()


def _start_states(starts: Tensor, ends: Tensor, delta: Tensor, A: Tensor, state: Tensor, reverse: bool) -> None:
    """Fill in each chunk's true start state, given its end state from zero and its sum of delta (phase 2)."""
    chunks = int(ends.shape[2])
    if chunks <= SEQUENTIAL_CHUNKS:
        columns = [list(x.unbind(2)) for x in (starts, ends, _decay(delta, A))]
        if reverse:
            columns = [column[::-1] for column in columns]
        columns[0][0].copy_(state)
        for start, following, end, a in zip(columns[0], columns[0][1:], *columns[1:], strict=False):
            torch.addcmul(end, a, start, out=following)
        return
    steps = math.isqrt(chunks)
    segments = list(_segments(chunks, steps, chunks // steps))
    for segment in reversed(segments) if reverse else segments:
        span = _split(delta, segment, dim=2).permute(3, 0, 1, 2, 4)
        decay = _decay(span, A)
        x = decay.new_empty(decay.shape[0] + 1, *decay.shape[1:])
        (x[:-1] if reverse else x[1:]).copy_(_split(ends, segment, dim=2).permute(3, 0, 1, 2, 4))
        state = _recurrence_(x, decay, span, A, state, reverse)
        _split(starts, segment, dim=2).copy_((x[1:] if reverse else x[:-1]).permute(1, 2, 3, 0, 4))


def _output(inputs: Inputs, tile: Tile, products: Tensor) -> Tensor:
    """y of a tile, (steps, batch, chunks, channels), from the products C h."""
    y = products.sum(2)
    if inputs.D is not None:
        y.addcmul_(tile.u.squeeze(2), inputs.D)
    return y if tile.z is None else y.mul_(F.silu(tile.z.squeeze(2)))


class Gradients(NamedTuple):
    """Gradients of `Inputs`, in their shapes and dtypes; dA, dD and dbias first hold one part per tile."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


def _backward(
    inputs: Inputs, starts: Tensor, dy: Tensor | None, dlast_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of `Inputs`, then the initial state's; tiles run from the last to the first."""
    segments = _tiles(inputs)
    dy = torch.zeros_like(inputs.u) if dy is None else dy
    carry = torch.zeros_like(starts[0]) if dlast_state is None else dlast_state.to(starts.dtype)
    parts = _empty_gradients(inputs, len(segments))
    for i, segment in reversed(list(enumerate(segments))):
        carry = _backward_tile(inputs, segment, starts[i], dy, carry, i, parts)
    dA, dD, dbias = (None if t is None else t.sum(0) for t in (parts.A, parts.D, parts.delta_bias))
    return parts.u, parts.delta, dA, parts.B, parts.C, dD, parts.z, dbias, None, carry


def _empty_gradients(inputs: Inputs, tiles: int) -> Gradients:
    def like(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)

    def parts(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.new_empty(tiles, *x.shape)

    u, delta, A, B, C, D, z, bias, _ = inputs
    return Gradients(like(u), like(delta), parts(A), like(B), like(C), parts(D), like(z), parts(bias))


def _backward_tile(
    inputs: Inputs, segment: Segment, start: Tensor, dy: Tensor, carry: Tensor, i: int, out: Gradients
) -> Tensor:
    """Write one tile's gradients into `out`; `carry` is q after the tile, returned: q at its start."""
    tile = _load(inputs, segment)
    decay, states, _ = _states(tile, inputs.A, start)
    scratch = torch.empty_like(decay)
    dy = _split(dy, segment, dim=1).permute(2, 0, 1, 3).unsqueeze(2).to(decay.dtype).contiguous()
    if out.z is not None:
        y = torch.mul(states[1:], tile.C, out=scratch).sum(2, keepdim=True)
        dy, dz = _backward_gate(inputs, tile, y, dy)
        _store(out.z, segment, dz.squeeze(2))
    if out.D is not None:
        out.D[i] = (dy * tile.u).sum((0, 1, 2, 3))

    q = torch.empty_like(states)
    torch.mul(dy, tile.C, out=q[:-1]).mul_(decay)
    carry = _recurrence_(q, decay, tile.delta, inputs.A, carry, reverse=True)

    # With v = delta u and g_t = C_t dy_t + q_(t+1): dv_t sums B_t g_t over the state, dB_t sums v_t g_t over
    # the channels.
    v = tile.delta * tile.u
    dv = torch.mul(q[1:], tile.B, out=scratch).sum(2, keepdim=True)
    dv.addcmul_(dy, (tile.B * tile.C).sum(2, keepdim=True))
    dB = torch.mul(q[1:], v, out=scratch).sum(-1, keepdim=True)
    dB.addcmul_(tile.C, (v * dy).sum(-1, keepdim=True))
    dC = torch.mul(states[1:], dy, out=scratch).sum(-1)

    # The gradient at delta_t A is g_t h_(t-1) a_t = q_t h_(t-1).
    dexponent = torch.mul(q[:-1], states[:-1], out=scratch)
    ddelta = torch.mul(dexponent, inputs.A.unsqueeze(1), out=decay).sum(2, keepdim=True).addcmul_(dv, tile.u)
    if inputs.delta_softplus:
        ddelta.mul_(torch.sigmoid(tile.raw))
    if out.delta_bias is not None:
        out.delta_bias[i] = ddelta.sum((0, 1, 2, 3))
    out.A[i] = _sum_of_products(dexponent, tile.delta).sum((0, 2))

    _store(out.u, segment, _input_gradient(inputs, tile, dv, dy).squeeze(2))
    _store(out.delta, segment, ddelta.squeeze(2))
    _store(out.B, segment, dB.squeeze(-1).transpose(2, 3))
    _store(out.C, segment, dC.transpose(2, 3))
    return carry


def _backward_gate(inputs: Inputs, tile: Tile, y: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients before the gate and at z, from y without its skip connection."""
    assert tile.z is not None
    if inputs.D is not None:
        y = y.addcmul_(tile.u, inputs.D)
    sigmoid = torch.sigmoid(tile.z)
    gate = tile.z * sigmoid
    # d SiLU(z) / dz = sigmoid(z) (1 + z - SiLU(z))
    return dy * gate, dy * y * sigmoid * (1 + tile.z - gate)


def _input_gradient(inputs: Inputs, tile: Tile, dv: Tensor, dy: Tensor) -> Tensor:
    du = dv * tile.delta
    return du if inputs.D is None else du.addcmul_(dy, inputs.D)


def _sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """The sum over the first axis of x * y, without a tensor of its size."""
    total = x[0] * y[0]
    for a, b in zip(x[1:].unbind(0), y[1:].unbind(0), strict=True):
        total.addcmul_(a, b)
    return total
