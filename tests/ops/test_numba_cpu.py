"""What the generic tests of the backends do not say about the Numba one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from scripts.ops.selective_scan import backend_report, choose_backend, numba_cpu, selective_scan

BUNDLE = Path(__file__).parents[2] / "bundle"
HAS_NUMBA = numba_cpu.unavailable(torch.device("cpu")) is None
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


def make_inputs(length: int = 200, channels: int = 50) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    return {
        "u": normal(2, length, channels),
        "delta": normal(2, length, channels) - 1,
        "A": -normal(channels, 16).exp(),
        "B": normal(2, length, 16),
        "C": normal(2, length, 16),
        "D": normal(channels),
        "z": normal(2, length, channels),
        "delta_bias": normal(channels),
    }


def outputs_and_gradients(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    y = selective_scan(**leaves, delta_softplus=True, backend="numba")
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(leaves.values()))]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- the SIMD functions ---


@pytest.fixture(scope="module")
def lanes() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """exp2, softplus and sigmoid of 16 numbers at a time."""
    if not HAS_NUMBA:
        pytest.skip("numba is not installed")
    from numba import njit

    from scripts.ops.selective_scan import numba_lanes
    from scripts.ops.selective_scan.numba_lanes import get, put

    def on_arrays(function: Callable) -> Callable[[np.ndarray], np.ndarray]:
        @njit(error_model="numpy")
        def kernel(x: np.ndarray) -> np.ndarray:
            out = np.empty_like(x)
            put(out, 0, function(get(x, 0)))
            return out

        return kernel

    return {name: on_arrays(getattr(numba_lanes, name)) for name in ("exp2", "softplus", "sigmoid")}


def call(function: Callable, *values: float, dtype: type = np.float32) -> np.ndarray:
    x = np.zeros(16, dtype)
    x[: len(values)] = values
    return function(x)[: len(values)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(value=st.floats(-126, 127.4375, width=32))
def test_exp2_is_accurate(lanes: dict[str, Callable], value: float) -> None:
    exact = np.exp2(np.float64(value))
    assert abs(float(call(lanes["exp2"], value)[0]) / exact - 1) <= 2e-7
    assert abs(float(call(lanes["exp2"], value, dtype=np.float64)[0]) / exact - 1) <= 1e-15


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_at_the_edges(lanes: dict[str, Callable], dtype: type) -> None:
    tiny = float(np.finfo(dtype).smallest_subnormal)
    assert (call(lanes["exp2"], 0.0, -0.0, tiny, -tiny, dtype=dtype) == 1).all()
    assert (call(lanes["exp2"], -1100.0, -1e30, -np.inf, dtype=dtype) == 0).all()
    assert (call(lanes["exp2"], 1e30, np.inf, dtype=dtype) == np.inf).all()
    assert np.isnan(call(lanes["exp2"], np.nan, -np.nan, dtype=dtype)).all()
    if dtype == np.float32:  # half a unit inside the dtype's range, as the docstring says
        assert (call(lanes["exp2"], -127.0, 127.5) == (0, np.inf)).all()
    whole = np.arange(-126.0, 127.0)
    assert all(call(lanes["exp2"], n, dtype=dtype)[0] == 2.0**n for n in whole)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=st.floats(-80, 80, width=32))
def test_softplus_and_sigmoid_are_accurate(lanes: dict[str, Callable], value: float) -> None:
    exact = {"softplus": np.logaddexp(0, np.float64(value)), "sigmoid": 1 / (1 + np.exp(-np.float64(value)))}
    for name, expected in exact.items():
        # The argument of exp is rounded in its product with log2(e): an error that grows with it.
        assert abs(float(call(lanes[name], value)[0]) / expected - 1) <= 4e-7 + 2e-7 * abs(value), name
        assert abs(float(call(lanes[name], value, dtype=np.float64)[0]) / expected - 1) <= 1e-13, name


# --- threads ---


@needs_numba
def test_number_of_threads_changes_no_bit(threads: Callable[[int], None]) -> None:
    results = []
    for number in (1, 2, 3, 7):
        threads(number)
        results.append(outputs_and_gradients(make_inputs()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_numba
def test_calls_from_several_threads_at_once() -> None:
    inputs, results = make_inputs(), []
    expected = outputs_and_gradients(inputs)
    workers = [threading.Thread(target=lambda: results.append(outputs_and_gradients(inputs))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork(threads: Callable[[int], None]) -> None:
    threads(2)
    inputs = make_inputs()
    selective_scan(**inputs, backend="numba")
    child = os.fork()
    if child == 0:
        # PyTorch's own threads do not survive a fork, the scan's must.
        result: list[int] = []
        numba_cpu.share_out(2, lambda first, last: result.append(last - first))
        os._exit(0 if result == [1, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- without Numba, without a cache, in a trace ---


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    numba_cpu._why_not_numba.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "numba" else find_spec(name, *a))
    yield
    numba_cpu._why_not_numba.cache_clear()


def test_without_numba_auto_takes_chunked(without_numba: None) -> None:
    assert backend_report("cpu")["numba"] == "numba is not installed: pip install numba"
    assert choose_backend("cpu") == "chunked"
    assert selective_scan(**make_inputs(length=3), delta_softplus=True).isfinite().all()


def test_it_is_for_the_cpu_only() -> None:
    assert backend_report("cuda")["numba"] == "runs on the CPU only"


def test_numba_is_imported_on_first_use_only() -> None:
    code = "import sys, scripts.ops.selective_scan; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, check=True)


@needs_numba
@pytest.mark.slow
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A warning that says what to do, and the right result."""
    shutil.copytree(BUNDLE / "scripts" / "ops", tmp_path / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ops" / "selective_scan" / "__pycache__").write_text("a file where the folder should be")
    code = (
        "import torch; from ops.selective_scan import selective_scan\n"
        "x = torch.ones(1, 4, 2)\n"
        "arguments = (x, x, -torch.ones(2, 1), x[..., :1], x[..., :1])\n"
        "y, expected = (selective_scan(*arguments, backend=name) for name in ('numba', 'naive'))\n"
        "torch.testing.assert_close(y, expected)"
    )
    environment = {**os.environ, "HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Set NUMBA_CACHE_DIR to a folder that can be written") == 1


def test_auto_leaves_plain_operations_in_traces_and_exports() -> None:
    inputs = make_inputs(length=70, channels=3)
    names = list(inputs)

    class Scan(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return selective_scan(**dict(zip(names, tensors, strict=True)), delta_softplus=True)

    example = tuple(inputs.values())
    with torch.no_grad():
        traced = torch.jit.trace(Scan(), example)
        exported = torch.export.export(Scan(), example).module()
        changed = (2 * inputs["u"], *example[1:])
        expected = Scan()(*changed)
        for program in (traced, exported):
            torch.testing.assert_close(program(*changed), expected, rtol=1e-4, atol=1e-4)
