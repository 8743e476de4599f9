"""Arguments that the selective scan refuses, which backend is taken, and how exact those of a GPU are."""

from __future__ import annotations

import pytest
import torch
from scan_checks import ON_CPU, OPTIONAL, assert_close, gradients, make_inputs, scan

from scripts.ops.selective_scan import BackendError, backend_report, choose_backend, chunked, cuda_gpu, selective_scan


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", *OPTIONAL])
def test_wrong_shape_names_the_argument(name: str) -> None:
    inputs = make_inputs()
    inputs[name] = torch.cat([inputs[name], inputs[name]], dim=0)
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \(.*\), got \({inputs[name].shape[0]}"):
        selective_scan(**inputs)


def test_wrong_number_of_dimensions() -> None:
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"^u: expected shape \(batch, length, channels\), got \(40, 3\)"):
        selective_scan(**{**inputs, "u": inputs["u"][0]})
    with pytest.raises(ValueError, match=r"^A: expected shape \(channels, state\), got \(3,\)"):
        selective_scan(**{**inputs, "A": inputs["A"][:, 0]})


def test_empty_sequence_integers_and_mixed_devices() -> None:
    for size in ("batch", "length", "channels"):
        with pytest.raises(ValueError, match=r"^u: expected a length of at least 1, and a batch and channels"):
            selective_scan(**make_inputs(**{size: 0}))
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"^u: expected a floating point dtype, got torch.int64"):
        selective_scan(**{**inputs, "u": inputs["u"].long()})
    with pytest.raises(ValueError, match=r"^B: expected on cpu like u, got on meta"):
        selective_scan(**{**inputs, "B": inputs["B"].to("meta")})


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    report = backend_report("cpu")
    assert report["chunked"] is None and report["naive"] is None
    assert choose_backend("cpu") == ON_CPU[0]
    assert choose_backend("cpu", "naive") == "naive"
    with pytest.raises(BackendError, match=r"unknown selective scan backend 'fast'.*chunked"):
        selective_scan(**make_inputs(), backend="fast")
    monkeypatch.setattr(chunked, "unavailable", lambda device: "no reason at all")
    with pytest.raises(BackendError, match=r"'chunked' cannot run on cpu: no reason at all"):
        selective_scan(**make_inputs(), backend="chunked")
    assert backend_report("cpu")["chunked"] == "no reason at all"
    assert choose_backend("cpu") != "chunked"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["chunked", "mamba_ssm"])
@pytest.mark.parametrize(("batch", "length", "channels"), [(2, 1, 8), (3, 4097, 24), (2, 70000, 64)])
def test_on_the_gpu(backend: str, batch: int, length: int, channels: int) -> None:
    if reason := backend_report("cuda")[backend] if torch.cuda.is_available() else "no CUDA device":
        pytest.skip(reason)
    optional = ("D", "z", "delta_bias")
    inputs = make_inputs(batch, length, channels, 16, optional, dtype=torch.float32)
    cuda = {name: tensor.cuda() for name, tensor in inputs.items()}
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    for actual, expected in zip(scan(cuda, backend), scan(exact, "chunked"), strict=True):
        assert_close(actual.cpu(), expected, 1e-5)
    if backend == "mamba_ssm":
        return  # no gradient for the last state, which `gradients` uses; the network's test covers the others
    expected_gradients = gradients(exact, "chunked")  # exact to naive on the CPU, tested above
    first, again = gradients(cuda, backend), gradients(cuda, backend)
    for name, actual in first.items():
        assert_close(actual.cpu(), expected_gradients[name], 1e-4, name)
        assert torch.equal(actual, again[name])


def test_auto_heeds_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_gpu, "unavailable", lambda device: None)
    assert choose_backend("cpu") == "cuda"
    assert choose_backend("cpu", dtype=torch.float64) == ON_CPU[0]
