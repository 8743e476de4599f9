"""What the scan benchmark runs: inputs, the backends and the baselines on them, and the truth in float64."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.ops.selective_scan import backend_report, selective_scan

MODES = ("forward", "forward_backward")
RAW, MAMBAPY = "mamba-ssm", "mambapy"
IN_DTYPE = ("u", "delta", "B", "C", "z")  # the inputs that --dtype is about; the others are float32


class Shape(NamedTuple):
    batch: int
    length: int
    channels: int
    state: int

    def __str__(self) -> str:
        return "x".join(str(n) for n in self)


def parse_shape(text: str) -> Shape:
    try:
        return Shape(*(int(n) for n in text.split("x")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxLENGTHxCHANNELSxSTATE, such as 1x4096x64x16") from None


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs as a freshly initialised Mamba block feeds them: step sizes 1e-3 .. 1e-1, A = -1 .. -state."""
    batch, length, channels, state = shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    step = torch.exp(torch.rand(channels, generator=generator, device=device) * 4.6 - 6.9)
    inputs = {
        "u": normal(batch, length, channels),
        "delta": 0.5 * normal(batch, length, channels),
        "A": -torch.arange(1.0, state + 1, device=device).repeat(channels, 1),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": torch.ones(channels, device=device),
        "z": normal(batch, length, channels),
        "delta_bias": torch.log(torch.expm1(step)),
    }
    return {name: tensor.to(dtype) if name in IN_DTYPE else tensor for name, tensor in inputs.items()}


def mambapy_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    from mambapy.pscan import pscan

    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)
    states = pscan(decay, (delta * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((states @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def raw_mamba_ssm_scan(**inputs: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(**inputs, delta_softplus=True)


class Candidate:
    """One backend or baseline on one set of inputs, in the layout it wants (made before the clock starts)."""

    def __init__(self, name: str, inputs: dict[str, Tensor]) -> None:
        self.name = name
        self.channels_first = name == RAW
        leaves = {key: self._layout(tensor) for key, tensor in inputs.items()}
        # The fixed gradient at y; any values will do, and these need no more memory.
        self.dy = leaves["z"]
        self.leaves = {key: tensor.detach().requires_grad_() for key, tensor in leaves.items()}

    def _layout(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2).contiguous() if self.channels_first and tensor.dim() == 3 else tensor

    def scan(self) -> Tensor:
        if self.name == RAW:
            return raw_mamba_ssm_scan(**self.leaves)
        if self.name == MAMBAPY:
            return mambapy_scan(**self.leaves)
        return selective_scan(**self.leaves, delta_softplus=True, backend=self.name)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.scan()

    def forward_backward(self) -> tuple[Tensor, ...]:
        y = self.scan()
        return y.detach(), *torch.autograd.grad(y, list(self.leaves.values()), self.dy)

    def results(self, mode: str) -> dict[str, Tensor]:
        """y and, with `forward_backward`, each input's gradient, channels last."""
        tensors = self.forward_backward() if mode == "forward_backward" else (self.forward(),)
        named = zip(("y", *self.leaves), tensors, strict=False)
        return {name: t.transpose(1, 2) if self.channels_first and t.dim() == 3 else t for name, t in named}


def true_results(inputs: dict[str, Tensor], backward: bool, channels_at_once: int = 64) -> dict[str, Tensor]:
    """y and the gradients in float64, by batch items and blocks of channels, so that the temporaries stay small."""
    batch, _, channels = inputs["u"].shape
    names = ("y", *inputs) if backward else ("y",)
    truth = {name: torch.zeros_like(inputs["u" if name == "y" else name], dtype=torch.float64) for name in names}
    for b in range(batch):
        for c in range(0, channels, channels_at_once):
            cut = {name: _block(name, b, slice(c, c + channels_at_once)) for name in ("y", *inputs)}
            part = Candidate("chunked", {name: t[cut[name]].double() for name, t in inputs.items()})
            for name, value in part.results(MODES[backward]).items():
                truth[name][cut[name]] += value
    return truth


def _block(name: str, item: int, channels: slice) -> tuple[slice, ...]:
    """Where one batch item and some channels stand in an input; B, C and the parameters are shared."""
    if name in ("A", "D", "delta_bias"):
        return (channels,)
    return (slice(item, item + 1), slice(None), slice(None) if name in ("B", "C") else channels)


def relative_errors(value: Tensor, truth: Tensor) -> tuple[float, float]:
    """The largest error and its root mean square, each relative to that of the truth."""
    difference = value.double() - truth
    largest = difference.abs().max() / truth.abs().max()
    return largest.item(), (difference.norm() / truth.norm()).item()


def minimal_bytes(inputs: dict[str, Tensor], mode: str) -> int:
    """Each input read once and y written once; backward: all inputs and dy read again, all gradients written."""
    read = sum(t.numel() * t.element_size() for t in inputs.values())
    y = inputs["u"].numel() * inputs["u"].element_size()
    return read + y if mode == "forward" else 3 * read + 2 * y


def candidate_report(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """For each backend and baseline, why it cannot run; None: it can."""
    report = backend_report(device)
    report[RAW] = report.get("mamba_ssm", "needs the mamba_ssm backend")
    report[MAMBAPY] = None
    try:
        import mambapy.pscan  # noqa: F401
    except ImportError as error:
        report[MAMBAPY] = f"{error}: pip install mambapy"
    if device.type != "cpu" or dtype != torch.float32:
        report[MAMBAPY] = "a baseline for the CPU in float32"
    return report
