"""What the network benchmark runs: LightMUNet, the reference structure and the convolutional networks beside it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import accuracy_networks
import torch
import torch.nn as nn
import torch.nn.functional as F
from accuracy_networks import parse_spec
from harness import record

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))

CLASSES = {2: 2, 3: 3}  # by the number of spatial dimensions
FILTERS = 32


class Shape(NamedTuple):
    """Of the input."""

    batch: int
    channels: int
    spatial: tuple[int, ...]

    @property
    def dims(self) -> int:
        return len(self.spatial)

    def __str__(self) -> str:
        return "x".join(str(n) for n in (self.batch, self.channels, *self.spatial))


def parse_shape(text: str) -> Shape:
    try:
        batch, channels, *spatial = (int(n) for n in text.split("x"))
    except ValueError:
        spatial = []
    if len(spatial) not in CLASSES:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxCHANNELSxHEIGHTxWIDTH or ...xDEPTHxHEIGHTxWIDTH")
    return Shape(batch, channels, tuple(spatial))


def build(spec: str, shape: Shape) -> nn.Module:
    """The network that a spec names, with random weights, on the CPU.

    Args:
        spec: NAME or NAME:BACKEND or NAME:KEY=VALUE,... with constructor arguments, values as in JSON; a
            BACKEND may stand first among these.

    Raises:
        ValueError: there is no such network.
        ImportError: its package is missing.
    """
    name, options = parse_spec(spec)
    if name not in BUILDERS:
        raise ValueError(f"unknown network {name!r}: choose from {', '.join(BUILDERS)}")
    return BUILDERS[name](shape, **options)


def lightm_unet(shape: Shape, init_filters: int = FILTERS, **options: Any) -> nn.Module:
    """The paper's network, unless options say otherwise."""
    from scripts.networks import LightMUNet

    return LightMUNet(shape.dims, shape.channels, CLASSES[shape.dims], init_filters=init_filters, **options)


def default(shape: Shape, **options: Any) -> nn.Module:
    """LightM-UNet as planning and configs/train.json set it up."""
    return lightm_unet(shape, **(default_options() | options))


def default_options() -> dict[str, Any]:
    """Arguments of LightMUNet that planning and configs/train.json choose."""
    from scripts.planning.network_settings import CONV_STAGES

    config = json.loads((BUNDLE / "configs" / "train.json").read_text(encoding="utf-8"))
    return {"conv_stages": CONV_STAGES} | {
        name: config[name] for name in ("scan_order", "stem", "norm_bias", "drop_path")
    }


def reference(shape: Shape, init_filters: int = FILTERS, backend: str = "mamba-ssm") -> nn.Module:
    """The authors' structure with mamba-ssm's block, or for comparison with our plain one on a backend."""
    from reference_lightm_unet import ReferenceLightMUNet, mamba_ssm_block

    from scripts.networks.vss import Mamba

    make = mamba_ssm_block if backend == "mamba-ssm" else lambda width: Mamba(width, backend=backend)
    return ReferenceLightMUNet(shape.dims, shape.channels, CLASSES[shape.dims], init_filters, make)


class ChannelsLast(nn.Module):
    """A network whose weights and input have their channels as neighbours in memory."""

    def __init__(self, network: nn.Module, dims: int) -> None:
        super().__init__()
        self.format = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.network = network.to(memory_format=self.format)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.contiguous(memory_format=self.format))


def plain_conv_unet(
    shape: Shape, stages: int | None = None, features: int = FILTERS, channels_last: bool = False
) -> nn.Module:
    network = accuracy_networks.plain_conv_unet(task(shape), plan(shape, stages, features))
    return ChannelsLast(network, shape.dims) if channels_last else network


def task(shape: Shape) -> accuracy_networks.Task:
    return accuracy_networks.Task(shape.dims, shape.channels, CLASSES[shape.dims], shape.spatial)


def plan(shape: Shape, stages: int | None = None, features: int = FILTERS) -> accuracy_networks.Stages:
    """Widths and strides of a convolutional UNet, one entry a stage.

    As nnU-Net plans 512x512 (eight stages, which 256x256 gets too), 128x128 (six) and 40x56x40 (four).

    80x128x128 gets five stages, the 16.5 M parameters of earlier comparisons; a sixth, which nnU-Net adds where an
    axis still has 8 voxels, makes it 30.8 M and hardly slower.
    """
    smallest = min(shape.spatial)
    if shape.dims == 2:
        stages = stages or (8 if smallest >= 256 else 6)
        return tuple(min(features * 2**i, 512) for i in range(stages)), (1, *[2] * (stages - 1))
    stages = stages or (5 if smallest >= 64 else 4)
    strides = (1, 2, 2, 2, 2, (1, 2, 2))[:stages]
    return tuple(min(features * 2**i, 320) for i in range(stages)), strides


def segresnet(shape: Shape, init_filters: int = FILTERS) -> nn.Module:
    return accuracy_networks.segresnet(task(shape), init_filters)


def dynunet(shape: Shape, stages: int | None = None) -> nn.Module:
    return accuracy_networks.dynunet(task(shape), plan(shape, stages))


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "default": default,
    "lightm_unet": lightm_unet,
    "reference": reference,
    "plain_conv_unet": plain_conv_unet,
    "segresnet": segresnet,
    "dynunet": dynunet,
}


def default_specs(device: torch.device, shape: Shape, backends: Sequence[str]) -> list[str]:
    specs = ["default", *(f"lightm_unet:{backend}" for backend in backends)]
    # mamba-ssm has no CPU code: there our plain PyTorch scan takes its place in the reference structure.
    specs.append("reference" if device.type == "cuda" else "reference:chunked")
    specs.append("plain_conv_unet")
    if shape.dims == 3 and device.type == "cuda":
        specs.append("plain_conv_unet:stages=6")
    return [*specs, "segresnet", "dynunet"]


class Trial:
    """A network on a device with an input of the shape: a train step and a forward pass.

    The step is a forward pass, cross-entropy, a backward pass and AdamW. With `cuda_graph` each pass is recorded
    once and then replayed, so that it takes the GPU's time, however slow the host is.
    """

    def __init__(self, spec: str, shape: Shape, device: torch.device, amp: bool, cuda_graph: bool = False) -> None:
        torch.manual_seed(0)
        self.device, self.amp, self.cuda_graph = device, amp, cuda_graph
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self.network = build(spec, shape).to(device)
        self.parameters = sum(p.numel() for p in self.network.parameters())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, capturable=cuda_graph)
        self.image = torch.randn(shape.batch, shape.channels, *shape.spatial, device=device)
        self.target = torch.randint(CLASSES[shape.dims], (shape.batch, *shape.spatial), device=device)

    def run(self, mode: str) -> None:
        if not self.cuda_graph:
            self._pass(mode)
        elif mode in self._graphs:
            self._graphs[mode].replay()
        else:
            self._graphs[mode] = record(partial(self._pass, mode), self.device)

    def _pass(self, mode: str) -> None:
        if mode == "train":
            self._train_step()
        else:
            self._forward()

    def ready(self, mode: str) -> None:
        """Switch to the mode, and let the allocator and the caches see it once, untimed."""
        self.network.train(mode == "train")
        if self.device.type == "cuda":
            _, total = torch.cuda.mem_get_info(self.device)
            if torch.cuda.memory_reserved(self.device) > total // 2:  # by other networks' activations
                torch.cuda.empty_cache()
            self.run(mode)

    def _train_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = F.cross_entropy(self.network(self.image), self.target)
        loss.backward()
        self.optimizer.step()

    def _forward(self) -> None:
        with torch.no_grad(), self._autocast():
            self.network(self.image)

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.amp:
            return nullcontext()
        # A graph must not refer to weights that autocast keeps in half precision for one pass.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=not self.cuda_graph)


class Turn(NamedTuple):
    """A callable for `interleave`."""

    trial: Trial
    mode: str

    def __call__(self) -> None:
        self.trial.run(self.mode)

    def ready(self) -> None:
        self.trial.ready(self.mode)
