"""The network's steps between its VSS layers, for feature maps that lie channels-last in memory on a GPU.

Each takes the module that holds the weights and (batch, channels, *spatial) tensors whose channels are
neighbours in memory, and computes what the module would, without going back to channels-first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..ops import fused

__all__ = [
    "depthwise_separable",
    "laid_out_like",
    "max_pool",
    "norm_act",
    "norm_act_conv",
    "pointwise",
    "to_channels_last",
    "unavailable",
]


def unavailable(x: Tensor) -> str | None:
    """Why the steps of this file cannot take x; None: they can. On a CPU only Triton's interpreter runs them."""
    if (reason := fused.unavailable_for(x)) is not None:
        return reason
    return None if x.movedim(1, -1).is_contiguous() else "the channels are no neighbours in memory"


def to_channels_last(x: Tensor) -> Tensor:
    """x with its channels as neighbours in memory."""
    x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if x.is_cuda and x.shape[1] == 1:
        # One channel lies both ways; cuDNN goes by the strides, and its result lies as its input does.
        x = x.as_strided(x.shape, [1 if axis == 1 else stride for axis, stride in enumerate(x.stride())])
    return x


def laid_out_like(x: Tensor, other: Tensor) -> Tensor:
    """x with its channels as neighbours in memory where those of ``other`` are: some of PyTorch's convolutions give
    another layout than they get, and all that follows would go on in it."""
    memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return to_channels_last(x) if other.is_contiguous(memory_format=memory_format) else x


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """act(norm(x)); GroupNorm and ReLU in one kernel."""
    if _is_group_norm_relu(norm, act):
        from ..ops.fused.group_norm import group_norm_relu_channels_last

        return group_norm_relu_channels_last(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return act(norm(x))


def norm_act_conv(norm: nn.Module, act: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
    """conv(act(norm(x))), of which x alone is kept for the backward pass where norm and act are GroupNorm and ReLU."""
    if _is_group_norm_relu(norm, act) and torch.is_grad_enabled():
        from ..ops.fused.norm_relu_conv import norm_relu_conv

        norm_arguments = (norm.num_groups, norm.weight, norm.bias, norm.eps)
        return norm_relu_conv(x, *norm_arguments, conv.weight, conv.stride, conv.padding)
    return conv(norm_act(norm, act, x))


def pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution as a matrix product over the channels."""
    return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)


def depthwise_separable(block: nn.Sequential, x: Tensor) -> Tensor:
    """A depthwise convolution of width 3 or 1, then a pointwise one."""
    depthwise, conv = (module.conv for module in block)
    if depthwise.kernel_size[0] == 1:
        # It scales each channel: a factor and a summand of the pointwise convolution.
        weight = conv.weight.flatten(1) * depthwise.weight.flatten()
        bias = torch.mv(conv.weight.flatten(1), depthwise.bias) + conv.bias
        return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    from ..ops.fused.depthwise_conv import depthwise_conv

    return pointwise(conv, depthwise_conv(x.movedim(1, -1), depthwise.weight).movedim(-1, 1))


def max_pool(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The largest of each block of ``stride`` neighbours; 1 or 2 along the first axis in 3D."""
    if x.dim() == 4:
        return F.max_pool2d(x, tuple(stride))
    # PyTorch's 3D pooling copies to channels-first: pool the planes, then pairs of planes.
    batch, channels, depth, height, width = x.shape
    planes = x.movedim(2, 1).reshape(batch * depth, channels, height, width)
    planes = F.max_pool2d(planes, tuple(stride[1:]))
    if stride[0] == 1:
        return planes.unflatten(0, (batch, depth)).movedim(1, 2)
    planes = planes.unflatten(0, (batch, depth // 2, 2))
    return torch.maximum(planes[:, :, 0], planes[:, :, 1]).movedim(1, 2)


def _is_group_norm_relu(norm: nn.Module, act: nn.Module) -> bool:
    return isinstance(norm, nn.GroupNorm) and norm.affine and isinstance(act, nn.ReLU)
