"""Files of weights are loaded as they were written, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from scripts.networks import read_reference_checkpoint
from scripts.networks.weight_files import UnsoundWeightsError, read_weight_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of four kilobytes, with every kind of tensor that a network has."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 7))
    torch.save(layers.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def outcome(file: Path, expected: dict[str, torch.Tensor]) -> str:
    """same, refused or changed."""
    try:
        found = read_weight_file(file)
    except Exception:  # read_weights makes one line of them all
        return "refused"
    same = list(found) == list(expected) and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
    )
    return "same" if same else "changed"


def test_no_flipped_bit_changes_a_weight(file: Path) -> None:
    whole, expected = file.read_bytes(), torch.load(file, weights_only=True)
    start = whole.index(expected["0.weight"].numpy().tobytes())
    inside = range(8 * start, 8 * (start + expected["0.weight"].nbytes))
    flips = random.Random(0).sample(range(8 * len(whole)), 600)
    outcomes = {}
    for bit in [*flips, *inside[::50]]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        outcomes[bit] = outcome(file, expected)
    assert set(outcomes.values()) == {"same", "refused"}, [bit for bit in outcomes if outcomes[bit] == "changed"]
    assert {outcomes[bit] for bit in inside[::50]} == {"refused"}


def test_a_part_that_is_marked_as_a_folder_is_refused(file: Path) -> None:
    """One bit, which no checksum covers: PyTorch then takes the tensor from memory that nobody wrote."""
    whole = bytearray(file.read_bytes())
    entry = whole.index(b"model/data/0", whole.index(b"PK\x01\x02")) - 46  # of the archive's directory
    whole[entry + 38] |= 0x10
    file.write_bytes(whole)
    with pytest.raises(UnsoundWeightsError, match="is damaged"):
        read_weight_file(file)


def test_files_without_checksums_are_refused(file: Path) -> None:
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsoundWeightsError, match=r"before 1\.6, without checksums"):
        read_weight_file(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_and_buffers_are_finite(file: Path, value: float, name: str) -> None:
    state = torch.load(file, weights_only=True)
    state[name].view(-1)[-1] = value
    torch.save({"network": state, "epoch": 3}, file)
    with pytest.raises(UnsoundWeightsError, match=rf"NaN or infinite values in 1 of its tensors \(network\.{name}\)"):
        read_weight_file(file)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.float8_e5m2])
def test_of_every_kind_of_number(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, 2.0])
    torch.save({"a": values.to(dtype), "count": torch.tensor(3), "empty": torch.zeros(0)}, tmp_path / "a.pt")
    assert read_weight_file(tmp_path / "a.pt")["a"].dtype == dtype
    values[1] = float("nan")
    torch.save([{"a": values.to(dtype)}], tmp_path / "a.pt")
    with pytest.raises(UnsoundWeightsError, match=r"\(0\.a\)"):
        read_weight_file(tmp_path / "a.pt")


def test_reference_weights_are_looked_at_too(tmp_path: Path) -> None:
    torch.save({"network_weights": {"a": torch.tensor([float("inf")])}}, tmp_path / "checkpoint_best.pth")
    with pytest.raises(UnsoundWeightsError, match=r"checkpoint_best\.pth holds NaN or infinite values"):
        read_reference_checkpoint(tmp_path / "checkpoint_best.pth")
