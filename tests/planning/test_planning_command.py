"""The planning command on small data sets: what it prints, writes, refuses and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import UserError
from scripts.planning import __main__ as planning
from scripts.planning.plan import Plan, Row

BUNDLE = Path(planning.__file__).parents[2]


def make_dataset(folder: Path, cases: int = 6, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Path:
    """A data set in the MSD layout: noise with a bright block, 20 x 24 x 18 voxels."""
    random = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([*spacing, 1.0])
    for index in range(cases):
        label = np.zeros((20, 24, 18), np.uint8)
        label[5:12, 6 + index % 4 : 15, 4:10] = 1
        image = random.normal(100, 10, label.shape) + 80 * label
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / "imagesTr" / f"case_{index}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"case_{index}.nii.gz")
    names = [f"case_{index}.nii.gz" for index in range(cases)]
    description = {
        "name": "Small Set",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "block"},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "Task77_Small")


def plan(*arguments: object) -> int:
    return planning.main([str(argument) for argument in ("--workers", 1, "--gpu_memory_gb", 8, *arguments)])


def test_overlay_fingerprint_and_commands(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "small.json"
    assert plan("--dataset_dir", dataset, "--output", output) == 0
    overlay = json.loads(output.read_text())
    assert overlay["name"] == "small_set" and overlay["dataset_dir"] == str(dataset.resolve())
    assert overlay["labels"] == {"block": 1} and overlay["patch_size"] == [20, 24, 20]
    assert json.loads((tmp_path / "new" / "small.fingerprint.json").read_text())["cases"] == 6
    printed = capsys.readouterr().out
    assert "no errors in 6 cases" in printed
    assert "20 x 24 x 18, rounded up to the strides" in " ".join(printed.split())  # wrapped where the folder is deep
    training, evaluating, inference = printed.splitlines()[-3:]
    run = "python -m monai.bundle run"
    assert training == f"{run} training   --config_file \"['configs/train.json','{output}']\""
    assert evaluating == f"{run} evaluating --config_file \"['configs/train.json','{output}','configs/evaluate.json']\""
    assert inference == (
        f"{run} inference  --config_file \"['configs/inference.json','{output}']\" --input_dir IN --output_dir OUT"
    )


def test_an_overlay_is_not_lost(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.json"
    output.write_text("mine")
    with pytest.raises(UserError, match=r"mine\.json exists: .*--overwrite"):
        plan("--dataset_dir", dataset, "--output", output)
    assert output.read_text() == "mine" and list(tmp_path.iterdir()) == [output]
    assert plan("--dataset_dir", dataset, "--output", output, "--overwrite", "--name", "other") == 0
    assert json.loads(output.read_text())["name"] == "other"


def test_a_fingerprint_is_replaced_only_by_a_fingerprint(dataset: Path, tmp_path: Path) -> None:
    fingerprint = tmp_path / "mine.fingerprint.json"
    fingerprint.write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"mine\.fingerprint\.json would be replaced"):
        plan("--dataset_dir", dataset, "--output", tmp_path / "mine.json")
    assert list(tmp_path.iterdir()) == [fingerprint] and fingerprint.read_text() == '{"mine": 1}'
    fingerprint.write_text('{"image_dims": 3, "median_shape": [1, 1, 1], "per_case": []}')  # of a killed planning
    assert plan("--dataset_dir", dataset, "--output", tmp_path / "mine.json") == 0


@pytest.mark.parametrize("output", ["dataset.json", "labelsTr/plan.json", "imagesTr"])
def test_a_plan_goes_nowhere_among_the_data(dataset: Path, output: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    with pytest.raises(UserError, match="--output "):
        plan("--dataset_dir", dataset, "--output", dataset / output, "--overwrite")
    assert before == {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}


def test_a_data_set_whose_name_configs_would_change(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "set#1").symlink_to(dataset)
    assert planning.path_for_configs(tmp_path / "set#1") == str(dataset.resolve())
    (tmp_path / "more#1").mkdir()
    with pytest.raises(UserError, match="configs read # as ::, so rename it, or give a link"):
        planning.path_for_configs(tmp_path / "more#1")
    (tmp_path / "more").symlink_to(tmp_path / "more#1")
    assert planning.path_for_configs(tmp_path / "more") == str(tmp_path / "more")


def test_errors_are_listed_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path / "data")
    (dataset / "imagesTr" / "case_1.nii.gz").write_bytes(b"broken")
    (dataset / "labelsTr" / "case_4.nii.gz").unlink()
    output = tmp_path / "plan.json"
    assert plan("--dataset_dir", dataset, "--output", output) == 1
    printed = capsys.readouterr().out
    assert "case_1.nii.gz" in printed and "case_4.nii.gz" in printed and "2 errors" in printed
    assert not output.exists()
    assert plan("--dataset_dir", dataset, "--check_only") == 1


def test_check_only(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((BUNDLE / "configs" / "tasks").iterdir())
    assert plan("--dataset_dir", dataset, "--check_only") == 0
    printed = capsys.readouterr().out
    assert "no errors" in printed and "patch_size" not in printed
    assert sorted((BUNDLE / "configs" / "tasks").iterdir()) == before


def test_few_cases_train_on_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path / "data", cases=3)
    assert plan("--dataset_dir", dataset, "--output", tmp_path / "plan.json") == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0].endswith("--fold all")
    assert json.loads((tmp_path / "plan.json").read_text())["weights"] == "output/small_set/fold_all/model.pt"


def test_wishes(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    wishes = ("--dimensions", 2, "--init_filters", 16, "--gpu_memory_gb", 0)
    assert plan("--dataset_dir", dataset, "--output", output, *wishes) == 0
    overlay = json.loads(output.read_text())
    assert overlay["spatial_dims"] == 2 and overlay["slice_axis"] == 2 and overlay["init_filters"] == 16
    assert overlay["epochs"] == 20  # a CPU's


def test_from_nnunet_finds_the_data(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = {
        "patch_size": [16, 24, 16],
        "spacing": [2.0, 1.5, 1.0],
        "batch_size": 4,
        "normalization_schemes": ["ZScoreNormalization"],
    }
    plans = tmp_path / "nnUNetPlans.json"
    plans.write_text(json.dumps({"dataset_name": dataset.name, "configurations": {"3d_fullres": configuration}}))
    output = tmp_path / "plan.json"
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(UserError, match=r"for Task77_Small, but \$nnUNet_raw is not set: give its folder"):
        plan("--from_nnunet", plans, "--output", output)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    with pytest.raises(UserError, match="has no such folder"):
        plan("--from_nnunet", plans, "--output", output)
    monkeypatch.setenv("nnUNet_raw", str(dataset.parent))
    assert plan("--from_nnunet", plans, "--output", output) == 0
    overlay = json.loads(output.read_text())
    assert overlay["spacing"] == [1.0, 1.5, 2.0] and overlay["patch_size"] == [16, 24, 16]
    assert overlay["batch_size"] == 4 and overlay["dataset_dir"] == str(dataset.resolve())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpu_memory_gb", "much"],
        ["--gpu_memory_gb", "-1"],
        ["--init_filters", "12"],
        ["--workers", "0"],
        ["--dimensions", "4"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        planning.main(["--dataset_dir", "data", *arguments])
    assert stopped.value.code == 2 and arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a,b", "it's", '"a"', "$a", "@a", "%a", "a#b", "a/b", "a b", "..", "-a", "a\n", ""])
def test_a_name_that_files_or_configs_would_not_keep(dataset: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--name .*: .*; try --name \w+") as refused:
        plan("--dataset_dir", dataset, "--output", tmp_path / "plan.json", f"--name={name}")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Lung_x-ray.2", "7", "Größe"])
def test_a_name_that_they_keep(name: str) -> None:
    planning.check_name(name)


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset_dir"):
        planning.main([])
    with pytest.raises(UserError, match="does not exist"):
        planning.main(["--dataset_dir", str(tmp_path / "nowhere")])


def test_as_a_user_types_it(dataset: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.planning", *arguments]
        return subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=300, check=False)

    done = run("--dataset_dir", str(dataset), "--output", str(tmp_path / "plan.json"), "--workers", "2")
    assert done.returncode == 0, done.stderr
    again = run("--dataset_dir", str(dataset), "--output", str(tmp_path / "plan.json"))
    assert again.returncode == 1 and "--overwrite" in again.stderr and "Traceback" not in again.stderr
    named = run("--dataset_dir", str(dataset), "--name", "a,b")
    assert named.returncode == 1 and "Traceback" not in named.stderr
    assert named.stderr.strip().splitlines() == [named.stderr.strip()] and "try --name a_b" in named.stderr
    assert "exit status" in run("--help").stdout


# --- parts


def test_commands_within_the_bundle() -> None:
    file = BUNDLE / "configs" / "tasks" / "liver.json"
    commands = planning.next_commands(file, Plan({"name": "liver"}))
    assert all("'configs/tasks/liver.json'" in command for command in commands)


@pytest.mark.parametrize(
    ("text", "name"), [("Lung X-ray", "lung_x-ray"), ("Task09_Spleen", "task09_spleen"), ("../..", "task"), ("-a", "a")]
)
def test_default_name(text: str, name: str) -> None:
    assert planning.default_name(text) == name


def test_table_is_aligned() -> None:
    rows = [Row("a", "1", "short"), Row("longer_setting", "2 x 2 x 2, " * 6, "a reason of many words " * 12)]
    lines = planning.format_table(rows, 100).splitlines()
    column = lines[0].index("reason")
    assert lines[2].index("short") == column and max(map(len, lines)) <= 100
    assert all(line[column - 2 : column].strip() == "" for line in lines if not line.startswith("-"))


def test_memory_of_this_machine() -> None:
    import torch

    assert planning.gpu_memory_gib(0) is None and planning.gpu_memory_gib(11.0) == 11
    found = planning.gpu_memory_gib(None)
    assert (found is None) is not torch.cuda.is_available()
    assert found is None or found <= planning.LARGEST_DEFAULT_GIB


def test_planning_and_training_have_the_same_defaults() -> None:
    """Planning keeps a copy of its own: it loads no config for a number."""
    from scripts.planning.make_plan import OVERLAP

    train = json.loads((BUNDLE / "configs/train.json").read_text())
    assert train["overlap"] == OVERLAP


def test_real_data(shared_data: Path, tmp_path: Path) -> None:
    workers = str(min(2, os.cpu_count() or 1))
    options = ["--workers", workers, "--gpu_memory_gb", "8", "--output", str(tmp_path / "plan.json")]
    assert planning.main(["--dataset_dir", str(shared_data / "Task04_Hippocampus"), *options]) == 0
    overlay = json.loads((tmp_path / "plan.json").read_text())
    assert overlay["patch_size"] == [40, 56, 40] and overlay["spacing"] == [1, 1, 1] and overlay["strides"] is None
