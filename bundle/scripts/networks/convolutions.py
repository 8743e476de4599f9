"""LightM-UNet's convolutions and normalisations: as modules, and how they run where the fused kernels do."""

from __future__ import annotations

import torch
import torch.nn as nn
from monai.networks.blocks.convolutions import Convolution

from . import channels_last

__all__ = ["convolution", "convolve", "depthwise_separable", "norm_act"]


def norm_act(norm: nn.Module, act: nn.Module, x: torch.Tensor, fused: bool) -> torch.Tensor:
    return channels_last.norm_act(norm, act, x) if fused else act(norm(x))


def convolve(block: nn.Sequential, x: torch.Tensor, fused: bool) -> torch.Tensor:
    """One convolution, or a depthwise and a pointwise one."""
    return channels_last.depthwise_separable(block, x) if fused and len(block) == 2 else block(x)


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    groups: int = 1,
    bias: bool = False,
) -> Convolution:
    return Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        groups=groups,
        bias=bias,
        conv_only=True,
    )


def depthwise_separable(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = False
) -> nn.Sequential:
    """A depthwise convolution, then a pointwise one."""
    return nn.Sequential(
        convolution(spatial_dims, in_channels, in_channels, kernel_size, groups=in_channels, bias=bias),
        convolution(spatial_dims, in_channels, out_channels, kernel_size=1, bias=bias),
    )
