"""What the tests of the fused kernels share: random tensors, and the truth by autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Largest error, relative to the largest value: a few roundings of the result's dtype.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def normal(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """The same numbers on every device; distinct sizes or seeds give distinct ones."""
    generator = torch.Generator().manual_seed(hash((seed, size)) % 2**31)
    return torch.randn(size, generator=generator).to(dtype).to(DEVICE)


def truth(function: Callable[..., Tensor], dy: Tensor, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
    """The function's result and the gradients of its tensor arguments, in order, in float64."""
    exact = [a.detach().double().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
    y = function(*exact)
    return y.detach(), list(torch.autograd.grad(y, [a for a in exact if isinstance(a, Tensor)], dy.double()))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Shapes agree, and values up to `tolerance` times the largest; by default what the dtype of `actual` allows."""
    assert actual.shape == expected.shape
    if not expected.numel():
        return
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error.item() <= (TOLERANCE[actual.dtype] if tolerance is None else tolerance)
