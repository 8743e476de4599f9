"""`make report` from images to page, and what it says when its folders are not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from report_cases import cube, write

from scripts.engines.provenance import Run, write_provenance
from scripts.networks import LightMUNet

REPOSITORY = Path(__file__).parents[1]
Result = subprocess.CompletedProcess[str]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """images/a with a reference, a reference "b" without image, and weights.pt of a small untrained network."""
    label = cube((16, 14, 12), 3, 8) + cube((16, 14, 12), 9, 11, 2)
    write(tmp_path / "images/a.nii.gz", label.astype(np.float32))
    for name in "ab":
        write(tmp_path / f"labels/{name}.nii.gz", label)
    torch.manual_seed(0)
    torch.save(LightMUNet(3, 1, 3, init_filters=8, stem="full").state_dict(), tmp_path / "weights.pt")
    return tmp_path


def make_report(folder: Path, *options: str, python: Path | str = sys.executable, **variables: Path | str) -> Result:
    """`make report` with the small network; an existing file as the stamp: this Python already has the packages."""
    arguments = f"--checkpoint {folder / 'weights.pt'} --init_filters 8 --tta false"
    given = {"VENV_PYTHON": python, "STAMP": "Makefile", "OUT": folder / "out", "ARGS": arguments, **variables}
    command = ["make", *options, "report", *(f"{name}={value}" for name, value in given.items())]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def check_error(done: Result, message: str) -> None:
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {message}"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_report_keeps_predictions_of_others(tmp_path: Path) -> None:
    """It replaces those that inference wrote there before."""
    mine = tmp_path / "out/prediction/a.nii.gz"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = make_report(tmp_path)
    assert done.returncode and "prediction holds files that no prediction wrote: move them away" in done.stderr
    assert mine.read_text() == "mine" and list(mine.parent.iterdir()) == [mine]


def test_report_of_a_folder(case: Path) -> None:
    done = make_report(case, IN=case / "images", LABELS=case / "labels")
    assert done.returncode == 0, done.stdout + done.stderr
    named = re.search(r"^1 cases: (\S+) \(.* MiB\), (\S+),", done.stdout, re.MULTILINE)
    assert named, done.stdout
    page = Path(named[1])
    assert page == case / "out/report/report.html"
    assert "</html>" in page.read_text()
    content = json.loads(page.with_name(named[2]).read_text())
    assert content["worst_first"] == ["a"]
    assert content["classes"] == {"anterior": 1, "posterior": 2}, "the task's names"
    assert content["results"]["prediction"]["anterior"]["dice"]["defined"] == 1, "the reference was used"


def test_without_folders_the_demo_images_without_references(tmp_path: Path) -> None:
    done = make_report(tmp_path, "--dry-run")  # for real it takes as long as the other tests together
    assert done.returncode == 0, done.stderr
    assert "write_inputs" in done.stdout
    assert done.stdout.count(f'"{tmp_path / "out/input"}"') == 3, "written, segmented and drawn"
    assert "--labels" not in done.stdout


def test_a_training_that_is_there_is_used(tmp_path: Path) -> None:
    folds = "bundle/output/mine/fold_0/model_final.pt bundle/output/mine/fold_1/model_final.pt"
    done = make_report(
        tmp_path, "--dry-run", IN=tmp_path / "images", LABELS=tmp_path / "labels", TRAINED=folds, ARGS="--samples 3"
    )
    assert done.returncode == 0, done.stderr
    assert "2 trained fold(s) of hippocampus in bundle/output/hippocampus: python -m scripts.finish" in done.stdout
    command = done.stdout[done.stdout.index("-m scripts.finish --config_file") :]
    for words in (f'--input_dir "{tmp_path / "images"}"', f'--labels "{tmp_path / "labels"}"', "--samples 3"):
        assert words in command
    assert "monai.bundle" not in done.stdout and "scripts.report" not in done.stdout


def test_an_unknown_task_is_one_clear_error(tmp_path: Path) -> None:
    done = make_report(tmp_path, TASK=Path("nope"))
    assert done.returncode != 0
    assert "TASK: there is no bundle/configs/tasks/nope.json" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_folder_of_images_is_one_clear_error(case: Path) -> None:
    done = make_report(case, IN=case / "none", LABELS=case / "labels")
    check_error(done, f"the input {case / 'none'} does not exist: give a file or a folder")
    assert not (case / "out/report").exists()


def test_a_missing_folder_of_references_is_one_clear_error(case: Path) -> None:
    shutil.copytree(case / "labels", case / "out/prediction")
    write_provenance(case / "out/prediction", Run("model.pt", None, None, ["a"]))
    after_inference = case / "python"  # which the other tests run, and which takes most of their time
    after_inference.write_text(f'#!/bin/sh\n[ "$2" = monai.bundle ] || exec "{sys.executable}" "$@"\n')
    after_inference.chmod(0o755)
    done = make_report(case, python=after_inference, IN=case / "images", LABELS=case / "none")
    check_error(done, f"the folder {case / 'none'} does not exist")
    assert not (case / "out/report").exists()


def test_an_environment_behind_a_link_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/kept").touch()
    (tmp_path / "link").symlink_to("shared")
    command = ["make", "lint", f"VENV={tmp_path / 'link'}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "is a link" in done.stderr
    assert (tmp_path / "shared/kept").exists()


def dry_run(**variables: Path | str) -> str:
    """What `make lint` would do on a machine without an environment."""
    command = ["make", "--dry-run", "lint", *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True).stdout


def test_nnunets_networks_are_part_of_the_environment_without_what_they_ask_for(tmp_path: Path) -> None:
    first = dry_run(VENV=tmp_path / "none")
    assert "--no-deps -r env/requirements-benchmarks.txt" in first
    (tmp_path / "changed.txt").write_text("dynamic-network-architectures==0\n", encoding="utf-8")
    stamps = [
        re.findall(r"none/\.installed-\S+", text)
        for text in (first, dry_run(VENV=tmp_path / "none", ALONE=tmp_path / "changed.txt"))
    ]
    assert stamps[0] and stamps[0] != stamps[1], "another version of it makes a new environment"


@pytest.mark.parametrize(
    ("machine", "version", "said"),
    [("x86_64", "14.5", "Macs with an Intel chip"), ("arm64", "13.6.1", "macOS 13.6.1"), ("arm64", "15.0", None)],
)
def test_machines_without_packages_are_told_so(machine: str, version: str, said: str | None, tmp_path: Path) -> None:
    """Before pip says that there is no matching distribution."""
    python = tmp_path / "python"
    (tmp_path / "sitecustomize.py").write_text(
        f"import platform, sys\nsys.platform = 'darwin'\nplatform.machine = lambda: {machine!r}\n"
        f"platform.mac_ver = lambda: ({version!r}, ('', '', ''), {machine!r})\n"
    )
    python.write_text(f'#!/bin/sh\ntest "$2" != venv && PYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = ["make", "lint", f"VENV={tmp_path / 'none'}", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and not (tmp_path / "none").exists()
    told = f"make: torch and numba have no packages for {said}: use macOS 14 or later on an M chip, Linux"
    assert (told in done.stderr) == bool(said) and ("no packages" in done.stderr) == bool(said)


def test_mamba_ends_with_the_doctor() -> None:
    command = ["make", "--dry-run", "mamba", "STAMP=Makefile"]
    steps = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True).stdout
    build, doctor = steps.index("--no-build-isolation"), steps.index("--require mamba_ssm")
    assert "MAMBA_FORCE_BUILD=TRUE" in steps[:build] and build < doctor
