"""The GPU's own scans inside larger things, CUDA graphs, streams and compilers, and at the limits of memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu import on_gpu
from gpu_scans import BACKENDS, BASE, DEVICE, HALF, OUTPUT, base_inputs, each_backend, gpu_inputs
from scan_checks import assert_close, make_inputs, scan, scan_and_gradients
from torch import Tensor

from scripts.ops.selective_scan import selective_scan


@pytest.fixture
def memory() -> Iterator[None]:
    """All of the GPU's memory that torch does not need, before and after."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


# --- inside larger things ---


def step(inputs: dict[str, Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients, in a fixed order."""
    y, last_state = scan(inputs, backend)
    loss = y.square().sum() + last_state.square().sum()
    return [y.detach(), last_state.detach(), *torch.autograd.grad(loss, list(inputs.values()))]


@on_gpu
@each_backend
def test_graph_replays_with_changed_inputs(backend: str) -> None:
    static = {name: tensor.clone().requires_grad_() for name, tensor in base_inputs().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(static, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(static, backend)
    with torch.no_grad():
        for name, tensor in make_inputs(*BASE, dtype=torch.float32, seed=1, device=DEVICE).items():
            static[name].copy_(tensor)
    graph.replay()
    for replayed, eager in zip(captured, step(static, backend), strict=True):
        assert torch.equal(replayed, eager)


@on_gpu
@each_backend
def test_on_another_stream(backend: str) -> None:
    expected = scan(base_inputs(), backend)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # a launch on the wrong stream would not wait for what comes before
        late = {name: tensor * 1 for name, tensor in base_inputs().items()}
        results = scan(late, backend)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


class Scan(torch.nn.Module):
    """The scan as a layer of one input."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.others = {name: tensor for name, tensor in base_inputs().items() if name != "u"}

    def forward(self, u: Tensor) -> Tensor:
        return selective_scan(u, **self.others, delta_softplus=True, backend=self.backend)


@on_gpu
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_compiled_without_a_graph_break(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Scan(backend), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, Scan(backend)):
        u = base_inputs()["u"].clone().requires_grad_()
        y = function(u)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), u)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-6)


@on_gpu
@each_backend
@pytest.mark.parametrize("strict", [False, True])
def test_exported_graph_holds_one_operator(backend: str, strict: bool) -> None:
    u = base_inputs()["u"]
    program = torch.export.export(Scan(backend), (u,), strict=strict)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(call.startswith("lightm_unet.selective_scan") for call in calls) == 1
    assert torch.equal(program.module()(2 * u), Scan(backend)(2 * u))


@on_gpu
@each_backend
def test_traced(backend: str) -> None:
    u = base_inputs()["u"]
    traced = torch.jit.trace(Scan(backend), (u,))
    assert "lightm_unet::selective_scan" in str(traced.graph)
    assert torch.equal(traced(2 * u), Scan(backend)(2 * u))


@on_gpu
@each_backend
def test_on_another_gpu_than_the_current_one(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    results = []
    for device in ("cuda:0", "cuda:1"):
        leaves = {name: tensor.to(device, copy=True).requires_grad_() for name, tensor in base_inputs().items()}
        results.append(step(leaves, backend))
        assert all(tensor.device == torch.device(device) for tensor in results[-1])
    assert torch.cuda.current_device() == 0
    for first, second in zip(*results, strict=True):
        assert_close(second.cpu(), first.cpu(), OUTPUT)  # the GPUs need not be of one kind
    inputs = dict(base_inputs())
    with pytest.raises(ValueError, match=r"^B: expected on cuda:0 like u, got on cuda:1"):
        scan(inputs | {"B": inputs["B"].to("cuda:1")}, backend)


# --- size and memory ---


@on_gpu
@each_backend
def test_more_than_two_to_the_31_elements(backend: str, memory: None) -> None:
    length, channels, state, tail = 2**25 + 8, 64, 8, 3000
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free GPU memory")
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=DEVICE, dtype=torch.bfloat16)

    inputs = {
        "u": normal(1, length, channels),
        "delta": normal(1, length, channels).clamp_(0.1, 1),
        "A": -torch.arange(1.0, state + 1, device=DEVICE).repeat(channels, 1),
        "B": normal(1, length, state),
        "C": normal(1, length, state),
    }
    assert inputs["u"].numel() > 2**31
    y, last_state = scan(inputs, backend, delta_softplus=False)
    # Two thousand steps of at least 0.1 leave nothing of a state: the tail may start from zero.
    end = {name: (t[:, -tail:] if t.dim() == 3 else t).double() for name, t in inputs.items()}
    true_y, true_state = scan(end, "chunked", delta_softplus=False)
    assert_close(y[:, -1000:], true_y[:, -1000:], HALF)
    assert_close(last_state, true_state, OUTPUT)


@on_gpu
@each_backend
def test_out_of_memory_leaves_nothing_behind(backend: str, memory: None) -> None:
    inputs = gpu_inputs(2, 70000, 64, 16)
    before = scan_and_gradients(inputs, backend)
    torch.cuda.empty_cache()  # nothing that follows may split a cached block and leave a usable rest
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    y, _ = scan(leaves, backend)
    torch.cuda.empty_cache()
    # All but 16 MiB, in which neither an output nor a gradient (34 MiB each) finds room.
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - 2**24, dtype=torch.uint8, device=DEVICE)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        scan(leaves, backend)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        y.backward(leaves["u"].detach())
    del ballast
    assert all(leaf.grad is None for leaf in leaves.values())
    assert all(torch.equal(leaf, inputs[name]) for name, leaf in leaves.items())
    after = scan_and_gradients(inputs, backend)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert all(torch.equal(before[2][name], after[2][name]) for name in inputs)
