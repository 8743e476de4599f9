"""The stages of LightM-UNet: encoder stages of residual VSS blocks, decoder stages of residual convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from monai.networks.blocks.segresnet_block import get_upsample_layer
from monai.networks.layers import DropPath
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import UpsampleMode
from torch.utils.checkpoint import checkpoint

from . import channels_last
from .convolutions import convolution, convolve, depthwise_separable, norm_act
from .vss import VSSLayer

__all__ = ["DecoderStage", "EncoderStage"]


class EncoderStage(nn.Module):
    """A VSS layer to the new width and a max-pool by ``stride`` (neither in the first stage), then residual blocks:
    one for each probability of leaving it out."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        drop_paths: Sequence[float],
        stride: tuple[int, ...] | None,
        norm: tuple | str,
        act: tuple | str,
        make_vss: Callable[[int, int], VSSLayer],
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.downsample = nn.Identity()
        if stride:
            pool = (nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d)(kernel_size=stride)
            self.downsample = nn.Sequential(make_vss(in_channels, out_channels), pool)
        self.blocks = nn.ModuleList(
            ResidualVSSBlock(spatial_dims, out_channels, norm, act, make_vss, probability) for probability in drop_paths
        )

    def forward(self, x: torch.Tensor, fused: bool = False) -> torch.Tensor:
        for module in (self._downsample, *self.blocks):
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(module, x, fused, use_reentrant=False)
            else:
                x = module(x, fused)
        return x

    def _downsample(self, x: torch.Tensor, fused: bool) -> torch.Tensor:
        if not fused or isinstance(self.downsample, nn.Identity):
            return self.downsample(x)
        layer, pool = self.downsample
        return channels_last.max_pool(layer(x), pool.kernel_size)


class ResidualVSSBlock(nn.Module):
    """norm, act, VSS, norm, act, VSS, left out for an image with probability ``drop_path``, plus the input."""

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        norm: tuple | str,
        act: tuple | str,
        make_vss: Callable[[int, int], VSSLayer],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)
        self.vss1 = make_vss(channels, channels)
        self.norm2 = get_norm_layer(norm, spatial_dims, channels)
        self.vss2 = make_vss(channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor, fused: bool = False) -> torch.Tensor:
        y = self.vss1(norm_act(self.norm1, self.act, x, fused))
        return x + self.drop_path(self.vss2(norm_act(self.norm2, self.act, y, fused)))


class DecoderStage(nn.Module):
    """Halve the width, upsample by ``stride``, add the encoder's feature map, then residual convolution blocks."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        blocks: int,
        stride: tuple[int, ...],
        norm: tuple | str,
        act: tuple | str,
        upsample_mode: UpsampleMode | str,
    ) -> None:
        super().__init__()
        width = in_channels // 2
        self.reduce = convolution(spatial_dims, in_channels, width, kernel_size=1)
        self.upsample = get_upsample_layer(spatial_dims, width, upsample_mode, scale_factor=stride)
        self.blocks = nn.Sequential(*(ResidualConvBlock(spatial_dims, width, norm, act) for _ in range(blocks)))

    def forward(self, x: torch.Tensor, skip: torch.Tensor, fused: bool = False) -> torch.Tensor:
        x = self.upsample(channels_last.pointwise(self.reduce.conv, x) if fused else self.reduce(x))
        x = (channels_last.to_channels_last(x) if fused else x) + skip
        for block in self.blocks:
            x = block(x, fused)
        return x


class ResidualConvBlock(nn.Module):
    """norm, act, depthwise-separable convolution plus the scaled input, norm, act."""

    def __init__(self, spatial_dims: int, channels: int, norm: tuple | str, act: tuple | str) -> None:
        super().__init__()
        self.norm1 = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)
        self.conv = depthwise_separable(spatial_dims, channels, channels)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm2 = get_norm_layer(norm, spatial_dims, channels)

    def forward(self, x: torch.Tensor, fused: bool = False) -> torch.Tensor:
        y = convolve(self.conv, norm_act(self.norm1, self.act, x, fused), fused) + self.skip_scale * x
        return norm_act(self.norm2, self.act, y, fused)
