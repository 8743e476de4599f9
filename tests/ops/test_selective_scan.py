"""Every backend of the selective scan against its specification, naive.py, and the CUDA scan's numbers."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from scan_checks import (
    ON_CPU,
    OPTIONAL,
    assert_close,
    assert_parity_with_the_authors_scan,
    gradients,
    make_inputs,
    scan,
)
from torch import Tensor
from torch.autograd import forward_ad

from scripts.ops.selective_scan import BackendError, chunked, selective_scan

FASTER = [name for name in ON_CPU if name != "naive"]
TILE = 32  # positions in a tile of `small_tiles`, with 4 steps a chunk

each_backend = pytest.mark.parametrize("backend", FASTER)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of several chunks at lengths that naive runs in no time (3 channels, state 2)."""
    monkeypatch.setattr(chunked, "STEP_ELEMENTS_CPU", 8 * 6)
    monkeypatch.setattr(chunked, "TILE_ELEMENTS_CPU", TILE * 6)
    monkeypatch.setattr(chunked, "SHORTEST_TILE", 4)
    monkeypatch.setattr(chunked, "SEQUENTIAL_CHUNKS", 3)


def assert_same_as_naive(inputs: dict[str, Tensor], backend: str, delta_softplus: bool = True) -> None:
    for name, actual, expected in zip(
        ("y", "last state"),
        scan(inputs, backend, delta_softplus),
        scan(inputs, "naive", delta_softplus),
        strict=True,
    ):
        assert actual.shape == expected.shape and actual.dtype == expected.dtype
        assert_close(actual, expected, 1e-10, name)
    expected = gradients(inputs, "naive", delta_softplus)
    for name, actual in gradients(inputs, backend, delta_softplus).items():
        assert actual.shape == inputs[name].shape and actual.dtype == inputs[name].dtype
        assert_close(actual, expected[name], 1e-9, name)


# --- against the specification ---


@each_backend
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    channels=st.sampled_from((1, 3, 5, 8)),
    state=st.sampled_from((1, 8, 16)),
    optional=st.sets(st.sampled_from(OPTIONAL)).map(tuple),
    delta_softplus=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_options(backend: str, delta_softplus: bool, optional: tuple[str, ...], **sizes: int) -> None:
    inputs = make_inputs(**sizes, optional=optional)
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs()
    assert_same_as_naive(inputs, backend, delta_softplus)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 9, TILE - 1, TILE, TILE + 1, 2 * TILE - 3, 2 * TILE, 77])
def test_chunk_and_tile_edges(length: int, small_tiles: None) -> None:
    assert_same_as_naive(make_inputs(batch=1, length=length), "chunked")


def test_small_tiles_are_several_tiles_of_several_chunks(small_tiles: None) -> None:
    inputs = make_inputs(batch=1, length=2 * TILE + 5)
    u, A = inputs["u"], inputs["A"].t()
    tiles = chunked._tiles(chunked.Inputs(u, u, A, u, u, None, None, None, False))
    assert [(t.steps, t.chunks) for t in tiles] == [(4, 8), (4, 8), (4, 1), (1, 1)]


@each_backend
@pytest.mark.parametrize("length", [1023, 1024, 1025, 2500])
def test_default_tile_edges(backend: str, length: int) -> None:
    inputs = make_inputs(batch=1, length=length, channels=64, state=16)
    for actual, expected in zip(scan(inputs, backend), scan(inputs, "naive"), strict=True):
        assert_close(actual, expected, 1e-10)


@each_backend
@pytest.mark.parametrize("delta", [0.0, 1e-12, 30.0, 1e4])
def test_decay_of_one_and_of_zero(backend: str, delta: float) -> None:
    inputs = make_inputs(length=300, optional=("initial_state",))
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    assert_same_as_naive(inputs, backend, delta_softplus=False)


@each_backend
def test_long_memory_in_single_precision(backend: str) -> None:
    """The decay of a tiny step must be right 10,000 times over: an exp that misses 1 at 0 is far off."""
    inputs = make_inputs(batch=1, length=10_000, optional=("initial_state",))
    inputs["delta"] = torch.full_like(inputs["delta"], 1e-5)
    expected, expected_state = scan(inputs, "naive", delta_softplus=False)
    y, state = scan({name: tensor.float() for name, tensor in inputs.items()}, backend, delta_softplus=False)
    assert_close(y, expected, 1e-4)
    assert_close(state, expected_state, 1e-4)


@each_backend
def test_frozen_state_is_kept_exactly(backend: str) -> None:
    inputs = make_inputs(length=5000, dtype=torch.float32, optional=("initial_state",))
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    _, state = scan(inputs, backend, delta_softplus=False)
    assert torch.equal(state, inputs["initial_state"])


@each_backend
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z", "A", "initial_state"])
def test_nan_and_inf_stay_in_place(backend: str, name: str, value: float, small_tiles: None) -> None:
    inputs = make_inputs(length=2 * TILE + 5)
    inputs[name] = inputs[name].clone()
    inputs[name][(1, min(41, inputs[name].shape[1] - 1), 0)[: inputs[name].dim()]] = value
    assert not scan(inputs, "naive")[0].isfinite().all()
    for actual, expected in zip(scan(inputs, backend), scan(inputs, "naive"), strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite())
        assert_close(actual[expected.isfinite()], expected[expected.isfinite()], 1e-10)


@each_backend
def test_views_as_inputs(backend: str) -> None:
    inputs = make_inputs(batch=2, length=50, channels=4, state=3)
    inputs["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["delta"] = torch.cat([inputs["delta"], inputs["delta"]], dim=-1)[..., ::2]
    inputs["B"] = inputs["B"][:1, :1].expand(2, 50, 3)
    inputs["A"] = inputs["A"].t().contiguous().t()
    inputs["z"] = inputs["z"].flip(1)
    assert_same_as_naive(inputs, backend)


def test_state_hands_over_between_calls() -> None:
    inputs = make_inputs(length=90)
    whole, whole_state = scan(inputs, "chunked")
    state, pieces = inputs.pop("initial_state"), []
    for piece in (slice(0, 31), slice(31, 90)):
        part = {name: tensor[:, piece] if tensor.dim() == 3 else tensor for name, tensor in inputs.items()}
        y, state = scan({**part, "initial_state": state}, "chunked")
        pieces.append(y)
    assert_close(torch.cat(pieces, dim=1), whole, 1e-12)
    assert_close(state, whole_state, 1e-12)


# --- gradients ---


@pytest.mark.parametrize("optional", [(), OPTIONAL])
def test_gradcheck(optional: tuple[str, ...], small_tiles: None) -> None:
    inputs = make_inputs(batch=1, length=TILE + 6, channels=2, optional=optional)
    names = list(inputs)

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return scan(dict(zip(names, tensors, strict=True)), "chunked")

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in inputs.values()])


@each_backend
def test_gradient_through_one_output_only(backend: str) -> None:
    inputs = make_inputs()
    for output in (0, 1):
        for name in ("u", "A", "initial_state"):
            grads = []
            for chosen in (backend, "naive"):
                leaf = inputs[name].clone().requires_grad_()
                result = scan({**inputs, name: leaf}, chosen)[output]
                grads.append(torch.autograd.grad(result.square().sum(), leaf)[0])
            assert_close(grads[0], grads[1], 1e-9, name)


@pytest.mark.parametrize("name", ["u", "A", "initial_state"])
def test_forward_mode(name: str) -> None:
    """The tangent of naive is that of the gradients; no other backend drops it without a word."""
    inputs = make_inputs(2, 9, 3, 2, OPTIONAL)
    tangent = torch.randn_like(inputs[name])

    def run(x: Tensor, backend: str = "naive") -> Tensor:
        return scan(inputs | {name: x}, backend)[0]

    y, dy = torch.func.jvp(run, (inputs[name],), (tangent,))
    v = torch.randn_like(y)
    _, pull_back = torch.func.vjp(run, inputs[name])
    assert_close((v * dy).sum(), (pull_back(v)[0] * tangent).sum(), 1e-10, name)
    for backend in FASTER:
        for grad in (False, True):
            with (
                torch.set_grad_enabled(grad),
                forward_ad.dual_level(),
                pytest.raises(BackendError, match=f"'{backend}' cannot differentiate in forward mode.*'naive'"),
            ):
                run(forward_ad.make_dual(inputs[name], tangent), backend)
        with forward_ad.dual_level():  # of something else
            assert_close(run(inputs[name], backend), y, 1e-10, "y")


@each_backend
def test_gradients_are_bit_reproducible(backend: str) -> None:
    inputs = make_inputs(batch=2, length=3000, channels=16, state=16, dtype=torch.float32)
    first, second = gradients(inputs, backend), gradients(inputs, backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- against the CUDA scan ---


@pytest.mark.parametrize("backend", ["naive", *FASTER])
def test_parity_with_the_cuda_scan(backend: str) -> None:
    assert_parity_with_the_authors_scan(backend)


# --- dtypes, tracing, memory ---


@pytest.mark.parametrize("backend", ["naive", *FASTER])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(backend: str, dtype: torch.dtype, autocast: bool) -> None:
    exact = make_inputs(length=200, dtype=torch.float32)
    half = {name: t.to(dtype) if name in ("u", "delta", "B", "C", "z") else t for name, t in exact.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in half.items()}
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        y, last_state = scan(leaves, backend)
        grads = torch.autograd.grad(y.float().sum(), list(leaves.values()))
    assert y.dtype == dtype and last_state.dtype == torch.float32
    assert y.isfinite().all() and all(g.isfinite().all() for g in grads)
    assert [g.dtype for g in grads] == [t.dtype for t in leaves.values()]
    expected, expected_state = scan({name: t.detach().double() for name, t in half.items()}, "naive")
    assert_close(y, expected, 1e-2)
    assert_close(last_state, expected_state, 1e-5)


@each_backend
def test_autocast_changes_nothing(backend: str) -> None:
    inputs = make_inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = scan(inputs, backend)
    assert all(torch.equal(a, b) for a, b in zip(inside, scan(inputs, backend), strict=True))


def test_trace_and_export() -> None:
    inputs = make_inputs(batch=1, length=70, dtype=torch.float32, optional=("D", "z", "delta_bias"))
    names = list(inputs)

    class Scan(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return selective_scan(**dict(zip(names, tensors, strict=True)), delta_softplus=True, backend="chunked")

    example = tuple(inputs.values())
    with torch.no_grad():
        expected = Scan()(*example)
        traced = torch.jit.trace(Scan(), example)
        exported = torch.export.export(Scan(), example).module()
    assert "PythonOp" not in str(traced.graph)
    changed = (2 * inputs["u"], *example[1:])
    assert_close(traced(*example), expected, 1e-6)
    assert_close(exported(*example), expected, 1e-6)
    assert_close(traced(*changed), Scan()(*changed), 1e-6)


def saved_bytes(length: int, state: int) -> int:
    """Bytes autograd keeps for the backward of one scan."""
    inputs = {name: t.requires_grad_() for name, t in make_inputs(1, length, 16, state, dtype=torch.float32).items()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan(inputs, "chunked")
    return sum(storages.values())


def test_memory_is_proportional_to_the_length() -> None:
    length = 2**14
    one_sequence = length * 16 * 4  # (length, channels) in fp32
    assert saved_bytes(length, state=16) < 2 * saved_bytes(length, state=1)
    # u, delta, z; B and C; the tiles' start states. With the states it would be 16 such sequences more.
    assert saved_bytes(length, state=16) < 6 * one_sequence
    assert saved_bytes(2 * length, state=16) < 2.1 * saved_bytes(length, state=16)
