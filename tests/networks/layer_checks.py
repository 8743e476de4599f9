"""What the tests of the fused layer, of networks with it and of the channels-last steps share."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn as nn
from gpu import HAS_GPU
from torch import Tensor

from scripts.ops import fused

DEVICE = "cuda" if HAS_GPU else "cpu"

needs_kernels = pytest.mark.skipif(
    fused.unavailable(torch.device(DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)


def relative_error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.detach(), expected.detach()
    return float((value.double() - expected).norm() / expected.norm())


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def float64_copy(module: nn.Module) -> nn.Module:
    """The same weights with the plain scan: the truth."""
    exact = copy.deepcopy(module).double()
    for part in exact.modules():
        if hasattr(part, "backend"):
            part.backend = "chunked"
    return exact


def run(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradients at the input and all parameters as one vector."""
    x = x.clone().requires_grad_()
    y = net(x)
    gradients = torch.autograd.grad(y, (x, *net.parameters()), normal(*y.shape, seed=9).to(y.dtype))
    return y.detach(), torch.cat([gradient.flatten() for gradient in gradients])
