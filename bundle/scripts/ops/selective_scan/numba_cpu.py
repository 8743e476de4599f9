"""The selective scan on a CPU with Numba: compiled on this machine, for its SIMD instructions, on first use.

Parallel over images and blocks of channels; the kernels, in `numba_kernels`, read the inputs where they lie.
Backward keeps the state before each tile of 64 steps, computes the tile's states again and runs the adjoint
from the last step to the first (see `chunked` for the formulas). Every gradient is summed in an order that
does not depend on the number of threads.

The threads are Python's, which the kernels, compiled to let go of the interpreter's lock, really run side by
side. Numba's own parallel loops would abort the process when two threads call them at once (its workqueue
layer) or after a fork (its OpenMP layer), and both happen in servers and data loaders.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx, once_differentiable

from . import chunked

LOG2_E = 1 / math.log(2)


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None: it can."""
    if device.type != "cpu":
        return "runs on the CPU only"
    return _why_not_numba()


@lru_cache(maxsize=1)
def _why_not_numba() -> str | None:
    try:
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed: pip install numba"
        import numba
    except Exception as error:  # such as a numpy that is too new for it
        return f"numba cannot be imported: {error}"
    return "NUMBA_DISABLE_JIT keeps numba from compiling: unset it" if numba.config.DISABLE_JIT else None


def kernels() -> ModuleType:
    """The compiled functions. Imported on first use: Numba takes a second to import, and may not be there."""
    from . import numba_kernels

    return numba_kernels


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
    """The scan; arguments, shapes and dtypes as in `selective_scan`."""
    if is_traced(u):
        return chunked.scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Scan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    y, last_state, _ = _forward(_prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus), initial_state)
    return y.to(u.dtype), last_state


def is_traced(x: Tensor) -> bool:
    """Whether x is being traced, exported, compiled or derived forward, which cannot see into Numba's functions."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return True
    return forward_ad._current_level >= 0  # inside forward_ad.dual_level or torch.func.jvp


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *args: Tensor | bool | None) -> tuple[Tensor, Tensor]:
        *arguments, initial_state = args
        y, last_state, starts = _forward(_prepare(*arguments), initial_state, keep_starts=True)
        *tensors, ctx.delta_softplus = arguments
        ctx.save_for_backward(*tensors, starts)
        ctx.initial_dtype = None if initial_state is None else initial_state.dtype
        ctx.set_materialize_grads(False)
        return y.to(arguments[0].dtype), last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor | None, dlast_state: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, starts = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            gradients = _backward(_prepare(*tensors, ctx.delta_softplus), starts, dy, dlast_state)
        *gradients, dinitial_state = gradients
        gradients = [None if t is None else gradient.to(t.dtype) for t, gradient in zip(tensors, gradients)]
        if ctx.initial_dtype is not None:
            dinitial_state = dinitial_state.to(ctx.initial_dtype)
        return *gradients, None, None if ctx.initial_dtype is None else dinitial_state


class Prepared(NamedTuple):
    """The arguments as the kernels take them; see `numba_kernels` for the shapes."""

    flat: list[np.ndarray]  # u, delta, B, C, z
    strides: list[tuple[int, int]]
    A: np.ndarray
    D: np.ndarray
    bias: np.ndarray
    smooth: bool
    gated: bool
    shape: tuple[int, int, int]  # batch, length, channels
    dtype: torch.dtype

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="cpu")


def _prepare(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Prepared:
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    flats, strides = zip(*(flat(t, dtype) for t in (u, delta, B, C, u if z is None else z)))
    batch, length, channels = u.shape
    zero = torch.zeros(channels, dtype=dtype, device="cpu")
    D, delta_bias = (zero if t is None else t.detach().to(dtype) for t in (D, delta_bias))
    # exp2 lets the ordinary NaN through, not those with other bits set.
    A = torch.where(A.isnan(), math.nan, A.detach().to(dtype)) * LOG2_E
    return Prepared(
        list(flats),
        list(strides),
        into_blocks(A).numpy(),
        into_blocks(D[:, None]).squeeze(-2).numpy(),
        into_blocks(delta_bias[:, None]).squeeze(-2).numpy(),
        delta_softplus,
        z is not None,
        (batch, length, channels),
        dtype,
    )


def flat(x: Tensor, dtype: torch.dtype) -> tuple[np.ndarray, tuple[int, int]]:
    """x, (batch, length, n), as the flat memory it lies in, and the strides of batch and step.

    One array type for all layouts: Numba compiles a kernel for each type. Copied only if the dtype is another
    or a step's numbers do not lie side by side.
    """
    x = x.detach().to(dtype)
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    return x.as_strided((span,), (1,)).numpy(), (x.stride(0), x.stride(1))


def strides_array(strides: Sequence[tuple[int, int]]) -> np.ndarray:
    """Strides of `flat` as the kernels take them."""
    return np.array(strides, dtype=np.int64)


def into_blocks(x: Tensor) -> Tensor:
    """(..., channels, n) to (..., blocks, n, LANES), contiguous, filled up with zeros."""
    lanes = kernels().LANES
    channels = x.shape[-2]
    blocks = -(-channels // lanes)
    padded = torch.nn.functional.pad(x, (0, 0, 0, blocks * lanes - channels))
    return padded.unflatten(-2, (blocks, lanes)).transpose(-1, -2).contiguous()


def from_blocks(x: Tensor, channels: int) -> Tensor:
    """The inverse of `into_blocks`."""
    return x.transpose(-1, -2).flatten(-3, -2)[..., :channels, :].contiguous()


def _forward(
    inputs: Prepared, initial_state: Tensor | None, keep_starts: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state and the state before each tile (before none unless kept)."""
    batch, length, channels = inputs.shape
    blocks, states, lanes = inputs.A.shape
    if initial_state is None:
        state = inputs.empty(batch, blocks, states, lanes).zero_()
    else:
        state = into_blocks(initial_state.detach().to(inputs.dtype))
    tiles = -(-length // kernels().TILE) if keep_starts else 0
    starts = inputs.empty(batch, blocks, tiles, states, lanes)
    y = inputs.empty(batch, length, channels)
    arguments = (
        *inputs.flat,
        strides_array(inputs.strides),
        *inputs[2:7],
        *(t.numpy() for t in (state, starts, y)),
    )
    share_out(batch * blocks, lambda first, last: kernels().forward(*arguments, first, last))
    return y, from_blocks(state, channels), starts


def _backward(
    inputs: Prepared, starts: Tensor, dy: Tensor | None, dlast_state: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z, bias and the initial state, in the accumulators' dtype."""
    batch, length, channels = inputs.shape
    blocks, states, lanes = inputs.A.shape
    dy = inputs.empty(1, 1, 1).zero_().expand(inputs.shape).contiguous() if dy is None else dy
    flat_dy, dy_strides = flat(dy, inputs.dtype)
    if dlast_state is None:
        q = torch.zeros(batch, blocks, states, lanes, dtype=inputs.dtype, device="cpu")
    else:
        q = into_blocks(dlast_state.to(inputs.dtype))
    du, ddelta = inputs.empty(*inputs.shape), inputs.empty(*inputs.shape)
    dz = inputs.empty(batch, length if inputs.gated else 0, channels)
    dB, dC = (inputs.empty(blocks, batch, length, states) for _ in range(2))
    dA = torch.zeros(batch, blocks, states, lanes, dtype=torch.float64, device="cpu")
    dD, dbias = (torch.zeros(batch, blocks, lanes, dtype=torch.float64, device="cpu") for _ in range(2))
    arguments = (
        *inputs.flat,
        flat_dy,
        strides_array([*inputs.strides, dy_strides]),
        *inputs[2:7],
        *(t.numpy() for t in (starts, q, du, ddelta, dz, dB, dC, dA, dD, dbias)),
    )
    share_out(batch * blocks, lambda first, last: kernels().backward(*arguments, first, last))
    dD, dbias = (t.sum(0).flatten()[:channels] for t in (dD, dbias))
    return du, ddelta, from_blocks(dA.sum(0), channels), dB.sum(0), dC.sum(0), dD, dz, dbias, from_blocks(q, channels)


def share_out(tasks: int, run: Callable[[int, int], None]) -> None:
    """Call run(first, last) for shares of 0..tasks - 1, one a thread, as many threads as PyTorch would use."""
    threads = min(torch.get_num_threads(), tasks)
    bounds = [tasks * i // threads for i in range(threads + 1)]
    if threads == 1:
        run(0, tasks)
        return
    pool = _pool(os.getpid(), torch.get_num_threads() - 1)  # one for all layers, however many tasks they have
    others = [pool.submit(run, *share) for share in pairwise(bounds[1:])]
    run(bounds[0], bounds[1])
    for future in others:
        future.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent do not outlive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="selective-scan")
