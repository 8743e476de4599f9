"""What the fused kernels compute, in plain PyTorch: their specification, differentiable, on any device and dtype."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["causal_conv_silu", "depthwise_conv", "group_norm_relu", "layer_norm"]


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """LayerNorm over the last dimension of `x`, or of `x + scale * residual`."""
    t = x if residual is None else x + scale * residual
    return F.layer_norm(t, t.shape[-1:], weight, bias, eps)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of a depthwise convolution that sees only the past: x (batch, length, D), weight (D, K), bias (D,)."""
    channels, width = weight.shape
    past = F.pad(x.transpose(1, 2), (width - 1, 0))
    return F.silu(F.conv1d(past, weight[:, None], bias, groups=channels)).transpose(1, 2)


def group_norm_relu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, relu: bool = True
) -> Tensor:
    """GroupNorm of tokens (batch, length, C), statistics over length and a group's channels, then ReLU."""
    y = F.group_norm(x.transpose(1, 2), num_groups, weight, bias, eps).transpose(1, 2)
    return F.relu(y) if relu else y


def depthwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise convolution of width 3 and padding 1: x (batch, *spatial, C), weight (C, 1, 3, 3[, 3])."""
    conv = F.conv2d if x.dim() == 4 else F.conv3d
    return conv(x.movedim(-1, 1), weight, padding=1, groups=x.shape[-1]).movedim(1, -1)
