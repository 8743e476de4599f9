"""The selective scan's three phases (`three_phase.py`) in Triton: nothing to compile by hand.

TRITON_INTERPRET=1, set before Triton is imported, runs the kernels on the CPU, slowly; for tests.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..triton_support import unavailable
from . import three_phase
from .three_phase import TILE

__all__ = ["chunk_ends", "chunk_starts", "chunks", "gradients", "groups", "outputs", "scan", "unavailable"]

# States x channels of a tile, in the forward and the backward kernels: as many as registers allow.
TILE_STATES_FORWARD = 512
TILE_STATES_BACKWARD = 128
# Channels whose dB and dC one program sums; more groups are summed afterwards.
GROUP = 64
# Programs for each multiprocessor, forward and backward: enough to keep it busy, few enough for short chunks.
PROGRAMS_FORWARD = 24
PROGRAMS_BACKWARD = 16
CHUNKS_AT_ONCE = 32
CHANNELS_AT_ONCE = 32


scan = functools.partial(three_phase.scan, "triton")


def chunks(backward: bool, batch: int, length: int, channels: int, states: int, device: torch.device) -> int:
    if device.type != "cuda":
        return 3  # the interpreter's tests want several
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    if backward:
        return PROGRAMS_BACKWARD * multiprocessors // (batch * groups(channels, states, device))
    return PROGRAMS_FORWARD * multiprocessors // (batch * _cdiv(channels, _block(channels, states)[0]))


def groups(channels: int, states: int, device: torch.device) -> int:
    return _cdiv(channels, _group(channels, states))


def chunk_ends(
    x: Tensor, delta: Tensor, gate: Tensor, B: Tensor, A: Tensor, bias: Tensor | None,
    ends: Tensor, sums: Tensor, chunk: int, softplus: bool, gated: bool, reverse: bool,
) -> None:  # fmt: skip
    from . import triton_kernels

    batch, length, channels = x.shape
    chunks, states = ends.shape[1:3]
    block, padded = _block(channels, states)
    triton_kernels.chunk_ends[(chunks, _cdiv(channels, block), batch)](
        x, delta, gate, B, A, _or_zeros(bias, A), ends, sums, *_strides(x, delta, gate, B),
        length, channels, states, chunk, chunks,
        REVERSE=reverse, SOFTPLUS=softplus, GATED=gated, STEPS=TILE, STATES=padded, BLOCK=block, num_warps=1,
    )  # fmt: skip


def chunk_starts(ends: Tensor, sums: Tensor, A: Tensor, initial: Tensor | None, last: Tensor, reverse: bool) -> None:
    from . import triton_kernels

    batch, chunks, states, channels = ends.shape
    triton_kernels.chunk_starts[(_cdiv(channels, CHANNELS_AT_ONCE), states, batch)](
        ends, sums, A, A if initial is None else initial, last, channels, states, chunks,
        REVERSE=reverse, HAS_INITIAL=initial is not None,
        CHUNKS=CHUNKS_AT_ONCE, BLOCK=CHANNELS_AT_ONCE, num_warps=1,
    )  # fmt: skip


def outputs(
    u: Tensor, delta: Tensor, gate: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor | None,
    bias: Tensor | None, starts: Tensor, y: Tensor, saved: Tensor, chunk: int, softplus: bool, gated: bool,
) -> None:  # fmt: skip
    from . import triton_kernels

    batch, length, channels = u.shape
    chunks, states = starts.shape[1:3]
    block, padded = _block(channels, states)
    triton_kernels.outputs[(chunks, _cdiv(channels, block), batch)](
        u, delta, gate, B, C, A, _or_zeros(D, A), _or_zeros(bias, A), starts, y, saved,
        *_strides(u, delta, gate, B, C), length, channels, states, chunk, chunks, saved.shape[1],
        SOFTPLUS=softplus, GATED=gated, SAVE=saved.shape[1] > 0,
        STEPS=TILE, STATES=padded, BLOCK=block, num_warps=1,
    )  # fmt: skip


def gradients(
    u: Tensor, delta: Tensor, gate: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor | None,
    bias: Tensor | None, dy: Tensor, saved: Tensor, carry: Tensor, du: Tensor, ddelta: Tensor, dgate: Tensor,
    dB: Tensor, dC: Tensor, dA: Tensor, dD: Tensor, dbias: Tensor, chunk: int, softplus: bool, gated: bool,
) -> None:  # fmt: skip
    from . import triton_kernels

    batch, length, channels = u.shape
    chunks, states = carry.shape[1:3]
    groups = dB.shape[1]
    block, padded = _block(channels, states, TILE_STATES_BACKWARD)
    triton_kernels.gradients[(chunks, groups, batch)](
        u, delta, gate, B, C, A, _or_zeros(D, A), _or_zeros(bias, A), dy, saved, carry,
        du, ddelta, dgate, dB, dC, dA, dD, dbias,
        *_strides(u, delta, gate, B, C, dy, du, ddelta, dgate),
        length, channels, states, chunk, chunks, saved.shape[1], groups,
        SOFTPLUS=softplus, GATED=gated, GROUP=_group(channels, states),
        STEPS=TILE, STATES=padded, BLOCK=block, num_warps=1,
    )  # fmt: skip


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _block(channels: int, states: int, elements: int = TILE_STATES_FORWARD) -> tuple[int, int]:
    """Channels of a tile, and the states rounded up to a power of two."""
    padded = 1 << (states - 1).bit_length()
    return max(1, min(elements // padded, 1 << (channels - 1).bit_length())), padded


def _group(channels: int, states: int) -> int:
    """Channels of one program of `gradients`, a multiple of its tile's."""
    block, _ = _block(channels, states, TILE_STATES_BACKWARD)
    return min(max(GROUP, block), _cdiv(channels, block) * block)


def _or_zeros(x: Tensor | None, A: Tensor) -> Tensor:
    return A.new_zeros(A.shape[0]) if x is None else x


def _strides(*tensors: Tensor) -> list[Any]:
    return [stride for x in tensors for stride in x.stride()[:2]]
