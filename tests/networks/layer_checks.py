"""What the tests of the fused layer and of the channels-last steps share: random tensors and the truth in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from scripts.ops import fused

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"

needs_kernels = pytest.mark.skipif(not fused.available(DEVICE), reason="neither a GPU nor Triton's interpreter")


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
