"""The selective scan as its definition: the specification every other backend is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None: it can."""
    return None


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
    """Step by step along the sequence; arguments, shapes and dtypes as in `selective_scan`."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    delta = delta if delta_bias is None else delta + delta_bias.to(dtype)
    delta = F.softplus(delta) if delta_softplus else delta
    h = x.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(dtype)
    steps = []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        steps.append((h * C[:, t, None, :]).sum(-1))
    y = torch.stack(steps, dim=1)
    y = y if D is None else y + D.to(dtype) * x
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(u.dtype), h
