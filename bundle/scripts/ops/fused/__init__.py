"""The memory-bound steps around the selective scan as single kernels: normalisation, causal and depthwise convolution.

Each file beside this one holds one step as Triton kernels and needs triton when it is imported; this package
imports without it. `naive.py` is their specification in plain PyTorch. Tokens are channels-last throughout:
(batch, length, channels). Ask `unavailable` first, then import the file::

    if unavailable(x.device) is None:
        from .fused.layer_norm import layer_norm_forward

Except where a file says so, the functions are raw: they record nothing for autograd, and forward and backward are
two functions. All arithmetic is fp32, activations may be fp32, bf16 or fp16, gradients are the same bit by bit
in every run (no atomics), and nothing waits for the GPU, so everything can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_support import unavailable

__all__ = ["check_dtype", "unavailable", "unavailable_for"]


def unavailable_for(x: Tensor) -> str | None:
    """Why a network cannot take the kernels' way with x; None: it can. Triton's interpreter is for tests alone."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return "the network is being traced or compiled"
    if x.dtype == torch.float64:
        return "the kernels compute in float32"
    return unavailable(x.device) if x.is_cuda else "needs an NVIDIA GPU"


def check_dtype(name: str, x: Tensor) -> None:
    """Refuses what the kernels would silently compute in fp32.

    Raises:
        ValueError: x is not fp32, bf16 or fp16.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{name}: expected fp32, bf16 or fp16, got {x.dtype}")
