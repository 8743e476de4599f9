"""Whole networks with the fused VSS layer, on a GPU: against float64, and one way of running against another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gpu import on_gpu
from layer_checks import float64_copy, normal, relative_error, run
from torch import Tensor

from scripts.networks import LightMUNet, fused_vss
from scripts.networks.fused_vss import fused_vss_layer, unavailable
from scripts.networks.vss import VSSLayer
from scripts.ops import fused

BACKENDS = ("cuda", "triton")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, in which PyTorch's own convolutions are far from float64."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(dims: int, filters: int, backend: str = "auto", **arguments: Any) -> LightMUNet:
    torch.manual_seed(0)
    return LightMUNet(dims, {2: 3, 3: 1}[dims], 3, filters, backend=backend, **arguments).cuda()


def shallow(backend: str = "auto", **arguments: Any) -> LightMUNet:
    """Two stages: few widths, so few kernels to compile."""
    return network(2, 8, backend, blocks_down=(1, 1), blocks_up=(1,), **arguments)


def image(dims: int, seed: int = 0) -> Tensor:
    """As large as those in the tests against the reference network: their kernels are compiled once."""
    return normal(2, 3, 40, 56, seed=seed) if dims == 2 else normal(1, 1, 16, 24, 32, seed=seed)


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
    x = torch.zeros(1, 4, 2, device="cuda")
    auto, *others = (VSSLayer(4, 4, backend) for backend in ("auto", "triton", "chunked", "naive"))
    assert unavailable(auto, x) is unavailable(auto, x.bfloat16()) is unavailable(others[0], x) is None
    assert unavailable(auto, x.double()) and unavailable(others[1], x) and unavailable(others[2], x)
    monkeypatch.setattr(fused, "unavailable", lambda device: "no kernels")
    assert unavailable(auto, x) == "no kernels"


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
@pytest.mark.parametrize("recompute", [True, False])
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
