"""The selective scan through the authors' CUDA extension (package mamba-ssm), where it is installed."""

from __future__ import annotations

import torch
from torch import Tensor

from .cuda_extensions import MAMBA_SSM, import_failure


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on `device`; None: it can."""
    if device.type != "cuda":
        return "needs a CUDA device"
    failure = import_failure(MAMBA_SSM)
    return None if failure is None else f"{failure.reason}; `python -m scripts.doctor` says what helps"


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
    """Copy to the extension's channels-first layout and back; arguments as in `selective_scan`.

    The extension has no gradient for the last state: it comes detached.

    Raises:
        ValueError: float64 or an initial state, which the extension does not take.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if u.dtype == torch.float64:
        raise ValueError("the mamba_ssm backend takes no float64: use backend='chunked'")
    if initial_state is not None:
        raise ValueError("the mamba_ssm backend takes no initial_state: use backend='chunked'")
    u, delta, B, C, z = (None if t is None else t.to(u.dtype).transpose(1, 2) for t in (u, delta, B, C, z))
    A, D, delta_bias = (None if t is None else t.float() for t in (A, D, delta_bias))
    # The extension launches on the current GPU, whichever holds the tensors.
    with torch.cuda.device(u.device):
        y, last_state = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)
    return y.transpose(1, 2), last_state.detach()
