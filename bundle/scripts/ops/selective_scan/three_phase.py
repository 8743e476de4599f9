"""The selective scan on a GPU: parallel along the sequence, in three kernels, forward and backward.

The sequence is cut into chunks that run side by side:

1. `chunk_ends`: each chunk's end state, from zero, and its sum of delta;
2. `chunk_starts`: the recurrence over chunks, each decaying the state by exp(A * its sum of delta);
3. `outputs`: each chunk again, now from its true start state.

Backward runs the same three on the adjoint, from the end: `chunk_ends` and `chunk_starts` in reverse, then
`gradients`. It needs the states, which it recomputes tile by tile (`TILE` positions) from the state before each
tile; `outputs` saves these, (length / TILE) x channels x states. All sums have a fixed order: two runs give
the same bits.

The kernels are the backends' (`cuda_gpu.py`, `triton_gpu.py`). This file holds what they share: the memory, the
order of the launches, the autograd function, and the operator lightm_unet::selective_scan that torch.compile and
torch.export see.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..device_guard import device_guard

# Positions in a tile: what a thread holds of a chunk.
TILE = 8
# Inside a chunk the Triton kernels count elements in 32 bits; from chunk to chunk in 64.
LONGEST_CHUNK = 2**14


class Kernels(Protocol):
    """What a backend launches. Sequences may be views; gate is z, or any sequence where `gated` is false."""

    def chunks(self, backward: bool, batch: int, length: int, channels: int, states: int, device: torch.device) -> int:
        """How many chunks keep the device busy."""

    def groups(self, channels: int, states: int, device: torch.device) -> int:
        """Into how many groups of channels `gradients` splits the sums dB and dC."""

    def chunk_ends(
        self, x: Tensor, delta: Tensor, gate: Tensor, B: Tensor, A: Tensor, bias: Tensor | None,
        ends: Tensor, sums: Tensor, chunk: int, softplus: bool, gated: bool, reverse: bool,
    ) -> None: ...  # fmt: skip

    def chunk_starts(
        self, ends: Tensor, sums: Tensor, A: Tensor, initial: Tensor | None, last: Tensor, reverse: bool
    ) -> None: ...

    def outputs(
        self, u: Tensor, delta: Tensor, gate: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor | None,
        bias: Tensor | None, starts: Tensor, y: Tensor, saved: Tensor, chunk: int, softplus: bool, gated: bool,
    ) -> None: ...  # fmt: skip

    def gradients(
        self, u: Tensor, delta: Tensor, gate: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor | None,
        bias: Tensor | None, dy: Tensor, saved: Tensor, carry: Tensor, du: Tensor, ddelta: Tensor, dgate: Tensor,
        dB: Tensor, dC: Tensor, dA: Tensor, dD: Tensor, dbias: Tensor, chunk: int, softplus: bool, gated: bool,
    ) -> None: ...  # fmt: skip


def kernels_of(backend: str) -> Kernels:
    """The kernels of the backend "cuda" or "triton"."""
    return cast(Kernels, importlib.import_module(f".{backend}_gpu", __package__))


def scan(
    backend: str,
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
    """The scan as one differentiable operator of torch; arguments as in `selective_scan`.

    Raises:
        ValueError: float64, which these kernels do not compute in.
    """
    if torch.float64 in (u.dtype, delta.dtype, B.dtype, C.dtype):
        raise ValueError(f"u: the {backend} backend computes in float32: use backend='chunked' for float64")
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, save, backend)
    # Where nothing records it, the way through the operator would only cost time, more than a short scan takes.
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    call = torch.ops.lightm_unet.selective_scan if recorded else _Scan.apply
    y, last_state, _ = call(*arguments)
    return y, last_state


def forward(
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
    save: bool,
    backend: str,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y; the last state; if `save`, the state before each tile for `backward` (else empty); each chunk's start.

    Without autograd. Sequences may be views with any strides in batch and length; y is contiguous.

    Args:
        starts: the chunks' starts from an earlier call with the same arguments, if there was one: it saves the
            first two phases. The last state is then not computed, but empty.
    """
    kernels = kernels_of(backend)
    u, delta, B, C, z = (_rows(t) for t in (u, delta, B, C, z))
    A, D, delta_bias, initial_state = (_parameter(t) for t in (A, D, delta_bias, initial_state))
    batch, length, channels = u.shape
    states = A.shape[1]
    chunk, chunks = _chunks(length, kernels.chunks(False, batch, length, channels, states, u.device))
    last = A.new_empty(batch, channels if starts is None else 0, states)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    saved = A.new_empty(batch, -(-length // TILE) if save else 0, states, channels)
    gated, gate = z is not None, u if z is None else z
    with device_guard(u.device):
        if starts is None:
            starts = A.new_empty(batch, chunks, states, channels)
            sums = A.new_empty(batch, chunks, channels)
            kernels.chunk_ends(u, delta, u, B, A, delta_bias, starts, sums, chunk, delta_softplus, False, False)
            kernels.chunk_starts(starts, sums, A, initial_state, last, False)
        kernels.outputs(u, delta, gate, B, C, A, D, delta_bias, starts, y, saved, chunk, delta_softplus, gated)
    return y, last, saved, starts


def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    saved: Tensor,
    dy: Tensor,
    dlast_state: Tensor | None,
    backend: str,
    dz: Tensor | None = None,
) -> dict[str, Tensor]:
    """Gradients by argument name; those of A, B, C, D, delta_bias and initial_state in fp32. No autograd.

    Args:
        saved: the states that `forward` saved.
        dy, dlast_state: the gradients that come in.
        dz: where the gradient at z goes, a (batch, length, channels) tensor or view; None: a new one.

    Raises:
        RuntimeError: `forward` saved no states, as in a program that was traced or exported without gradients.
    """
    if saved.shape[1] == 0:
        raise RuntimeError("selective_scan was recorded without gradients: trace or export it with them")
    kernels = kernels_of(backend)
    u, delta, B, C, z, dy = (_rows(t) for t in (u, delta, B, C, z, dy))
    A, D, delta_bias, dlast_state = (_parameter(t) for t in (A, D, delta_bias, dlast_state))
    batch, length, channels = u.shape
    states = A.shape[1]
    gated, gate = z is not None, u if z is None else z
    chunk, chunks = _chunks(length, kernels.chunks(True, batch, length, channels, states, u.device))
    groups = kernels.groups(channels, states, u.device)
    carry = A.new_empty(batch, chunks, states, channels)
    sums = A.new_empty(batch, chunks, channels)
    dinitial = A.new_empty(batch, channels, states)
    du, ddelta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta))
    if dz is None:
        dz = torch.empty(u.shape, dtype=gate.dtype, device=u.device) if gated else du
    # Two tensors, not halves of one: what an operator returns must not share memory.
    dB, dC = (A.new_empty(batch, groups, length, states) for _ in range(2))
    dA = A.new_empty(batch * chunks, states, channels)
    dD, dbias = A.new_empty(2, batch * chunks, channels)
    with device_guard(u.device):
        kernels.chunk_ends(dy, delta, gate, C, A, delta_bias, carry, sums, chunk, delta_softplus, gated, True)
        kernels.chunk_starts(carry, sums, A, dlast_state, dinitial, True)
        kernels.gradients(
            u, delta, gate, B, C, A, D, delta_bias, dy, saved, carry, du, ddelta, dz, dB, dC, dA, dD, dbias,
            chunk, delta_softplus, gated,
        )  # fmt: skip
    dB, dC = (t[:, 0] if groups == 1 else t.sum(1) for t in (dB, dC))
    result = {"u": du, "delta": ddelta, "A": dA.sum(0).t(), "B": dB, "C": dC, "initial_state": dinitial}
    result |= {"D": dD.sum(0), "delta_bias": dbias.sum(0)}
    return result | ({"z": dz} if gated else {})


def _chunks(length: int, wanted: int) -> tuple[int, int]:
    """Positions in a chunk, a multiple of TILE, and how many chunks that makes."""
    wanted = max(1, wanted, -(-length // LONGEST_CHUNK))
    chunk = -(-length // (wanted * TILE)) * TILE
    return chunk, -(-length // chunk)


def _rows(x: Tensor | None) -> Any:
    """x, (batch, length, n), with neighbours in memory along the last axis."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _parameter(x: Tensor | None) -> Any:
    return None if x is None else x.float().contiguous()


def _forward_operator(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return forward(*arguments)[:3]


# The arguments that have a gradient, in the order in which lightm_unet::selective_scan_backward returns them.
_DIFFERENTIABLE = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def _backward_operator(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    saved: Tensor,
    dy: Tensor,
    dlast_state: Tensor | None,
    backend: str,
) -> list[Tensor]:
    gradients = backward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, saved, dy, dlast_state, backend)
    return [gradients[name].contiguous() if name in gradients else u.new_empty(0) for name in _DIFFERENTIABLE]


def _fake(u: Tensor, delta: Tensor, A: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    states, save = A.shape[1], arguments[-2]
    fp32 = A.new_empty(0, dtype=torch.float32)
    saved = fp32.new_empty(batch, -(-length // TILE) if save else 0, states, channels)
    return u.new_empty(u.shape), fp32.new_empty(batch, channels, states), saved


def _fake_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, *arguments: Any
) -> list[Tensor]:
    fp32 = A.new_empty(0, dtype=torch.float32)
    return [
        u.new_empty(u.shape),
        delta.new_empty(delta.shape),
        *(fp32.new_empty(x.shape) for x in (A, B, C)),
        fp32.new_empty(A.shape[0]),
        u.new_empty(0) if z is None else z.new_empty(z.shape),
        fp32.new_empty(A.shape[0]),
        fp32.new_empty(u.shape[0], *A.shape),
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta_softplus, initial_state, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, initial_state, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any,
    dy: Tensor | None,
    dlast_state: Tensor | None,
    _: Tensor | None,
    operator: Callable[..., list[Tensor]] | None = None,
) -> tuple[Tensor | None, ...]:
    operator = operator or torch.ops.lightm_unet.selective_scan_backward
    *tensors, initial_state, saved = ctx.saved_tensors
    dy = torch.zeros_like(tensors[0]) if dy is None else dy
    gradients = operator(*tensors, ctx.delta_softplus, saved, dy, dlast_state, ctx.backend)
    *result, dinitial = (
        None if x is None else gradient.to(x.dtype)
        for x, gradient in zip((*tensors, initial_state), gradients, strict=True)
    )
    return *result, None, dinitial, None, None


def _register() -> None:
    """Make the operators known to PyTorch, where a name is given once a process: a program that imports the bundle
    again, as MONAI Label does, keeps the first."""
    arguments = (
        "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
        "bool delta_softplus"
    )
    forward_name, backward_name = "lightm_unet::selective_scan", "lightm_unet::selective_scan_backward"
    torch.library.define(
        forward_name, f"({arguments}, Tensor? initial_state, bool save, str backend) -> (Tensor, Tensor, Tensor)"
    )
    torch.library.define(
        backward_name, f"({arguments}, Tensor saved, Tensor dy, Tensor? dlast_state, str backend) -> Tensor[]"
    )
    # Not as decorators: these give None back.
    torch.library.impl(forward_name, ("cuda", "cpu"))(_forward_operator)
    torch.library.impl(backward_name, ("cuda", "cpu"))(_backward_operator)
    torch.library.register_fake(forward_name, _fake)
    torch.library.register_fake(backward_name, _fake_backward)
    torch.library.register_autograd(forward_name, _differentiate, setup_context=_setup_context)


if not hasattr(torch.ops.lightm_unet, "selective_scan"):
    _register()


class _Scan(torch.autograd.Function):
    """lightm_unet::selective_scan for eager execution."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = _forward_operator(*arguments)
        _setup_context(ctx, arguments, output)
        ctx.mark_non_differentiable(output[2])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, *gradients, operator=_backward_operator)
