"""The fused VSS layer against its plain form in float64.

On the CPU the kernels run in Triton's interpreter, at tiny sizes; on a GPU whole networks are compared.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn as nn
from layer_checks import DEVICE, HAS_GPU, float64_copy, needs_kernels, normal, relative_error
from torch import Tensor

from scripts.networks import LightMUNet, fused_vss, vss
from scripts.networks.fused_vss import can_fuse, fused_vss_layer
from scripts.networks.scan_order import SCAN_ORDERS, scan_paths
from scripts.networks.stages import EncoderStage
from scripts.networks.vss import VSSLayer
from scripts.ops import fused
from scripts.ops.selective_scan import BackendError, choose_backend, triton_gpu

BACKENDS = ("cuda", "triton")

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")  # of autocast("cuda") on a CPU


@pytest.fixture(autouse=True)
def quick_and_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less work for the interpreter; and no TF32, in which PyTorch's own convolutions are far from float64."""
    if not HAS_GPU:
        monkeypatch.setattr(triton_gpu, "CHUNKS_AT_ONCE", 2)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# --- the layer ---


RECOMPUTE = pytest.mark.parametrize("recompute", [True, False])


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
    monkeypatch.setattr(vss, "can_fuse", lambda x, backend: True)
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
    monkeypatch.setattr(vss, "can_fuse", lambda x, backend: True)

    def make_vss(in_channels: int, out_channels: int) -> VSSLayer:
        return vss_layer(in_channels, out_channels, recompute_activations=False)

    plain, checkpointed = (
        run(EncoderStage(2, 4, 8, [], (2, 2), "INSTANCE", "RELU", make_vss, use_checkpoint), normal(1, 4, 4, 4))
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
    assert not can_fuse(torch.zeros(1), "auto")
    assert not can_fuse(torch.zeros(1), "triton")  # even in the interpreter


# --- whole networks on a GPU ---


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> None:
    if not HAS_GPU:
        pytest.skip("no CUDA device")
    try:
        parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
        choose_backend("cuda", parameters.get("backend", "auto"))
    except BackendError as error:
        pytest.skip(str(error))


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of whole networks; it is skipped where its backend, if it takes one, cannot run."""
    return pytest.mark.gpu(pytest.mark.usefixtures("runs")(test))


def network(dims: int, filters: int, backend: str = "auto", **arguments: Any) -> LightMUNet:
    torch.manual_seed(0)
    return LightMUNet(dims, {2: 3, 3: 1}[dims], 3, filters, backend=backend, **arguments).cuda()


def shallow(backend: str = "auto", **arguments: Any) -> LightMUNet:
    """Two stages: few widths, so few kernels to compile."""
    return network(2, 8, backend, blocks_down=(1, 1), blocks_up=(1,), **arguments)


def image(dims: int, seed: int = 0) -> Tensor:
    """As large as those in the tests against the reference network: their kernels are compiled once."""
    return normal(2, 3, 40, 56, seed=seed) if dims == 2 else normal(1, 1, 16, 24, 32, seed=seed)


def run(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradients at the input and all parameters as one vector."""
    x = x.clone().requires_grad_()
    y = net(x)
    gradients = torch.autograd.grad(y, (x, *net.parameters()), normal(*y.shape, seed=9).to(y.dtype))
    return y.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the backend with each layer that runs fused."""
    calls: list[str] = []
    inside = fused_vss._inside

    def counted(*arguments: Any, **named: Any) -> fused_vss.Inside:
        calls.extend(argument for argument in arguments if isinstance(argument, str))
        return inside(*arguments, **named)

    monkeypatch.setattr(fused_vss, "_inside", counted)
    return calls


@on_gpu
@pytest.mark.parametrize(
    ("dims", "filters", "backend"),
    [(2, 8, "cuda"), (2, 8, "triton"), (3, 8, "cuda"), (2, 16, "cuda"), (3, 16, "cuda")],
)
def test_network_agrees_with_float64(dims: int, filters: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(dims, filters, backend), image(dims)
    true_y, true_gradient = run(float64_copy(net), x.double())
    plain = copy.deepcopy(net)
    for part in plain.modules():
        if hasattr(part, "backend"):
            part.backend = "chunked"
    plain_y, plain_gradient = run(plain, x)
    calls = fused_calls(monkeypatch)
    y, gradient = run(net, x)
    layers = sum(isinstance(part, VSSLayer) for part in net.modules())
    assert calls == [backend] * (2 * layers)  # forward, and again in the backward pass
    # Measured against float32 itself: in 3D the network with 8 filters loses 2e-5 in its plain form too.
    assert relative_error(y, true_y) < max(3 * relative_error(plain_y, true_y), 1e-5)
    # Where a value sits on a ReLU's kink, rounding decides whether a gradient passes: in the plain network, such places
    # make up an error between 1e-4 and 3e-3, depending on the weights.
    error, plain_error = relative_error(gradient, true_gradient), relative_error(plain_gradient, true_gradient)
    assert error < 2e-2
    assert error < max(3 * plain_error, 5e-3), f"{error:.1e}, and {plain_error:.1e} for the plain network"


@on_gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_autocast(backend: str) -> None:
    net, x = shallow(backend), image(2)
    true_y, true_gradient = run(float64_copy(net), x.double())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y, gradient = run(net, x)
        _, plain_gradient = run(shallow("chunked"), x)
    assert gradient.dtype == torch.float32
    assert relative_error(y, true_y) < 5e-2
    # bfloat16 flips many ReLUs: the gradient is 0.4 off in the plain network as well.
    assert relative_error(gradient, true_gradient) < 1.5 * relative_error(plain_gradient, true_gradient)


@on_gpu
def test_float16_autocast_with_a_scaler() -> None:
    net, x = shallow(), image(2)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    with torch.autocast("cuda", dtype=torch.float16):
        loss = net(x).float().square().mean()
    scaler.scale(loss).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@on_gpu
def test_checkpointed_network_is_the_same() -> None:
    net, x = shallow(), image(2)
    y, gradient = run(net, x)
    again_y, again_gradient = run(shallow(use_checkpoint=True), x)
    assert torch.equal(y, again_y)
    assert relative_error(again_gradient, gradient.double()) < 1e-5  # upsampling's own backward uses atomics


@on_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("amp", [False, True])
def test_network_that_keeps_is_the_same(backend: str, amp: bool) -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
        y, gradient = run(shallow(backend), image(2))
        kept_y, kept_gradient = run(shallow(backend, recompute_activations=False), image(2))
    # Not torch.equal: Triton compiles the scan once more where it saves, and upsampling's own backward uses atomics.
    assert relative_error(kept_y, y.double()) < (1e-2 if amp else 1e-6)
    assert relative_error(kept_gradient, gradient.double()) < (1e-2 if amp else 1e-5)


@on_gpu
def test_bit_reproducible() -> None:
    net, x = shallow(), image(2)
    for first, again in zip(run(net, x), run(net, x), strict=True):
        # Not torch.equal: upsampling's own backward uses atomics.
        assert relative_error(again, first.double()) < 1e-6
    assert torch.equal(net(x), net(x))


@on_gpu
def test_evaluation_without_gradients() -> None:
    net, x = shallow(), image(2)
    with_gradients = net(x).detach()
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x), with_gradients)
    with torch.inference_mode():
        assert torch.equal(net(x), with_gradients)


@on_gpu
def test_memory_of_a_layer_is_its_input() -> None:
    layer = VSSLayer(32, 32).cuda()
    x = normal(2, 65536, 32).requires_grad_()
    fused_vss_layer(layer, x).sum().backward()  # whatever is allocated once
    before = torch.cuda.memory_allocated()
    y = fused_vss_layer(layer, x)
    grown = torch.cuda.memory_allocated() - before
    one = x.numel() * x.element_size()
    assert y.numel() * y.element_size() == one
    assert grown < 1.75 * one  # the output, and the states at which the scan's chunks start


@on_gpu
def test_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, device="cuda")
    assert can_fuse(x, "auto") and can_fuse(x, "triton")
    assert can_fuse(x.bfloat16(), "auto") and not can_fuse(x.double(), "auto")
    assert not can_fuse(x, "chunked") and not can_fuse(x, "naive")
    monkeypatch.setattr(fused, "available", lambda device: False)
    assert not can_fuse(x, "auto")


@on_gpu
def test_traced_and_exported_networks_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = shallow().eval(), image(2)
    with torch.no_grad():
        expected = net(x)
        calls = fused_calls(monkeypatch)
        traced = torch.jit.trace(net, (x,), check_trace=False)  # the check runs the network itself, fused
        program = torch.export.export(net, (x,))
        assert not calls
        assert relative_error(traced(x), expected.double()) < 1e-5
        assert relative_error(program.module()(x), expected.double()) < 1e-5
    assert "lightm_unet::selective_scan" in str(traced.inlined_graph) and "PythonOp" not in str(traced.inlined_graph)


@on_gpu
def test_compiled_network_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    net, x = shallow().eval(), image(2)
    with torch.no_grad():
        expected = net(x)
        calls = fused_calls(monkeypatch)
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        assert relative_error(compiled(x), expected.double()) < 1e-5
    assert not calls


@on_gpu
@RECOMPUTE
def test_training_with_cuda_graphs_is_the_same(recompute: bool) -> None:
    eager = shallow(recompute_activations=recompute)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(eager), (image(2).requires_grad_(),))
    losses: list[list[float]] = []
    for net in (eager, graphed):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        losses.append([])
        for seed in (1, 1, 1):
            optimizer.zero_grad()
            loss = net(image(2, seed=seed).requires_grad_()).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][2] < losses[0][0]
    for (name, ours), expected in zip(graphed.named_parameters(), eager.parameters(), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-5), name


@on_gpu
def test_on_another_gpu_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    net, x = shallow(), image(2)
    y, gradient = run(net, x)
    net = net.to("cuda:1")
    other = x.to("cuda:1").requires_grad_()
    other_y = net(other)
    dy = normal(*y.shape, seed=9).to("cuda:1")
    others = torch.autograd.grad(other_y, (other, *net.parameters()), dy)
    assert relative_error(other_y.cpu(), y.cpu().double()) < 1e-5
    assert relative_error(torch.cat([g.flatten() for g in others]).cpu(), gradient.cpu().double()) < 2e-3
