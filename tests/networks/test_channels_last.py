"""The channels-last steps between the VSS layers against the plain modules in float64.

On the CPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn as nn
from layer_checks import DEVICE, float64_copy, needs_kernels, normal, relative_error
from torch import Tensor

from scripts.networks import LightMUNet, channels_last
from scripts.networks.convolutions import dense, depthwise_separable, strided


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, in which PyTorch's own convolutions are far from float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def check_step(step: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, exact: nn.Module | None = None) -> None:
    """`step` computes what `module` does, forward and backward, and leaves channels last in memory."""
    exact = exact or float64_copy(module)
    exact_x = x.double().requires_grad_()
    x = channels_last.to_channels_last(x).requires_grad_()
    y, true_y = step(x), exact(exact_x)
    assert y.shape == true_y.shape and y.movedim(1, -1).is_contiguous()
    dy = normal(*y.shape, seed=9)
    gradients = torch.autograd.grad(y, (x, *module.parameters()), dy)
    true_gradients = torch.autograd.grad(true_y, (exact_x, *exact.parameters()), dy.double())
    assert relative_error(y, true_y) < 1e-5
    for actual, expected in zip(gradients, true_gradients, strict=True):
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) < 1e-5


IMAGES = pytest.mark.parametrize("spatial", [(4, 6), (4, 2, 6)])


@needs_kernels
@IMAGES
@pytest.mark.parametrize("inplace", [False, True])
def test_group_norm_and_relu(spatial: tuple[int, ...], inplace: bool) -> None:
    torch.manual_seed(0)
    norm, act = nn.GroupNorm(4, 8).to(DEVICE), nn.ReLU(inplace=inplace)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = normal(2, 8, *spatial)
    before = x.clone()
    check_step(lambda x: channels_last.norm_act(norm, act, x), nn.Sequential(norm, act), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("norm", "act"),
    [
        (nn.GroupNorm(4, 8), nn.LeakyReLU(0.1)),
        (nn.GroupNorm(4, 8, affine=False), nn.ReLU()),
        (nn.InstanceNorm2d(8, affine=True), nn.ReLU()),
        (nn.BatchNorm2d(8), nn.ReLU()),
    ],
)
def test_other_norms_and_activations_are_left_to_pytorch(norm: nn.Module, act: nn.Module) -> None:
    norm = norm.to(DEVICE)
    x = channels_last.to_channels_last(normal(2, 8, 4, 6))
    assert torch.equal(channels_last.norm_act(norm, act, x), act(norm(x)))


@IMAGES
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise(spatial: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    conv = (nn.Conv2d if len(spatial) == 2 else nn.Conv3d)(3, 5, 1, bias=bias).to(DEVICE)
    check_step(lambda x: channels_last.pointwise(conv, x), conv, normal(2, 3, *spatial))


@needs_kernels
@IMAGES
@pytest.mark.parametrize(("channels", "kernel_size"), [(3, 3), (1, 3), (8, 3), (8, 1)])
def test_depthwise_separable(spatial: tuple[int, ...], channels: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    block = depthwise_separable(len(spatial), channels, 4, kernel_size, bias=kernel_size == 1).to(DEVICE)
    check_step(lambda x: channels_last.depthwise_separable(block, x), block, normal(2, channels, *spatial))


@needs_kernels
@IMAGES
@pytest.mark.parametrize("kind", ["dense", "strided"])
def test_norm_act_conv_keeps_its_input_alone(spatial: tuple[int, ...], kind: str) -> None:
    torch.manual_seed(0)
    dims, stride = len(spatial), (1, 2, 2)[-len(spatial) :]
    conv = (dense(dims, 8) if kind == "dense" else strided(dims, 8, 4, stride)).to(DEVICE)
    norm, act = nn.GroupNorm(4, 8).to(DEVICE), nn.ReLU()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = normal(2, 8, *spatial)
    check_step(lambda x: channels_last.norm_act_conv(norm, act, conv, x), nn.Sequential(norm, act, conv), x)
    y = channels_last.norm_act_conv(norm, act, conv, channels_last.to_channels_last(x).requires_grad_())
    assert sum(kept.shape == x.shape for kept in y.grad_fn.saved_tensors) == 1


@IMAGES
@pytest.mark.parametrize("thin_axis", [None, 0, -1])
def test_max_pool(spatial: tuple[int, ...], thin_axis: int | None) -> None:
    stride = [2] * len(spatial)
    if thin_axis is not None:
        stride[thin_axis] = 1
    pool = (nn.MaxPool2d if len(spatial) == 2 else nn.MaxPool3d)(tuple(stride))
    check_step(lambda x: channels_last.max_pool(x, stride), pool, normal(2, 3, *spatial))
    x = channels_last.to_channels_last(normal(2, 3, *spatial))
    x[0, 1, 0, 1] = float("nan")
    assert torch.equal(channels_last.max_pool(x, stride).isnan(), pool(x).isnan())


@needs_kernels
@pytest.mark.parametrize(("stem", "conv_stages"), [("separable", 0), ("full", 0), ("full", 1)])
def test_whole_network_with_these_steps_is_plain(stem: str, conv_stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a GPU's forward and backward pass but the fused VSS layers, which stay plain."""
    torch.manual_seed(0)
    arguments = {"blocks_down": (1, 1), "blocks_up": (1,), "stem": stem, "conv_stages": conv_stages}
    net = LightMUNet(2, 1, 3, 8, **arguments, backend="naive").to(DEVICE)
    exact, x = float64_copy(net), normal(1, 1, 8, 8)
    unavailable = channels_last.unavailable
    monkeypatch.setattr(channels_last, "unavailable", lambda x: None if x.dtype == torch.float32 else unavailable(x))
    monkeypatch.setattr(LightMUNet, "_prefers_channels_last", lambda net, x: True)
    y, true_y = net(x), exact(x.double())
    assert relative_error(y, true_y) < 1e-5
    dy = normal(*y.shape, seed=9)
    gradients = torch.autograd.grad(y, tuple(net.parameters()), dy)
    true_gradients = torch.autograd.grad(true_y, tuple(exact.parameters()), dy.double())
    # As one vector: some are 0 but for rounding, those of biases that a norm takes away again.
    assert relative_error(*(torch.cat([g.flatten() for g in gs]) for gs in (gradients, true_gradients))) < 1e-5
