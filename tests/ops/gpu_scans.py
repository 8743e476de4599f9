"""What the tests of the GPU's own scans share: the backends, the shapes that are compiled once, and their inputs."""

from __future__ import annotations

import functools

import pytest
import torch
from scan_checks import make_inputs
from torch import Tensor

DEVICE = "cuda"
BACKENDS = ("cuda", "triton")
# (batch, length, channels, states): no multiple of a tile or a warp, and several chunks.
BASE = (3, 4097, 24, 16)

# Largest error, relative to the largest value.
OUTPUT, HALF = 1e-5, 1.5e-2

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def gpu_inputs(
    batch: int, length: int, channels: int, state: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    return make_inputs(batch, length, channels, state, dtype=dtype, device=DEVICE)


@functools.cache
def base_inputs() -> dict[str, Tensor]:
    return gpu_inputs(*BASE)
