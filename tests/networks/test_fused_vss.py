"""The fused VSS layer against its plain form in float64: on a GPU, or at tiny sizes in Triton's interpreter."""

from __future__ import annotations

import weakref
from itertools import islice
from typing import Any

import pytest
import torch
from layer_checks import DEVICE, HAS_GPU, float64_copy, needs_kernels, normal, relative_error, run
from torch import Tensor

from scripts.networks import LightMUNet, fused_vss
from scripts.networks.fused_vss import fused_vss_layer
from scripts.networks.scan_order import SCAN_ORDERS, scan_paths
from scripts.networks.stages import EncoderStage, VSSDownsample
from scripts.networks.vss import VSSLayer
from scripts.ops.selective_scan import triton_gpu

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")  # of autocast("cuda") on a CPU


RECOMPUTE = pytest.mark.parametrize("recompute", [True, False])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less work for the interpreter."""
    if not HAS_GPU:
        monkeypatch.setattr(triton_gpu, "CHUNKS_AT_ONCE", 2)


def vss_layer(in_channels: int, out_channels: int, **arguments: Any) -> VSSLayer:
    """Weights off their initial values, where several are 0 or 1."""
    torch.manual_seed(0)
    layer = VSSLayer(in_channels, out_channels, "triton", **arguments).to(DEVICE)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(DEVICE))
    return layer


def check_layer(layer: VSSLayer, x: Tensor, tolerance: float = 1e-5) -> None:
    """Output, the gradient at x and at every parameter; x is (batch, channels, length), as an image has it."""
    exact, exact_x = float64_copy(layer), x.double().requires_grad_()
    x = x.clone().requires_grad_()
    y = fused_vss_layer(layer, x.transpose(1, 2)).transpose(1, 2)
    true_y = exact(exact_x)
    assert y.shape == true_y.shape and y.dtype == torch.float32
    dy = normal(*y.shape, seed=9)
    gradients = torch.autograd.grad(y, (x, *layer.parameters()), dy)
    true_gradients = torch.autograd.grad(true_y, (exact_x, *exact.parameters()), dy.double())
    assert relative_error(y, true_y) < tolerance
    names = ("x", *(name for name, _ in layer.named_parameters()))
    for name, actual, expected in zip(names, gradients, true_gradients, strict=True):
        assert actual.shape == expected.shape and actual.dtype == torch.float32
        error = relative_error(actual, expected)
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@needs_kernels
@RECOMPUTE
@pytest.mark.parametrize(("in_channels", "out_channels", "length"), [(4, 8, 20), (8, 8, 9)])
def test_layer_agrees_with_its_plain_form(in_channels: int, out_channels: int, length: int, recompute: bool) -> None:
    check_layer(vss_layer(in_channels, out_channels, recompute_activations=recompute), normal(2, in_channels, length))


@needs_kernels
@RECOMPUTE
def test_layer_goes_item_by_item(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_vss, "LARGEST_INSIDE_BYTES", 1)
    items: list[Tensor] = []
    inside = fused_vss._inside

    def watched(x: Tensor, *arguments: Any, **named: Any) -> fused_vss.Inside:
        items.append(x)
        return inside(x, *arguments, **named)

    monkeypatch.setattr(fused_vss, "_inside", watched)
    check_layer(vss_layer(4, 8, recompute_activations=recompute), normal(2, 4, 20))
    assert [item.shape[0] for item in items] == [1, 1] * (2 if recompute else 1)  # two forward, and two backward


@needs_kernels
def test_nothing_reads_what_nothing_wrote() -> None:
    """As the gradient of x_proj's padding, which only rows of zeros see."""
    layer = vss_layer(4, 8)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    try:
        check_layer(layer, normal(2, 4, 20))
    finally:
        torch.use_deterministic_algorithms(False)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", SCAN_ORDERS)
def test_keeping_the_inside_changes_no_bit(order: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_vss, "unavailable", lambda layer, x: None)
    path = next(islice(scan_paths(order), 3, None))  # the fourth layer's: along another axis, backwards
    x = normal(1, 4, 3, 4).to(dtype)
    again, kept = (run(vss_layer(4, 8, path=path, recompute_activations=recompute), x) for recompute in (True, False))
    assert again[0].dtype == dtype
    assert all(map(torch.equal, again, kept))


@needs_kernels
def test_the_inside_is_kept_from_forward_to_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[Tensor]] = []
    inside = fused_vss._inside

    def watched(*arguments: Any, save: bool) -> fused_vss.Inside:
        result = inside(*arguments, save=save)
        assert (result.saved.numel() > 0) == save == recorded
        kept.extend(map(weakref.ref, result))
        return result

    monkeypatch.setattr(fused_vss, "_inside", watched)
    layer, x = vss_layer(4, 4, recompute_activations=False), normal(1, 9, 4)
    recorded = False
    with torch.no_grad():
        fused_vss_layer(layer, x)
    assert kept and all(tensor() is None for tensor in kept)
    layer.requires_grad_(False)
    fused_vss_layer(layer, x)
    assert all(tensor() is None for tensor in kept)
    recorded = True
    y = fused_vss_layer(layer, x.requires_grad_())
    assert len(y.grad_fn.saved_tensors) == 1 + 2 * len(fused_vss.Parameters._fields) + len(fused_vss.Inside._fields)
    y.sum().backward()
    assert all(tensor() is None for tensor in kept)


@needs_kernels
def test_checkpointed_stage_that_keeps_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_vss, "unavailable", lambda layer, x: None)

    def make_vss(in_channels: int, out_channels: int) -> VSSLayer:
        return vss_layer(in_channels, out_channels, recompute_activations=False)

    plain, checkpointed = (
        run(EncoderStage(VSSDownsample(2, make_vss(4, 8), (2, 2)), [], use_checkpoint), normal(1, 4, 4, 4))
        for use_checkpoint in (False, True)
    )
    assert all(map(torch.equal, plain, checkpointed))


def test_the_option_reaches_every_layer() -> None:
    for recompute in (True, False):
        net = LightMUNet(2, 1, 3, 8, recompute_activations=recompute)
        layers = [part for part in net.modules() if isinstance(part, VSSLayer)]
        assert layers and all(layer.recompute_activations == recompute for layer in layers)


@needs_kernels
def test_layer_without_some_gradients() -> None:
    layer, x = vss_layer(4, 4), normal(1, 9, 4)
    with torch.no_grad():
        expected = fused_vss_layer(layer, x)
    assert not expected.requires_grad
    layer.norm.requires_grad_(False)  # frozen, as in fine-tuning
    y = fused_vss_layer(layer, x)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in layer.parameters())
    layer.requires_grad_(False)
    x.requires_grad_()
    fused_vss_layer(layer, x).square().sum().backward()
    assert x.grad.isfinite().all()


@needs_kernels
def test_layer_refuses_a_second_derivative() -> None:
    layer, x = vss_layer(4, 4), normal(1, 3, 4).requires_grad_()
    (dx,) = torch.autograd.grad(fused_vss_layer(layer, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_cpu_takes_the_plain_modules() -> None:
    x = torch.zeros(1, 4, 2)
    assert fused_vss.unavailable(VSSLayer(4, 4), x)
    assert fused_vss.unavailable(VSSLayer(4, 4, "triton"), x)  # even in the interpreter
