"""The Triton kernels of the scan in Triton's interpreter, on the CPU, against naive in float64.

The interpreter is slow: sizes are as small as cover several tiles, chunks and blocks. test_cuda_gpu.py runs the same
kernels compiled, on a GPU, at real sizes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scan_checks import OPTIONAL, assert_close, gradients, make_inputs, scan, scan_and_gradients
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.ops.selective_scan import (
    BackendError,
    backend_report,
    choose_backend,
    selective_scan,
    three_phase,
    triton_gpu,
)

pytestmark = [
    pytest.mark.skipif(
        triton_gpu.unavailable(torch.device("cpu")) is not None,
        reason="needs Triton's interpreter: triton installed, and no GPU",
    ),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"),
]

# Largest error, relative to the largest value. A strong decay costs A's gradient digits, as in the authors' CUDA scan:
# both take what is left of the last state as the state less what the position added to it.
FLOAT32, FLOAT32_GRADIENT, HALF = 2e-6, 2e-5, 1.5e-2


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rounds over three chunks, and at 20 channels several blocks, groups, and blocks in a group."""
    monkeypatch.setattr(triton_gpu, "CHUNKS_AT_ONCE", 2)
    monkeypatch.setattr(triton_gpu, "CHANNELS_AT_ONCE", 16)
    monkeypatch.setattr(triton_gpu, "TILE_STATES_FORWARD", 64)
    monkeypatch.setattr(triton_gpu, "TILE_STATES_BACKWARD", 32)
    monkeypatch.setattr(triton_gpu, "GROUP", 8)


def assert_same_as_naive(
    inputs: dict[str, Tensor], delta_softplus: bool = True, tolerance: float | None = None
) -> None:
    """Output, last state and every gradient, with their dtypes."""
    *outputs, grads = scan_and_gradients(inputs, "triton", delta_softplus)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    *true_outputs, true_grads = scan_and_gradients(exact, "naive", delta_softplus)
    assert outputs[0].dtype == inputs["u"].dtype and outputs[1].dtype == torch.float32
    for name, actual, expected in zip(("y", "last state"), outputs, true_outputs, strict=True):
        assert actual.shape == expected.shape
        assert_close(actual, expected, tolerance or FLOAT32, name)
    for name, actual in grads.items():
        assert actual.shape == inputs[name].shape and actual.dtype == inputs[name].dtype
        assert_close(actual, true_grads[name], tolerance or FLOAT32_GRADIENT, name)


def small_inputs(**sizes: Any) -> dict[str, Tensor]:
    return make_inputs(**{"batch": 1, "length": 20, "dtype": torch.float32} | sizes)


# --- against the specification ---


@pytest.mark.parametrize("length", [1, 7, 8, 9, 25, 50])
def test_tile_and_chunk_edges(length: int) -> None:
    assert_same_as_naive(small_inputs(length=length))


@pytest.mark.parametrize(("channels", "state"), [(1, 1), (1, 5), (5, 8), (20, 2), (9, 8), (3, 16), (1, 32), (1, 64)])
def test_channels_and_states(channels: int, state: int) -> None:
    assert_same_as_naive(small_inputs(length=10 if state < 32 else 3, channels=channels, state=state))


def test_blocks_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert_same_as_naive(small_inputs(length=9, channels=5, state=4))


def test_more_channels_than_a_group_of_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of one state is wider than a group."""
    monkeypatch.undo()
    assert_same_as_naive(small_inputs(length=3, channels=70, state=1))


@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("optional", [(), *((name,) for name in OPTIONAL)])
def test_options(optional: tuple[str, ...], delta_softplus: bool) -> None:
    inputs = small_inputs(length=9, channels=1, optional=optional)
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs()
    assert_same_as_naive(inputs, delta_softplus)


@pytest.mark.parametrize("delta", [0.0, 1e-12, 30.0, 1e4])
def test_decay_of_one_and_of_zero(delta: float) -> None:
    inputs = small_inputs(channels=1, optional=("initial_state",))
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    assert_same_as_naive(inputs, delta_softplus=False)


def test_frozen_state_is_kept_exactly() -> None:
    inputs = small_inputs(length=33, optional=("initial_state",))
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    _, state = scan(inputs, "triton", delta_softplus=False)
    assert torch.equal(state, inputs["initial_state"])


def test_long_memory() -> None:
    """The decay of a tiny step must be right hundreds of times over: an exp that misses 1 at 0 is far off."""
    inputs = small_inputs(length=200, channels=1, optional=("initial_state",))
    inputs["delta"] = torch.full_like(inputs["delta"], 1e-5)
    expected, expected_state = scan({name: t.double() for name, t in inputs.items()}, "naive", delta_softplus=False)
    y, state = scan(inputs, "triton", delta_softplus=False)
    assert_close(y, expected, 1e-5)
    assert_close(state, expected_state, 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z", "A", "initial_state"])
def test_nan_and_inf_stay_in_place(name: str, value: float) -> None:
    inputs = small_inputs(batch=2, length=20, channels=2)
    inputs[name] = inputs[name].clone()
    inputs[name][(1, min(11, inputs[name].shape[1] - 1), 0)[: inputs[name].dim()]] = value
    truth = scan({name: tensor.double() for name, tensor in inputs.items()}, "naive")
    assert not truth[0].isfinite().all()
    for actual, expected in zip(scan(inputs, "triton"), truth, strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite())
        assert_close(actual[expected.isfinite()], expected[expected.isfinite()], FLOAT32)


def test_views_as_inputs() -> None:
    inputs = small_inputs(batch=2, length=17, channels=2, state=3)
    inputs["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["delta"] = torch.cat([inputs["delta"], inputs["delta"]], dim=-1)[..., ::2]
    inputs["A"] = inputs["A"].t().contiguous().t()
    inputs["initial_state"] = inputs["initial_state"][:1].expand(2, 2, 3)
    xz = torch.cat([inputs["u"], inputs["z"]], dim=-1)
    inputs["z"] = xz[..., 2:]  # as the network has them: z, B and C are slices of wider tensors
    x_dbl = torch.cat([inputs["delta"][..., :1], inputs["B"], inputs["C"]], dim=-1)
    inputs["B"], inputs["C"] = x_dbl[..., 1:4], x_dbl[..., 4:]
    assert_same_as_naive(inputs)


def test_expanded_input() -> None:
    inputs = small_inputs(batch=2, length=9, channels=2, state=3)
    inputs["B"] = inputs["B"][:1, :1].expand(2, 9, 3)
    assert_same_as_naive(inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = small_inputs(channels=2)
    half = {name: t.to(dtype) if name in ("u", "delta", "B", "C", "z") else t for name, t in inputs.items()}
    assert_same_as_naive(half, tolerance=HALF)
    exact = {name: tensor.double() for name, tensor in half.items()}
    assert_close(scan(half, "triton")[1], scan(exact, "naive")[1], 1e-5, "the state stays in float32")


def test_dtypes_may_differ() -> None:
    inputs = small_inputs(length=9, channels=1)
    inputs["u"], inputs["B"] = inputs["u"].bfloat16(), inputs["B"].half()
    assert_same_as_naive(inputs, tolerance=HALF)


def test_autocast_changes_nothing() -> None:
    inputs = small_inputs(length=9, channels=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scan(inputs, "triton")
    assert all(torch.equal(a, b) for a, b in zip(inside, scan(inputs, "triton"), strict=True))


# --- gradients ---


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_through_one_output_only(output: int) -> None:
    inputs = small_inputs(length=10, channels=1)
    grads = []
    for backend, dtype in (("triton", torch.float32), ("naive", torch.float64)):
        leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}
        loss = scan(leaves, backend)[output].square().sum()
        # The last state does not depend on C, D and z.
        grads.append(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True))
    for name, actual, expected in zip(inputs, *grads, strict=True):
        assert_close(actual, expected, FLOAT32_GRADIENT, name)


def test_only_the_gradients_asked_for() -> None:
    inputs = small_inputs(length=9, channels=1)
    inputs["A"].requires_grad_()
    y, _ = scan(inputs, "triton")
    assert y.requires_grad
    (dA,) = torch.autograd.grad(y.sum(), inputs["A"])
    exact = {name: tensor.detach().double() for name, tensor in inputs.items()}
    exact["A"].requires_grad_()
    assert_close(dA, torch.autograd.grad(scan(exact, "naive")[0].sum(), exact["A"])[0], FLOAT32_GRADIENT)


def test_states_are_kept_for_a_backward_pass_only() -> None:
    inputs = small_inputs(channels=1)
    arguments = (*(inputs[name] for name in ("u", "delta", "A", "B", "C")), None, None, None, True, None)
    for save, tiles in ((False, 0), (True, 3)):
        assert torch.ops.lightm_unet.selective_scan(*arguments, save, "triton")[2].shape[1] == tiles


def test_bit_reproducible() -> None:
    inputs = small_inputs(channels=9, length=25)
    first, second = gradients(inputs, "triton"), gradients(inputs, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- one operator for torch.compile and torch.export ---


def operator_arguments(save: bool, requires_grad: bool, optional: tuple[str, ...] = OPTIONAL) -> tuple[Any, ...]:
    inputs = small_inputs(length=9, channels=2, optional=optional)
    for tensor in inputs.values():
        tensor.requires_grad_(requires_grad)
    tensors = [inputs.get(name) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    return *tensors, True, inputs.get("initial_state"), save, "triton"


@pytest.mark.parametrize("optional", [(), OPTIONAL])
@pytest.mark.parametrize("grad", [False, True])
def test_operator_is_well_formed(grad: bool, optional: tuple[str, ...]) -> None:
    torch.library.opcheck(
        torch.ops.lightm_unet.selective_scan.default,
        operator_arguments(grad, grad, optional),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("optional", [(), OPTIONAL])
def test_backward_operator_is_well_formed(optional: tuple[str, ...]) -> None:
    *tensors, softplus, _, save, backend = operator_arguments(True, False, optional)
    y, last_state, saved = torch.ops.lightm_unet.selective_scan(*tensors, softplus, None, save, backend)
    torch.library.opcheck(
        torch.ops.lightm_unet.selective_scan_backward.default,
        (*tensors, softplus, saved, torch.ones_like(y), torch.ones_like(last_state), backend),
        test_utils=("test_schema", "test_faketensor"),
    )


class Scan(torch.nn.Module):
    """The scan of one argument, as an exported network has it."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.others = {name: tensor for name, tensor in inputs.items() if name != "u"}

    def forward(self, u: Tensor) -> Tensor:
        return selective_scan(u, **self.others, delta_softplus=True, backend="triton")


@pytest.mark.parametrize("strict", [False, True])
def test_exported_graph_holds_one_operator(strict: bool) -> None:
    inputs = small_inputs(length=9, channels=1)
    u = inputs["u"]
    program = torch.export.export(Scan(inputs), (u,), strict=strict)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(call.startswith("lightm_unet.selective_scan") for call in calls) == 1
    assert torch.equal(program.module()(2 * u), Scan(inputs)(2 * u))


def test_traced() -> None:
    inputs = small_inputs(length=9, channels=1)
    u = inputs["u"]
    traced = torch.jit.trace(Scan(inputs), (u,))
    assert "lightm_unet::selective_scan" in str(traced.graph) and "PythonOp" not in str(traced.graph)
    assert torch.equal(traced(2 * u), Scan(inputs)(2 * u))
    with pytest.raises(RuntimeError, match="recorded without gradients"):
        traced(u.clone().requires_grad_()).sum().backward()


def test_gradient_of_the_operator_is_an_operator() -> None:
    """A compiler that follows the gradient must not meet the kernels."""

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    called: list[str] = []
    arguments = operator_arguments(True, True, OPTIONAL)
    with Names():
        torch.ops.lightm_unet.selective_scan(*arguments)[0].sum().backward()
    assert "lightm_unet.selective_scan_backward.default" in called


def test_compiled_without_a_graph_break() -> None:
    inputs = small_inputs(length=9, channels=1)
    torch.compiler.reset()
    compiled = torch.compile(Scan(inputs), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, Scan(inputs)):
        u = inputs["u"].clone().requires_grad_()
        y = function(u)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), u)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- refusals and the choice of backend ---


@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
def test_float64_is_refused(name: str) -> None:
    inputs = small_inputs()
    with pytest.raises(ValueError, match=r"computes in float32: use backend='chunked' for float64"):
        scan({**inputs, name: inputs[name].double()}, "triton")


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="length of at least 1"):
        scan(small_inputs(length=0), "triton")
    inputs = small_inputs()
    with pytest.raises(ValueError, match=r"^B: expected on cpu like u, got on meta"):
        scan({**inputs, "B": inputs["B"].to("meta")}, "triton")
    with pytest.raises(ValueError, match=r"^z: expected shape"):
        scan({**inputs, "z": inputs["z"][:, 1:]}, "triton")


def test_auto_never_takes_the_interpreter() -> None:
    assert backend_report("cpu")["triton"] is None
    assert choose_backend("cpu", "triton") == "triton"
    assert choose_backend("cpu") not in ("cuda", "triton")


def test_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendError, match=r"'triton' cannot run on cpu: needs a CUDA device"):
        choose_backend("cpu", "triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"'triton' cannot run on cpu: triton is not installed: pip install triton"):
        choose_backend("cpu", "triton")


def test_chunks_are_whole_tiles_and_never_empty() -> None:
    for length in (1, 7, 8, 9, 100, 1001):
        for wanted in (0, 1, 3, 10_000):
            chunk, chunks = three_phase._chunks(length, wanted)
            assert chunk % three_phase.TILE == 0 and (chunks - 1) * chunk < length <= chunks * chunk
