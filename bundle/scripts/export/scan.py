"""The selective scan as one ONNX Scan: `ops/selective_scan/naive.py`, which is the definition, step by step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as torch_scan

__all__ = ["selective_scan", "softplus"]


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y_t = C_t . h_t with h_t = exp(delta_t A) h_(t-1) + delta_t u_t B_t, from a state of zero.

    The states lie as (batch, state, channels), so that the long axis is the innermost, and what a step reads is given
    its shape beforehand: a step is six operations, and a runtime spends most of a small one on calling it.

    Args:
        u, delta: (batch, length, channels), float32.
        A: (channels, state).
        B, C: (batch, length, state).

    Returns:
        (batch, length, channels).
    """
    A = A.t().contiguous()

    def step(h: Tensor, token: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        delta, delta_u, B, C = token
        h = torch.exp(delta * A) * h + delta_u * B
        return h, torch.matmul(C, h)

    zero = (delta[:, :1] * 0).expand(-1, *A.shape).contiguous()  # torch.zeros would keep the batch of the example
    tokens = (_tokens_first(delta, 1), _tokens_first(delta * u, 1), _tokens_first(B, 2), _tokens_first(C, 1))
    _, y = torch_scan(step, zero, tokens, dim=0)
    return y.squeeze(2).transpose(0, 1)


def _tokens_first(x: Tensor, axis: int) -> Tensor:
    """(batch, length, n) to (length, batch, 1, n) or (length, batch, n, 1)."""
    return x.transpose(0, 1).unsqueeze(axis + 1).contiguous()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), as exact as PyTorch's, in operations that runtimes compute fast.

    ONNX has a Softplus, but PyTorch's export puts a comparison and a choice beside it, and onnxruntime computes it one
    number after the other. log(1 + e) alone loses a small e; what is lost is added again.
    """
    e = torch.exp(-torch.abs(x))
    one_more = 1 + e
    return torch.relu(x) + torch.log(one_more) + (e - (one_more - 1)) / one_more
