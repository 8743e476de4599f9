"""What the tests of the scan's backends share: random arguments, one call with all gradients, and comparisons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.ops.selective_scan import backend_report, selective_scan

PARITY = Path(__file__).resolve().parents[1] / "parity" / "selective_scan.npz"
# "triton" computes in float32 only, and on a CPU in an interpreter: it has tests of its own, test_triton_gpu.py.
ON_CPU = [name for name, reason in backend_report("cpu").items() if reason is None and name != "triton"]
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def make_inputs(
    batch: int = 2,
    length: int = 40,
    channels: int = 3,
    state: int = 2,
    optional: tuple[str, ...] = OPTIONAL,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Arguments of `selective_scan`; of the optional ones those named."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, device=device).to(dtype)

    inputs = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) - 1,
        "A": -normal(channels, state).exp(),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, state),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in OPTIONAL or name in optional}


def scan(inputs: dict[str, Tensor], backend: str, delta_softplus: bool = True) -> tuple[Tensor, Tensor]:
    """y and the last state."""
    return selective_scan(**inputs, delta_softplus=delta_softplus, return_last_state=True, backend=backend)


def scan_and_gradients(
    inputs: dict[str, Tensor], backend: str, delta_softplus: bool = True
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """y, the last state, and the gradients of a loss that weighs every element of both differently."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}  # views stay views
    y, last_state = scan(leaves, backend, delta_softplus)
    loss = (y * _ramp(-1, 1, y)).sum() + (last_state * _ramp(1, 2, last_state)).sum()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return y.detach(), last_state.detach(), gradients


def gradients(inputs: dict[str, Tensor], backend: str, delta_softplus: bool = True) -> dict[str, Tensor]:
    """The gradients of `scan_and_gradients`."""
    return scan_and_gradients(inputs, backend, delta_softplus)[2]


def _ramp(first: float, last: float, like: Tensor) -> Tensor:
    values = torch.linspace(first, last, like.numel(), dtype=torch.float64, device=like.device)
    return values.to(like.dtype).view(like.shape)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Values agree up to `tolerance` times the largest."""
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"{name}: relative error {error:.1e} > {tolerance:.0e}"


def assert_parity_with_the_authors_scan(backend: str, device: str = "cpu") -> None:
    """Output, last state and gradients are those that mamba_ssm's CUDA scan gave."""
    with np.load(PARITY) as file:
        arrays = {name: torch.from_numpy(file[name]).to(device) for name in file.files}
    # The file is (batch, channels, length); its last state is (batch, channels, state), as ours.
    data = {
        name: array.transpose(1, 2) if array.dim() == 3 and name != "last_state" else array
        for name, array in arrays.items()
    }
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    leaves = {name: data[name].clone().requires_grad_() for name in names}
    y, last_state = scan(leaves, backend)
    assert_close(y, data["y"], 1e-4, "y")
    assert_close(last_state, data["last_state"], 1e-4, "last state")
    for name, gradient in zip(names, torch.autograd.grad(y, list(leaves.values()), data["y_grad"]), strict=True):
        assert_close(gradient, data[f"grad_{name}"], 1e-3, name)
