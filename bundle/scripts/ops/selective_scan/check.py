"""Proof that a backend of the selective scan runs and is right: against naive in float64, forward and backward."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from . import selective_scan

__all__ = ["TOLERANCE", "ScanCheck", "check_backend"]

# Largest relative error that counts as agreement, by the dtype of the checked run. float64 shows that the
# arithmetic is right, float32 and bfloat16 are what networks use.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 3e-2}
LENGTH = 777  # no multiple of any chunk
IN_HALF = ("u", "delta", "B", "C", "z")  # in bfloat16 these alone are rounded


@dataclass(frozen=True)
class ScanCheck:
    """Largest error of a backend's output and of its gradients, each relative to the largest true value.

    ``failure`` says what the backend raised; there are no errors then.
    """

    backend: str
    dtype: str
    output_error: float | None
    gradient_error: float | None
    tolerance: float
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """False for NaN as well."""
        if self.output_error is None or self.gradient_error is None:
            return False
        return self.output_error <= self.tolerance and self.gradient_error <= self.tolerance


def check_backend(backend: str, device: str) -> list[ScanCheck]:
    """Run a backend in each dtype; float64 is left out where the backend refuses it.

    Args:
        backend: a name that ``backend_report`` lists.
        device: where the backend runs.
    """
    checks = []
    for name, tolerance in TOLERANCE.items():
        try:
            checks.append(_check(backend, device, name, tolerance))
        except Exception as error:  # whatever a broken backend raises is the finding
            if name == "float64" and "float64" in str(error):
                continue
            first = (str(error).strip().splitlines() or ["no message"])[0]
            checks.append(ScanCheck(backend, name, None, None, tolerance, f"{type(error).__name__}: {first}"))
    return checks


def _check(backend: str, device: str, name: str, tolerance: float) -> ScanCheck:
    dtype = getattr(torch, name)
    true_output, true_gradients = _truth(half=dtype == torch.bfloat16)
    output, gradients = _run(_inputs(dtype == torch.bfloat16), backend, device, dtype)
    gradient_error = max(_relative_error(gradients[key], truth) for key, truth in true_gradients.items())
    return ScanCheck(backend, name, _relative_error(output, true_output), gradient_error, tolerance)


@functools.cache
def _truth(half: bool) -> tuple[Tensor, dict[str, Tensor]]:
    return _run(_inputs(half), "naive", "cpu", torch.float64)


def _inputs(half: bool, batch: int = 2, channels: int = 5, state: int = 16) -> dict[str, Tensor]:
    """Arguments such as a freshly initialised Mamba layer sees: decays from 1 to 16, steps around 0.05.

    In float64, but of values that float32 (or bfloat16, for a run in that) can hold: all start from the same.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = {
        "u": normal(batch, LENGTH, channels),
        "delta": 0.5 * normal(batch, LENGTH, channels),
        "A": -torch.arange(1.0, state + 1).repeat(channels, 1),
        "B": normal(batch, LENGTH, state),
        "C": normal(batch, LENGTH, state),
        "D": normal(channels),
        "z": normal(batch, LENGTH, channels),
        "delta_bias": 0.5 * normal(channels) - 3,
    }
    return {key: (t.bfloat16() if half and key in IN_HALF else t).double() for key, t in inputs.items()}


def _run(inputs: dict[str, Tensor], backend: str, device: str, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradient of the sum of its squares for each argument, as float64 on the CPU."""
    parameters = torch.float32 if dtype == torch.bfloat16 else dtype
    arguments = {
        key: tensor.to(device, dtype if key in IN_HALF else parameters).requires_grad_()
        for key, tensor in inputs.items()
    }
    output = selective_scan(**arguments, delta_softplus=True, backend=backend)
    gradients = torch.autograd.grad(output.double().square().sum(), list(arguments.values()))
    results = [tensor.detach().double().cpu() for tensor in (output, *gradients)]
    return results[0], dict(zip(arguments, results[1:], strict=True))


def _relative_error(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).abs().max() / truth.abs().max())
