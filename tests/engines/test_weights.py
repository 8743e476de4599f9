"""Loading files of weights, and what the settings.json beside them says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.common.errors import UserError
from scripts.engines.opening import open_run
from scripts.engines.pretrained import start_from
from scripts.engines.weights import check_preparation, load_weights
from scripts.networks import LightMUNet

BUNDLE = Path(__file__).parents[2] / "bundle"


def network(**options: str) -> LightMUNet:
    return LightMUNet(2, 1, 2, 8, **options)


def test_weights_of_another_scan_order_are_refused(tmp_path: Path) -> None:
    """Their shapes fit: without the check the predictions would be worse without a word."""
    torch.save(network().state_dict(), tmp_path / "model.pt")
    load_weights(network(scan_order="axes"), tmp_path / "model.pt")  # nothing says how they were trained
    (tmp_path / "settings.json").write_text(json.dumps({"scan_order": "raster"}))
    load_weights(network(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="trained with scan_order raster, but the network reads in axes order"):
        load_weights(network(scan_order="axes"), tmp_path / "model.pt")


def test_weights_of_another_stem_are_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="do not fit the network; check the task overlay, init_filters and stem"):
        load_weights(network(stem="full"), tmp_path / "model.pt")


@pytest.mark.parametrize("content", ["", "{}", "half"])
def test_a_broken_file_is_said_to_be(tmp_path: Path, content: str) -> None:
    file = tmp_path / "model.pt"
    file.write_text(content)
    if content == "half":
        torch.save(network().state_dict(), file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        UserError, match=r"model\.pt is not a file of PyTorch weights, or not a whole one \(\w+"
    ) as caught:
        load_weights(network(), file)
    assert "weights_only" not in str(caught.value), "PyTorch advises to trust the file"


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from scripts.common.errors import UserError
from scripts.engines.weights import read_weights

used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
try:
    read_weights(sys.argv[1])
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's /proc and its limits")
def test_weights_are_not_blamed_when_memory_runs_out(tmp_path: Path) -> None:
    """In a process of its own: this one may have enough freed memory left."""
    file = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(64 << 20, dtype=torch.uint8)}, file)
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(file)]
    program = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=True)
    assert "model.pt cannot be read: memory ran out: close other programs" in program.stdout


def test_damaged_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    file, state = tmp_path / "model.pt", network().state_dict()
    torch.save(state, file)
    whole = bytearray(file.read_bytes())
    whole[whole.index(max(state.values(), key=torch.numel).numpy().tobytes())] ^= 1
    file.write_bytes(whole)
    with pytest.raises(UserError, match=r"model\.pt is damaged.*copy it again; give another with --checkpoint$"):
        load_weights(network(), file)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    next(iter(state.values())).view(-1)[0] = math.nan
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt holds NaN or infinite values in 1 of its tensors \(stem"):
        load_weights(network(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt holds NaN or infinite .*give another with --pretrained"):
        start_from(network(), tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], {"network": 3}, {"a": "b"}, torch.zeros(2)])
def test_other_things_than_weights_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt holds something else than the weights of a network"):
        load_weights(network(), tmp_path / "model.pt")


def test_weights_for_images_that_are_prepared_otherwise_are_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_preparation(tmp_path / "model.pt", {"spacing": [1, 1]})  # nothing says how theirs were
    (tmp_path / "settings.json").write_text(json.dumps({"spacing": [1, 1], "crop_nonzero": "false"}))
    check_preparation(tmp_path / "model.pt", {"spacing": (1, 1), "crop_nonzero": False, "labels": {"a": 1}})
    assert not caplog.records
    check_preparation(tmp_path / "model.pt", {"spacing": "null", "crop_nonzero": False})
    assert "were trained with spacing [1, 1], now it is null: predictions may be wrong" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", "5", ""])
def test_broken_settings_are_named(content: str, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    (tmp_path / "settings.json").write_text(content)
    (tmp_path / "checkpoint.pt").touch()
    for use in (
        lambda: load_weights(network(), tmp_path / "model.pt"),
        lambda: check_preparation(tmp_path / "model.pt", {}),
    ):
        with pytest.raises(UserError, match=r"settings\.json (is not valid JSON|must hold an object)[^\n]* remove it"):
            use()
    with pytest.raises(UserError, match=r"settings\.json is not (that of a training|valid JSON)[^\n]*: put "):
        open_run(str(tmp_path), True, {})
