"""Whole runs that are refused: in one line, and before anything is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from workflow_runs import BUNDLE, CONFIGS, SMALL_3D, TINY, error_of, run


def test_a_mistyped_id_and_other_errors_are_one_line(volumes: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file"]
    command += [str(CONFIGS / "train.json"), "--bundle_root", str(BUNDLE), "--dataset_dir", str(volumes)]
    done = subprocess.run([*command, "--epoch", "3"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "did you mean 'epochs'?" in done.stderr
    assert "Traceback" not in done.stderr
    command += ["--output_dir", str(tmp_path / "run")]
    done = subprocess.run([*command, "--spacing", "None"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "write --spacing null" in done.stderr
    done = subprocess.run([*command, "--fold", "7"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "error: fold must be 0 to 4 or 'all', not 7" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch_size": [16, 20, 16]}, "multiple of 8"),
        ({"patch_size": [16, 24]}, "3 sizes"),
        ({"dataset_dir": "/nowhere"}, "/nowhere does not exist"),
        ({"in_channels": 2, "normalization": ["zscore"] * 2}, "1 channel"),
        ({"labels": {"anterior": 1}}, "declares the labels"),
        ({"amp": "maybe"}, "amp must be true or false"),
        ({"resume": "true"}, "nothing to resume"),
        ({"output_dir": "/proc/nowhere"}, "cannot write"),
    ],
)
def test_bad_settings_are_refused(volumes: Path, tmp_path: Path, overrides: dict, message: str) -> None:
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "run")} | TINY | SMALL_3D
    assert message in error_of("training", "train.json", **settings | overrides)
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_weights_that_do_not_fit_are_refused(volumes: Path, run_3d: Path, tmp_path: Path) -> None:
    settings = {"input_dir": str(volumes / "imagesTr"), "output_dir": str(tmp_path), "device": "cpu"}
    message = error_of("inference", "inference.json", checkpoint=str(run_3d / "model.pt"), **settings)
    assert "do not fit the network" in message and "init_filters" in message
    message = error_of("inference", "inference.json", checkpoint=str(tmp_path / "none.pt"), **settings)
    assert "--checkpoint" in message


def test_weights_of_other_strides_are_said_to_be(
    volumes: Path, run_3d: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """No weight's shape tells of them."""
    settings = {"input_dir": str(volumes / "imagesTr/case_0.nii.gz"), "output_dir": str(tmp_path), "device": "cpu"}
    settings |= {"checkpoint": str(run_3d / "model.pt"), "init_filters": 8, "tta": False} | SMALL_3D
    del settings["batch_size"]
    run("inference", "inference.json", strides=[[2, 2, 2], [2, 2, 2], [1, 2, 1]], **settings)
    assert "were trained with strides None, now it is [[2, 2, 2], [2, 2, 2], [1, 2, 1]]" in "".join(capfd.readouterr())
