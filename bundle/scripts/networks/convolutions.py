"""LightM-UNet's convolutions and normalisations: as modules, and in the form that suits where they run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from monai.networks.blocks.convolutions import Convolution

from . import channels_last

__all__ = [
    "convolution",
    "convolve",
    "dense",
    "depthwise_separable",
    "in_channels_last",
    "max_pool",
    "norm_act",
    "norm_act_conv",
    "pointwise",
    "strided",
    "transposed",
]


def in_channels_last(x: torch.Tensor) -> bool:
    """Whether x takes the GPU's way through the network, in which channels are neighbours in memory."""
    return channels_last.unavailable(x) is None


def norm_act(norm: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return channels_last.norm_act(norm, act, x) if in_channels_last(x) else act(norm(x))


def norm_act_conv(
    norm: nn.Module, act: nn.Module, conv: nn.Module, x: torch.Tensor, recompute: bool = True
) -> torch.Tensor:
    """conv(act(norm(x))); ``recompute``: on a GPU, act(norm(x)) again in the backward pass, rather than to keep it."""
    if recompute and in_channels_last(x):
        return channels_last.norm_act_conv(norm, act, conv, x)
    return conv(norm_act(norm, act, x))


def convolve(block: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """One convolution, or a depthwise and a pointwise one."""
    return channels_last.depthwise_separable(block, x) if len(block) == 2 and in_channels_last(x) else block(x)


def pointwise(block: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution."""
    return channels_last.pointwise(block.conv, x) if in_channels_last(x) else block(x)


def max_pool(pool: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return channels_last.max_pool(x, pool.kernel_size) if in_channels_last(x) else pool(x)


def dense(spatial_dims: int, channels: int) -> nn.Module:
    """A convolution of width 3 over all channels, without a bias."""
    return _convs(spatial_dims)[0](channels, channels, 3, padding=1, bias=False)


def strided(spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
    """A convolution of blocks of ``stride`` voxels into one."""
    return _convs(spatial_dims)[0](in_channels, out_channels, tuple(stride), tuple(stride), bias=False)


def transposed(spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
    """The way back: of each voxel a block of ``stride``."""
    return _convs(spatial_dims)[1](in_channels, out_channels, tuple(stride), tuple(stride), bias=False)


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


def _convs(spatial_dims: int) -> tuple[type[nn.Module], type[nn.Module]]:
    return (nn.Conv2d, nn.ConvTranspose2d) if spatial_dims == 2 else (nn.Conv3d, nn.ConvTranspose3d)
