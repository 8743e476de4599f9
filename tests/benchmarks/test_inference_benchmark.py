"""The benchmark of large images on a small one: the chains agree, and what fails keeps its row with the reason."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inference as benchmark
import inference_case
import inference_monai
import monai.bundle
import pytest
import torch
from harness import Budget

ARGUMENTS = ["--shape", "24x20x28", "--classes", "4", "--rounds", "1", "--threads", "1"]


def run_here(words: Sequence[str], *_: Any) -> str:
    """The chain's program in this process, with what it prints; nnU-Net's is not installed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if words[1].endswith("inference_monai.py"):
            inference_monai.main(words[2])
        elif words[1] == "-m":
            given = {name[2:]: value for name, value in zip(words[5::2], words[6::2], strict=True)}
            workflow = monai.bundle.ConfigWorkflow(json.loads(given.pop("config_file").replace("'", '"')), **given)
            workflow.initialize()
            workflow.run()
            print(json.dumps(workflow.network_def.stopwatch.outcome()))
        else:
            raise benchmark.Failed("ModuleNotFoundError: No module named 'nnunetv2'")
    return printed.getvalue().strip()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "run", run_here)
    monkeypatch.setattr(inference_case.atexit, "register", lambda call: None)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("grid", ["coarse", "full"])
def test_chains_agree_and_one_that_fails_says_why(
    grid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    options = [*ARGUMENTS, "--grid", grid, "--json", str(file), "--nnunet-python", "python"]
    benchmark.main(options)
    printed = capsys.readouterr().out
    rows = {(row["chain"], row["tta"]): row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    for tta, passes in (("off", 1), ("on", 8)):
        ours, monais, nnunets = (rows[chain, tta] for chain in ("ours", "monai", "nnunet"))
        for row in (ours, monais):
            assert 0 < row["network_seconds"] < row["seconds"]
            assert row["outside_seconds"] == pytest.approx(row["seconds"] - row["network_seconds"])
            assert row["peak_bytes"] > 2**26 and row["gpu_peak_bytes"] is None
            assert row["windows"] > 0 and row["windows"] % passes == 0
        assert grid == "coarse" or ours["windows"] == monais["windows"] == 4 * passes
        assert monais["same_labels"] > (0.9999 if grid == "full" else 0.9)
        assert nnunets["failed"].endswith("'nnunetv2'") and "seconds" not in nnunets
    assert f"| {grid} | on | MONAI's transforms |" in printed and "No module named 'nnunetv2'" in printed
    benchmark.main(["--from-json", str(file)])
    assert capsys.readouterr().out == printed


@pytest.mark.usefixtures("in_this_process")
def test_resuming_measures_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    options = [*ARGUMENTS, "--grid", "full", "--json", str(file), "--resume", "--chain", "monai"]
    benchmark.main([*options, "--tta", "off"])
    (first,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
    measured: list[str] = []
    monkeypatch.setattr(benchmark, "run", lambda words, *rest: measured.append(words[1]) or run_here(words))
    benchmark.main([*options, "--tta", "off", "on"])
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert rows[0] == first and [row["tta"] for row in rows] == ["off", "on"] and len(measured) == 1


def limits(gib: float) -> SimpleNamespace:
    return SimpleNamespace(threads=1, limit_gib=gib)


def test_a_program_that_takes_too_much_is_stopped(tmp_path: Path) -> None:
    hog = [sys.executable, "-c", "import time; held = b'1' * 2**28; time.sleep(60)"]
    start = time.monotonic()
    with pytest.raises(benchmark.Failed, match=r"^stopped above 0\.1 GiB$"):
        benchmark.run(hog, tmp_path, limits(0.1), Budget(60))
    with pytest.raises(benchmark.Failed, match="the time budget was spent"):
        benchmark.run(hog, tmp_path, limits(9), Budget(0.5))
    assert time.monotonic() - start < 30


def test_a_program_that_fails_gives_its_error(tmp_path: Path) -> None:
    broken = [sys.executable, "-c", "import sys; print('Error of nobody'); sys.exit('ValueError: no such case')"]
    with pytest.raises(benchmark.Failed, match=r"^ValueError: no such case$"):
        benchmark.run(broken, tmp_path, limits(9), Budget(60))
    fine = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    assert benchmark.run(fine, tmp_path, limits(9), Budget(60)) == "1"


def test_the_convolution_does_not_see_how_an_image_is_turned() -> None:
    torch.manual_seed(0)
    network, image = inference_case.OneConvolution(3), torch.randn(1, 1, 5, 6, 7)
    turned = network(image.permute(0, 1, 4, 2, 3).flip(3)).flip(3).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(turned, network(image))


def test_the_default_network_is_what_planning_sets_up() -> None:
    options = benchmark.network_options()
    case = inference_case.Case("", "", "", (1.0,) * 3, (16,) * 3, 15, False, "default", options, 4, "cpu")
    with torch.device("meta"):
        network = inference_case.build(case)
        other = inference_case.build(case._replace(options=options | {"conv_stages": 2}))
        assert network.state_dict().keys() != other.state_dict().keys()
        assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 15, 16, 16, 16)
    assert not network.training and options["conv_stages"] == 3


def test_patches_are_what_planning_would_take() -> None:
    assert benchmark.Setting((256, 256, 300), "coarse", "off").patch == (64, 64, 72)
    assert benchmark.Setting((512, 512, 600), "full", "off").patch == (128, 128, 128)


@pytest.mark.parametrize("arguments", [["--chain", "nnunet"], ["--chain", "before"], ["--shape", "256x256"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse_arguments(arguments)
    assert arguments[1] in capsys.readouterr().err
