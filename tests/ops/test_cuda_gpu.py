"""The GPU's own scans, CUDA C++ and Triton, at real sizes against chunked in float64; and when they cannot run.

chunked in float64 is exact to naive (test_selective_scan.py). Each state size, dtype and layout is a compilation, of
seconds: the tests share shapes, and Triton gets fewer, as its interpreter covers the rest (test_triton_gpu.py). Graphs,
streams, compilers and memory: test_cuda_gpu_inside.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu import HAS_GPU, on_gpu
from gpu_scans import BACKENDS, BASE, DEVICE, HALF, OUTPUT, base_inputs, each_backend, gpu_inputs
from scan_checks import assert_close, assert_parity_with_the_authors_scan, gradients, scan, scan_and_gradients
from torch import Tensor

from scripts.ops.selective_scan import BackendError, backend_report, choose_backend, cuda_gpu, nvrtc

BOTH = [(2, 1, 8, 16), BASE, (2, 70000, 64, 16), (1, 1000, 40, 5), (1, 1000, 40, 64)]
CUDA_ONLY = [(1, 1000, 40, 8), (1, 1000, 40, 16), (1, 1000, 40, 32), (2, 300, 130, 16)]  # 130: several groups

# Largest error, relative to the largest value; OUTPUT is in gpu_scans.py.
LONG, GRADIENT = 1e-4, 1e-4


def truth(inputs: dict[str, Tensor], delta_softplus: bool = True) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return scan_and_gradients({name: tensor.double() for name, tensor in inputs.items()}, "chunked", delta_softplus)


def assert_same_as_truth(
    inputs: dict[str, Tensor], backend: str, delta_softplus: bool = True, tolerance: float | None = None
) -> None:
    """Output, last state and every gradient, with their dtypes."""
    y, state, grads = scan_and_gradients(inputs, backend, delta_softplus)
    true_y, true_state, true_grads = truth(inputs, delta_softplus)
    assert y.dtype == inputs["u"].dtype and state.dtype == torch.float32
    assert_close(y, true_y, tolerance or OUTPUT, "y")
    assert_close(state, true_state, OUTPUT, "last state")  # in float32, whatever the inputs' dtype
    for name, actual in grads.items():
        assert actual.shape == inputs[name].shape and actual.dtype == inputs[name].dtype
        assert_close(actual, true_grads[name], tolerance or GRADIENT, name)


# --- against the specification ---


@on_gpu
@pytest.mark.parametrize(
    ("backend", "sizes"), [(name, s) for name in BACKENDS for s in BOTH] + [("cuda", s) for s in CUDA_ONLY]
)
def test_sizes(backend: str, sizes: tuple[int, ...]) -> None:
    assert_same_as_truth(gpu_inputs(*sizes), backend)


@on_gpu
@each_backend
def test_without_options(backend: str) -> None:
    inputs = {name: base_inputs()[name] for name in ("u", "A", "B", "C")}
    assert_same_as_truth(inputs | {"delta": base_inputs()["delta"].abs()}, backend, delta_softplus=False)


@on_gpu
@each_backend
def test_slices_in_bfloat16(backend: str) -> None:
    """As the network calls it: z is half of a tensor, B and C are slices of rows of 34."""
    _, length, channels, state = BASE
    inputs = gpu_inputs(*BASE, dtype=torch.bfloat16)
    for name in ("A", "D", "delta_bias", "initial_state"):
        inputs[name] = inputs[name].float()
    inputs["z"] = torch.cat([inputs["u"], inputs["z"]], dim=-1)[..., channels:]
    x_dbl = torch.cat([inputs["delta"][..., :2], inputs["B"], inputs["C"]], dim=-1)
    _, inputs["B"], inputs["C"] = x_dbl.split([2, state, state], dim=-1)
    assert inputs["B"].stride() == (34 * length, 34, 1) and inputs["z"].stride(1) == 2 * channels
    assert_same_as_truth(inputs, backend, tolerance=HALF)


@on_gpu
@pytest.mark.parametrize("backend", ["cuda"])
def test_float16(backend: str) -> None:
    inputs = base_inputs()
    half = {name: t.half() if name in ("u", "delta", "B", "C", "z") else t for name, t in inputs.items()}
    assert_same_as_truth(half, backend, tolerance=HALF)


@on_gpu
@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("wide", ["u", "z"])
def test_dtypes_may_differ(backend: str, wide: str) -> None:
    inputs = dict(base_inputs())
    for name in {"u", "z", "B"} - {wide}:
        inputs[name] = inputs[name].bfloat16()
    assert_same_as_truth(inputs, backend, tolerance=HALF)


@on_gpu
@each_backend
def test_other_strides(backend: str) -> None:
    """Transposed, expanded and every second channel: copied or walked over, but right."""
    inputs = dict(base_inputs())
    inputs["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["delta"] = torch.cat([inputs["delta"], inputs["delta"]], dim=-1)[..., ::2]
    inputs["B"] = inputs["B"][:1].expand(inputs["B"].shape)
    inputs["A"] = inputs["A"].t().contiguous().t()
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    for actual, expected in zip(scan(inputs, backend), scan(exact, "chunked"), strict=True):
        assert_close(actual, expected, OUTPUT)


@on_gpu
@each_backend
@pytest.mark.parametrize("delta", [0.0, 1e-12, 30.0, 1e4])
def test_decay_of_one_and_of_zero(backend: str, delta: float) -> None:
    inputs = dict(base_inputs())
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    del inputs["delta_bias"]
    y, state = scan(inputs, backend, delta_softplus=False)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    true_y, true_state = scan(exact, "chunked", delta_softplus=False)
    assert_close(y, true_y, OUTPUT)
    assert_close(state, true_state, OUTPUT)
    if delta == 0:
        assert torch.equal(state, inputs["initial_state"])


@on_gpu
@each_backend
def test_long_memory(backend: str) -> None:
    """The decay of a tiny step must be right 70,000 times over: an exp that misses 1 at 0 is 4e-3 off.

    A chunk's decay is rounded alike in each of up to 800 chunks: 2e-5 where it is right to half a unit.
    """
    inputs = gpu_inputs(2, 70000, 64, 16)
    inputs["delta"] = torch.full_like(inputs["delta"], 1e-6)
    del inputs["delta_bias"]
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = scan(exact, "chunked", delta_softplus=False)
    for actual, true in zip(scan(inputs, backend, delta_softplus=False), expected, strict=True):
        assert_close(actual, true, LONG)


@on_gpu
@each_backend
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z", "A", "initial_state"])
def test_nan_and_inf_stay_in_place(backend: str, name: str, value: float) -> None:
    inputs = base_inputs() | {name: base_inputs()[name].clone()}
    inputs[name][(1, min(2041, inputs[name].shape[1] - 1), 0)[: inputs[name].dim()]] = value
    exact = scan({name: tensor.double() for name, tensor in inputs.items()}, "chunked")
    assert not exact[0].isfinite().all()
    for actual, expected in zip(scan(inputs, backend), exact, strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite())
        assert_close(actual[expected.isfinite()], expected[expected.isfinite()], OUTPUT)


@on_gpu
@pytest.mark.parametrize("backend", ["cuda"])
def test_parity_with_the_authors_scan(backend: str) -> None:
    assert_parity_with_the_authors_scan(backend, DEVICE)


# --- gradients ---


@on_gpu
@each_backend
def test_gradient_through_the_last_state_only(backend: str) -> None:
    grads = []
    for chosen, dtype in ((backend, torch.float32), ("chunked", torch.float64)):
        leaves = {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in base_inputs().items()}
        loss = scan(leaves, chosen)[1].square().sum()
        grads.append(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True))
    for name, actual, expected in zip(base_inputs(), *grads, strict=True):
        assert_close(actual, expected, GRADIENT, name)


@on_gpu
@each_backend
def test_bit_reproducible(backend: str) -> None:
    first, again = (scan_and_gradients(base_inputs(), backend) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert all(torch.equal(first[2][name], again[2][name]) for name in first[2])


# --- refusals, and when they cannot run ---


@on_gpu
@each_backend
def test_float64_is_refused(backend: str) -> None:
    inputs = {name: tensor.double() for name, tensor in base_inputs().items()}
    with pytest.raises(ValueError, match=f"the {backend} backend .* use backend='chunked' for float64"):
        scan(inputs, backend)


@on_gpu
@pytest.mark.parametrize("backend", ["cuda"])
def test_too_many_states_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="up to 64 states, got 65: use 'triton'"):
        scan(gpu_inputs(1, 8, 2, 65), backend)


@on_gpu
@pytest.mark.parametrize("backend", ["cuda"])
def test_auto_takes_cuda(backend: str) -> None:
    assert choose_backend(DEVICE) == backend
    first, second = (gradients(base_inputs(), name)["A"] for name in (backend, "auto"))
    assert torch.equal(first, second)


@on_gpu
@pytest.mark.parametrize("backend", ["cuda"])
def test_compiler_error_is_reported(backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad.cu").write_text('extern "C" __global__ void kernel() { undeclared = LIMIT; }\n')
    monkeypatch.setattr(nvrtc, "__file__", str(tmp_path / "nvrtc.py"))
    with pytest.raises(RuntimeError, match=r"NVRTC cannot compile bad.cu \(.*-DLIMIT=3\): (.|\n)*undeclared"):
        nvrtc.compile_kernels("bad.cu", ["kernel"], {"LIMIT": 3}, torch.device(DEVICE, torch.cuda.current_device()))


@on_gpu
@pytest.mark.parametrize("backend", ["cuda"])
def test_driver_error_is_reported(backend: str) -> None:
    with pytest.raises(RuntimeError, match=r"CUDA driver error \d+: .*invalid"):
        cuda_gpu._kernel("outputs", 16, *[base_inputs()["u"]] * 3)((1, 1, 1), 4096, bytes(8))


def raise_os_error() -> None:
    raise OSError("libnvrtc.so.99: cannot open shared object file")


def test_says_why_nvrtc_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_nvrtc", raise_os_error)
    reason = nvrtc.unavailable()
    assert reason is not None and "NVRTC" in reason and "libnvrtc.so.99" in reason
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert cuda_gpu.unavailable(torch.device("cuda")) == reason
    with pytest.raises(BackendError, match=r"'cuda' cannot run on cuda: NVRTC"):
        choose_backend("cuda", "cuda")


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert cuda_gpu.unavailable(torch.device("cuda")) == "needs compute capability 7.0, this GPU has 6.1"


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without a GPU")
def test_without_a_gpu() -> None:
    assert cuda_gpu.unavailable(torch.device("cuda")) == "torch sees no NVIDIA GPU"
    assert all(backend_report("cuda")[name] is not None for name in BACKENDS)


def test_not_on_the_cpu() -> None:
    assert backend_report("cpu")["cuda"] == "needs a CUDA device"
    with pytest.raises(BackendError, match=r"'cuda' cannot run on cpu: needs a CUDA device"):
        choose_backend("cpu", "cuda")
