"""Whether Triton really runs on a device, found out by running a kernel there, once in a process.

To be installed is not enough: at its first kernel Triton builds a launcher, which takes a C compiler and Python's
header files.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

__all__ = ["interpreting", "unavailable"]

OLDEST_CAPABILITY = 7  # compute capability, major


def unavailable(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`; None: they can, on a CPU in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton (it comes with CUDA builds of torch for Linux)"
    if device.type == "cpu":
        return None if interpreting() else "needs a CUDA device"
    if device.type != "cuda" or not torch.cuda.is_available():
        return "torch sees no GPU"
    index = torch.cuda.current_device() if device.index is None else device.index
    return _failure(index)


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, slowly: for tests. TRITON_INTERPRET=1, set before the import."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _failure(index: int) -> str | None:
    major, minor = torch.cuda.get_device_capability(index)
    if major < OLDEST_CAPABILITY:
        return f"needs compute capability {OLDEST_CAPABILITY}.0, this GPU has {major}.{minor}"
    try:
        from .triton_trial import increment

        with torch.cuda.device(index):
            number = torch.zeros(1, device="cuda")
            increment[(1,)](number)
            return None if number.item() == 1 else "triton computes 0 + 1 wrongly"
    except Exception as error:  # a broken installation fails in many ways
        lines = str(error).strip().splitlines() or ["no message"]
        return (
            f"triton does not run ({type(error).__name__}: {lines[0]}); it needs a C compiler and Python's headers "
            "(Debian, Ubuntu: apt install gcc python3-dev)"
        )
