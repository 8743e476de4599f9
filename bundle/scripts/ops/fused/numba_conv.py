"""SiLU of the causal convolution before the scan, on a CPU with Numba: one pass forward, one backward.

PyTorch's convolution takes channels-first memory, so that u goes there and back, and its SiLU then walks through
memory in strides. Here tokens stay channels-last. Gradients are summed in an order that does not depend on the
number of threads.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..selective_scan import numba_cpu

__all__ = ["causal_conv_silu", "kernels", "unavailable"]

TILE = 1024  # steps of a task


def unavailable(x: Tensor, weight: Tensor) -> str | None:
    """Why `causal_conv_silu` cannot take x; None: it can."""
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return "needs x and weight in float32 or both in float64"
    if numba_cpu.is_traced(x):
        return "x is being traced, exported or compiled"
    if (reason := numba_cpu.unavailable(x.device)) is not None:
        return reason
    if not x.numel() or x.shape[-1] % numba_cpu.kernels().LANES:
        return f"the channels must fill whole registers of {numba_cpu.kernels().LANES} numbers"
    return None


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `ops.fused.naive.causal_conv_silu` computes: x (batch, length, D), weight (D, K), bias (D,)."""
    return _CausalConvSiLU.apply(x, weight, bias)


class _CausalConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        flat, strides = numba_cpu.flat(x, x.dtype)
        y = torch.empty(x.shape, dtype=x.dtype, device="cpu")
        arguments = (flat, strides, *_constants(weight, bias), TILE, y.numpy())
        numba_cpu.share_out(_tasks(x), lambda first, last: kernels().convolve_range(*arguments, first, last))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = ctx.saved_tensors
        flats = (*numba_cpu.flat(x, x.dtype), *numba_cpu.flat(dy, x.dtype))
        dx = torch.empty(x.shape, dtype=x.dtype, device="cpu")
        sums = torch.empty(_tasks(x), weight.shape[1] + 1, weight.shape[0], dtype=x.dtype, device="cpu")
        arguments = (*flats, *_constants(weight, bias), TILE, dx.numpy(), sums.numpy())
        numba_cpu.share_out(_tasks(x), lambda first, last: kernels().gradients_range(*arguments, first, last))
        total = sums.sum(0, dtype=torch.float64).to(weight.dtype)
        return dx, total[:-1].t(), total[-1]


def kernels() -> ModuleType:
    """The compiled functions, imported on first use."""
    from . import numba_conv_kernels

    return numba_conv_kernels


def _constants(weight: Tensor, bias: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return weight.detach().t().contiguous().numpy(), bias.detach().contiguous().numpy()


def _tasks(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[1] // TILE)
