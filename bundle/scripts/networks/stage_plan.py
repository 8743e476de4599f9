"""Which stages a LightM-UNet has: the paper's, or convolutions where images are fine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn as nn
from monai.utils import UpsampleMode

from .conv_stages import ConvDecoderStage, DenseBlock, NormActConv
from .convolutions import dense, strided
from .stages import DecoderStage, EncoderStage, ResidualVSSBlock, VSSDownsample
from .vss import VSSLayer

__all__ = ["StagePlan"]


@dataclass(frozen=True)
class StagePlan:
    """What all stages of a network have in common, and each stage by its number; 0 is the finest.

    The arguments of :class:`.LightMUNet`, and ``make_vss``, which makes one VSS layer after another.
    """

    spatial_dims: int
    widths: Sequence[int]
    strides: Sequence[tuple[int, ...]]
    conv_stages: int
    norm: tuple | str
    act: tuple | str
    upsample_mode: UpsampleMode | str
    make_vss: Callable[[int, int], VSSLayer]
    use_checkpoint: bool
    recompute_activations: bool

    def encoder_stage(self, number: int, left_out: Sequence[float]) -> EncoderStage:
        """``left_out``: for each block, with which probability training leaves it out."""
        downsample = self._downsample(number) if number else nn.Identity()
        return EncoderStage(downsample, [self._block(number, share) for share in left_out], self.use_checkpoint)

    def decoder_stage(self, number: int, blocks: int) -> nn.Module:
        """The way up from stage number + 1."""
        before, stride = self.widths[number + 1], self.strides[number]
        if number >= self.conv_stages:
            return DecoderStage(self.spatial_dims, before, blocks, stride, self.norm, self.act, self.upsample_mode)
        convs = [self._dense(before // 2) for _ in range(blocks)]
        return ConvDecoderStage(self.spatial_dims, before, stride, convs, self.norm, self.act)

    def _downsample(self, number: int) -> nn.Module:
        before, width, stride = self.widths[number - 1], self.widths[number], self.strides[number - 1]
        if self.conv_stages:
            return self._norm_act_conv(before, strided(self.spatial_dims, before, width, stride))
        return VSSDownsample(self.spatial_dims, self.make_vss(before, width), stride)

    def _block(self, number: int, left_out: float) -> nn.Module:
        width = self.widths[number]
        if number < self.conv_stages:
            return DenseBlock(self._dense(width), self._dense(width))
        return ResidualVSSBlock(self.spatial_dims, width, self.norm, self.act, self.make_vss, left_out)

    def _dense(self, width: int) -> NormActConv:
        return self._norm_act_conv(width, dense(self.spatial_dims, width))

    def _norm_act_conv(self, channels: int, conv: nn.Module) -> NormActConv:
        return NormActConv(self.spatial_dims, channels, self.norm, self.act, conv, self.recompute_activations)
