"""The device that kernels start on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["device_guard"]


def device_guard(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one: kernels start on the current device, whatever the tensors' device."""
    # Switching to the device that is current already would cost more than asking.
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()
