"""The networks that the accuracy benchmark trains, each made for a task's channels, classes and patch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from harness import json_or_text
from monai.losses import DeepSupervisionLoss
from monai.networks.layers import Conv

__all__ = ["BUILDERS", "build", "count_parameters", "nnunet_stages", "parse_spec"]

SMALLEST_SIZE = 4  # nnU-Net: an axis is pooled while its feature map keeps at least this many voxels
WIDEST = {2: 512, 3: 320}  # nnU-Net's bound on a stage's features
# nnU-Net's residual blocks a stage; a shorter network takes the first ones.
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6)


class Task(NamedTuple):
    """What a network is made for."""

    spatial_dims: int
    in_channels: int
    out_channels: int
    patch_size: tuple[int, ...]


def build(
    name: str, spatial_dims: int, in_channels: int, out_channels: int, patch_size: Sequence[int], **options: Any
) -> nn.Module:
    """A network by its name in BUILDERS; usable as ``_target_`` of a config's network_def."""
    return BUILDERS[name](Task(spatial_dims, in_channels, out_channels, tuple(patch_size)), **options)


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """NAME or NAME:KEY=VALUE,... -> name and options, values as in JSON where they are JSON.

    Commas within brackets part nothing; an item without "=" is the backend.
    """
    name, _, rest = spec.partition(":")
    items = [item.partition("=") for item in re.split(r",(?![^\[]*\])", rest) if item]
    return name, {key if equals else "backend": json_or_text(value if equals else key) for key, equals, value in items}


def count_parameters(make: Callable[[], nn.Module]) -> int:
    """Of the network that is made, by `network.parameters()`, without memory for it.

    nnU-Net's and MONAI's state_dicts name some tensors twice.
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


Stages = tuple[Sequence[int], Sequence[Any]]


def nnunet_stages(task: Task) -> tuple[list[int], list[tuple[int, ...]]]:
    """Features and strides of each stage by nnU-Net's rule: pool what stays large enough, double up to a bound."""
    sizes, strides = list(task.patch_size), [(1,) * task.spatial_dims]
    while any(size % 2 == 0 and size // 2 >= SMALLEST_SIZE for size in sizes):
        stride = tuple(2 if size % 2 == 0 and size // 2 >= SMALLEST_SIZE else 1 for size in sizes)
        sizes = [size // step for size, step in zip(sizes, stride)]
        strides.append(stride)
    return [min(32 * 2**i, WIDEST[task.spatial_dims]) for i in range(len(strides))], strides


def lightm_unet(
    task: Task,
    local_conv: bool = False,
    decoder: str = "separable",
    deep_supervision: bool = False,
    **options: Any,
) -> nn.Module:
    """The bundle's network, and three things to try on it.

    Args:
        task: what it is for.
        local_conv: before each residual VSS block, a depthwise convolution plus its input.
        decoder: "full" replaces the decoder's depthwise-separable convolutions by full ones.
        deep_supervision: while training, return logits of each decoder stage, finest first, for DeepLoss.
        options: of LightMUNet.
    """
    from scripts.networks import LightMUNet

    network = LightMUNet(task.spatial_dims, task.in_channels, task.out_channels, **options)
    if local_conv:
        for stage in network.encoder:
            stage.blocks = nn.ModuleList(LocallyConvolved(block, task.spatial_dims) for block in stage.blocks)
    if decoder == "full":
        convolution = Conv[Conv.CONV, task.spatial_dims]
        for block in (block for stage in network.decoder for block in stage.blocks):
            channels = block.norm1.num_channels
            block.conv = nn.Sequential(convolution(channels, channels, 3, padding=1, bias=False))
    elif decoder != "separable":
        raise ValueError(f"decoder must be separable or full, not {decoder!r}")
    return DeeplySupervised(network, task) if deep_supervision else network


class LocallyConvolved(nn.Module):
    """A residual VSS block that first adds to its input a depthwise convolution of it (Chu et al., arXiv 2102.10882).

    So voxels meet their neighbours along every axis, not only those that the scan has just read.
    """

    def __init__(self, block: nn.Module, spatial_dims: int) -> None:
        super().__init__()
        channels = block.norm1.num_channels
        convolution = Conv[Conv.CONV, spatial_dims]
        self.conv = convolution(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x + self.conv(x))


class DeepLoss(DeepSupervisionLoss):
    """The bundle's loss at each of a deeply supervised network's resolutions, half the weight at half the size."""

    def __init__(self) -> None:
        from scripts.engines.losses import DiceCELoss

        super().__init__(DiceCELoss())

    def forward(self, input: torch.Tensor | tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        return super().forward(input, torch.as_tensor(target).float())  # integers cannot be resized


class DeeplySupervised(nn.Module):
    """LightM-UNet with a 1x1 convolution to logits after each coarser decoder stage."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        convolution = Conv[Conv.CONV, task.spatial_dims]
        self.heads = nn.ModuleList(
            convolution(stage.reduce.conv.out_channels, task.out_channels, 1) for stage in network.decoder[:-1]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if not self.training:
            return self.network(x)
        features: list[torch.Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda module, inputs, output: features.append(output))
            for stage in self.network.decoder[:-1]
        ]
        logits = self.network(x)
        for hook in hooks:
            hook.remove()
        coarser = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return logits, *reversed(coarser)


def plain_conv_unet(task: Task, stages: Stages | None = None) -> nn.Module:
    """nnU-Net's network: two convolutions a stage, InstanceNorm, LeakyReLU; nnunet_stages unless others are given."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(n_conv_per_stage=2, n_conv_per_stage_decoder=2, **_nnunet_arguments(task, stages))


def residual_encoder_unet(task: Task) -> nn.Module:
    """nnU-Net's network of 2024 with a residual encoder."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    arguments = _nnunet_arguments(task)
    blocks = RESIDUAL_BLOCKS[: arguments["n_stages"]]
    return ResidualEncoderUNet(n_blocks_per_stage=blocks, n_conv_per_stage_decoder=1, **arguments)


def segresnet(task: Task, init_filters: int = 32) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(task.spatial_dims, init_filters, task.in_channels, task.out_channels)


def dynunet(task: Task, stages: Stages | None = None) -> nn.Module:
    """MONAI's version of nnU-Net's network, on the same plan."""
    from monai.networks.nets import DynUNet

    features, strides = stages or nnunet_stages(task)
    return DynUNet(
        task.spatial_dims,
        task.in_channels,
        task.out_channels,
        kernel_size=[3] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=features,
        norm_name=("INSTANCE", {"affine": True}),
    )


def _nnunet_arguments(task: Task, stages: Stages | None = None) -> dict[str, Any]:
    features, strides = stages or nnunet_stages(task)
    return {
        "input_channels": task.in_channels,
        "num_classes": task.out_channels,
        "n_stages": len(features),
        "features_per_stage": features,
        "strides": strides,
        "conv_op": nn.Conv2d if task.spatial_dims == 2 else nn.Conv3d,
        "kernel_sizes": 3,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d if task.spatial_dims == 2 else nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": False,
    }


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "lightm_unet": lightm_unet,
    "plain_conv_unet": plain_conv_unet,
    "residual_encoder_unet": residual_encoder_unet,
    "segresnet": segresnet,
    "dynunet": dynunet,
}
