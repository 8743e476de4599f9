"""The selective scan's three phases (`three_phase.py`) in CUDA C++, compiled when first used.

The compiler is NVRTC, a library that comes with every CUDA build of torch: no toolkit is needed. Compiling
takes a second or two for each combination of state size and dtypes, once in a process.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import torch
from torch import Tensor

from . import nvrtc, three_phase
from .three_phase import TILE

LANES = 32
MOST_STATES = 64
# Warps that share the sums dB and dC in `gradients`.
WARPS = 2
# Warps for each multiprocessor, forward and backward: enough to keep it busy, few enough for short chunks.
WARPS_FORWARD = 24
WARPS_BACKWARD = 16
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None: it can."""
    if device.type != "cuda":
        return "needs a CUDA device"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 7:
        return f"needs compute capability 7.0, this GPU has {major}.{minor}"
    return nvrtc.unavailable()


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    """Arguments as in `selective_scan`.

    Raises:
        ValueError: float64, or more than 64 states.
    """
    if A.shape[1] > MOST_STATES:
        raise ValueError(f"A: the cuda backend takes up to {MOST_STATES} states, got {A.shape[1]}: use 'triton'")
    z = None if z is None else _like(z, u)  # the kernels have one type for u, z and y
    return three_phase.scan("cuda", u, delta, A, B, C, D, z, *arguments)


def chunks(backward: bool, batch: int, length: int, channels: int, states: int, device: torch.device) -> int:
    warps = (WARPS_BACKWARD if backward else WARPS_FORWARD) * _properties(device).multi_processor_count
    return warps // (batch * -(-channels // LANES))


def groups(channels: int, states: int, device: torch.device) -> int:
    return -(-channels // (LANES * _warps(channels, states, device)))


def chunk_ends(
    x: Tensor, delta: Tensor, gate: Tensor, B: Tensor, A: Tensor, bias: Tensor | None,
    ends: Tensor, sums: Tensor, chunk: int, softplus: bool, gated: bool, reverse: bool,
) -> None:  # fmt: skip
    batch, length, channels = x.shape
    chunks, states = ends.shape[1:3]
    kernel = _kernel("backward_ends" if reverse else "forward_ends", states, x, delta, B)
    kernel(
        (chunks, -(-channels // LANES), batch), LANES,
        _sequences(x, delta, gate, B) + _pointers(A, bias, ends, sums)
        + _sizes(length, channels, states, chunk, chunks, softplus, gated, 0),
    )  # fmt: skip


def chunk_starts(ends: Tensor, sums: Tensor, A: Tensor, initial: Tensor | None, last: Tensor, reverse: bool) -> None:
    batch, chunks, states, channels = ends.shape
    kernel = _kernel("chunk_starts", states, ends, ends, ends)
    kernel(
        (-(-channels // LANES), states, batch), LANES,
        _pointers(ends, sums, A, initial, last)
        + _sizes(0, channels, states, 0, chunks, False, False, 0) + struct.pack("i", reverse),
    )  # fmt: skip


def outputs(
    u: Tensor, delta: Tensor, gate: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor | None,
    bias: Tensor | None, starts: Tensor, y: Tensor, saved: Tensor, chunk: int, softplus: bool, gated: bool,
) -> None:  # fmt: skip
    batch, length, channels = u.shape
    chunks, states = starts.shape[1:3]
    B, C = _same_dtype(B, C)
    _kernel("outputs", states, u, delta, B)(
        (chunks, -(-channels // LANES), batch), LANES,
        _sequences(u, delta, _like(gate, u), B, C) + _pointers(A, D, bias, starts) + _sequences(y)
        + _pointers(saved if saved.shape[1] else None)
        + _sizes(length, channels, states, chunk, chunks, softplus, gated, saved.shape[1]),
    )  # fmt: skip


def gradients(
    u: Tensor, delta: Tensor, gate: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor | None,
    bias: Tensor | None, dy: Tensor, saved: Tensor, carry: Tensor, du: Tensor, ddelta: Tensor, dgate: Tensor,
    dB: Tensor, dC: Tensor, dA: Tensor, dD: Tensor, dbias: Tensor, chunk: int, softplus: bool, gated: bool,
) -> None:  # fmt: skip
    batch, length, channels = u.shape
    chunks, states = carry.shape[1:3]
    B, C = _same_dtype(B, C)
    warps = _warps(channels, states, u.device)
    _kernel("gradients", states, u, delta, B)(
        (chunks, dB.shape[1], batch), warps * LANES,
        _sequences(u, delta, _like(gate, u), B, C) + _pointers(A, D, bias) + _sequences(_like(dy, u))
        + _pointers(saved, carry) + _sequences(du, ddelta, dgate) + _pointers(dB, dC, dA, dD, dbias)
        + _sizes(length, channels, states, chunk, chunks, softplus, gated, saved.shape[1]),
        _shared_bytes(states, warps),
    )  # fmt: skip


def _padded(states: int) -> int:
    return max(8, 1 << (states - 1).bit_length())


def _shared_bytes(states: int, warps: int) -> int:
    """What `gradients` needs: the tiles of B and C, and a WarpTile for each warp."""
    n = _padded(states)
    return 4 * TILE * (2 * n + warps * (n * LANES + 5 * LANES + 2 * n))


@functools.lru_cache(maxsize=256)
def _warps(channels: int, states: int, device: torch.device) -> int:
    """Warps of a block of `gradients`: as many as the channels want and the shared memory holds."""
    limit = getattr(_properties(device), "shared_memory_per_block_optin", 48 * 1024)
    warps = min(WARPS, -(-channels // LANES))
    while warps > 1 and _shared_bytes(states, warps) > limit:
        warps -= 1
    return warps


@functools.cache
def _properties(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)


def _kernel(name: str, states: int, u: Tensor, delta: Tensor, B: Tensor) -> nvrtc.Kernel:
    return _compiled(u.device, _padded(states), _DTYPES[u.dtype], _DTYPES[delta.dtype], _DTYPES[B.dtype])[name]


@functools.cache
def _compiled(device: torch.device, states: int, u: int, delta: int, B: int) -> dict[str, nvrtc.Kernel]:
    names = ("forward_ends", "backward_ends", "chunk_starts", "outputs", "gradients")
    defines = {"STATES": states, "TYPE_U": u, "TYPE_DELTA": delta, "TYPE_BC": B}
    return nvrtc.compile_kernels("cuda_kernels.cu", names, defines, device)


def _like(x: Tensor, u: Tensor) -> Tensor:
    return x if x.dtype == u.dtype else x.to(u.dtype)


def _same_dtype(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    return (B, C) if B.dtype == C.dtype else (B.float(), C.float())


def _sequences(*tensors: Tensor) -> bytes:
    return b"".join(struct.pack("Pqq", x.data_ptr(), *x.stride()[:2]) for x in tensors)


def _pointers(*tensors: Tensor | None) -> bytes:
    return struct.pack(f"{len(tensors)}P", *(0 if x is None else x.data_ptr() for x in tensors))


def _sizes(*values: int) -> bytes:
    return struct.pack("8i", *values)
