"""The workflows end to end on small generated data sets: train, resume, evaluate, predict, in 3D and in 2D."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from workflow_runs import BUNDLE, CONFIGS, SMALL_3D, TINY, error_of, run


def test_training_writes_weights_checkpoint_log_and_curves(run_3d: Path) -> None:
    weights = torch.load(run_3d / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    checkpoint = torch.load(run_3d / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 2
    assert (run_3d / "model_final.pt").is_file()
    assert list((run_3d / "tensorboard").glob("events*"))
    log = (run_3d / "training.log").read_text()
    assert "epoch 2/2 | loss" in log and "Dice anterior" in log and "posterior" in log and "EMA" in log
    assert str(run_3d / "model.pt") in log
    assert not list(run_3d.glob(".*"))


def test_a_resumed_run_equals_an_uninterrupted_one(volumes: Path, run_3d: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = {"dataset_dir": str(volumes), "output_dir": str(output)} | TINY | SMALL_3D

    class Stop(Exception):
        pass

    workflow = monai.bundle.ConfigWorkflow(str(CONFIGS / "train.json"), bundle_root=str(BUNDLE), **settings)
    workflow.initialize()
    trainer = workflow.trainer

    def stop(engine: Any) -> None:
        raise Stop

    from ignite.engine import Events

    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), stop)
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, Stop)
    run("training", "train.json", resume="true", **settings | {"num_workers": 2})  # which change nothing either
    resumed = torch.load(output / "checkpoint.pt", weights_only=True)
    whole = torch.load(run_3d / "checkpoint.pt", weights_only=True)
    assert resumed["epoch"] == whole["epoch"] and resumed["ema_pseudo_dice"] == whole["ema_pseudo_dice"]
    for name, value in whole["network"].items():
        assert torch.equal(value, resumed["network"][name]), name
    records = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (output, run_3d)]
    assert [record["epoch"] for record in records[0]] == [1, 2]
    for ours, theirs in zip(*records, strict=True):
        assert all(ours[key] == theirs[key] for key in ("loss", "lr", "dice", "pseudo_dice", "ema_pseudo_dice"))


def test_a_run_killed_before_its_final_weights_gets_them(volumes: Path, run_3d: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(run_3d, output)
    (output / "model_final.pt").unlink()
    settings = {"dataset_dir": str(volumes), "output_dir": str(output), "resume": "true"} | TINY | SMALL_3D
    run("training", "train.json", **settings)
    final, whole = (torch.load(folder / "model_final.pt", weights_only=True) for folder in (output, run_3d))
    assert all(torch.equal(final[name], value) for name, value in whole.items())
    assert (output / "log.jsonl").read_text() == (run_3d / "log.jsonl").read_text()
    assert "has done all its 2 epochs" in error_of("training", "train.json", **settings)


def test_a_folder_with_a_run_is_refused_and_kept(volumes: Path, run_3d: Path) -> None:
    before = {file: file.read_bytes() for file in run_3d.glob("*.pt")}
    settings = {"dataset_dir": str(volumes), "output_dir": str(run_3d)} | TINY | SMALL_3D
    message = error_of("training", "train.json", **settings)
    assert "--resume true" in message and "--output_dir" in message
    message = error_of("training", "train.json", **settings | {"resume": "true", "init_filters": 16})
    assert "init_filters was 8, now 16" in message
    assert before == {file: file.read_bytes() for file in run_3d.glob("*.pt")}


def test_evaluation_writes_scores_by_case_and_class(volumes: Path, run_3d: Path) -> None:
    settings = {"dataset_dir": str(volumes), "output_dir": str(run_3d)} | TINY | SMALL_3D
    run("evaluating", "train.json", "evaluate.json", **settings, tta="false")
    with (run_3d / "evaluation/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"anterior", "posterior"} and len(rows) == 2 * 2
    assert all(Path(row["file"]).is_file() for row in rows)
    report = json.loads((run_3d / "evaluation/metrics.json").read_text())
    mean = np.mean([float(row["dice"]) for row in rows if row["class"] == "anterior"])
    assert report["cases"] == 2 and report["classes"]["anterior"]["dice"]["mean"] == pytest.approx(mean)


def test_2d_training_evaluation_and_prediction(pictures: Path, run_2d: Path, tmp_path: Path) -> None:
    common = {"device": "cpu", "init_filters": 8, "patch_size": [32, 32]}
    configs = ("train.json", "evaluate.json", "tasks/lung_xray.json")
    run("evaluating", *configs, dataset_dir=str(pictures), output_dir=str(run_2d), num_workers=0, **common)
    report = json.loads((run_2d / "evaluation/metrics.json").read_text())
    assert report["classes"]["lung"]["dice"]["mean"] > 0.7
    run(
        "inference",
        *("inference.json", "tasks/lung_xray.json"),
        input_dir=str(pictures / "imagesTr"),
        output_dir=str(tmp_path),
        checkpoint=str(run_2d / "model.pt"),
        save_probabilities="true",
        **common,
    )
    for i in range(10):
        predicted = np.asarray(Image.open(tmp_path / f"case_{i}.png"))
        label = np.asarray(Image.open(pictures / f"labelsTr/case_{i}.png"))
        assert predicted.shape == label.shape == (40, 56)  # the right way round
        assert 2 * (predicted * label).sum() / (predicted.sum() + label.sum()) > 0.7
        probabilities = np.load(tmp_path / f"case_{i}_probabilities.npz")["probabilities"]
        assert probabilities.shape == (2, 40, 56) and np.allclose(probabilities.sum(0), 1, atol=1e-5)
        assert np.array_equal(probabilities.argmax(0), predicted)


def test_3d_predictions_lie_on_the_original_grid(volumes: Path, run_3d: Path, tmp_path: Path) -> None:
    settings = {
        "output_dir": str(tmp_path / "out"),
        "checkpoint": str(run_3d / "model.pt"),
        "init_filters": 8,
        "device": "cpu",
        "patch_size": [16, 24, 16],
        "spacing": [1.2, 1.2, 1.2],
        "tta": "false",
    }
    run(
        "inference",
        "inference.json",
        input_dir=str(volumes / "imagesTr"),
        save_probabilities=True,
        **settings,
    )
    for path in (volumes / "imagesTr").iterdir():
        image, predicted = nib.load(path), nib.load(tmp_path / "out" / path.name)
        assert predicted.shape == image.shape and predicted.get_data_dtype() == np.uint8
        assert np.array_equal(predicted.affine, image.affine)
        assert predicted.header.get_zooms() == image.header.get_zooms()
    assert nib.load(tmp_path / "out/case_0_probabilities.nii.gz").shape == (14, 22, 15, 3)
    message = error_of("inference", "inference.json", input_dir=str(volumes / "imagesTr"), **settings)
    assert "--skip_existing true" in message and "--overwrite true" in message
    (tmp_path / "out/case_3.nii.gz").unlink()
    before = (tmp_path / "out/case_4.nii.gz").stat().st_mtime_ns
    run("inference", "inference.json", input_dir=str(volumes / "imagesTr"), skip_existing="true", **settings)
    assert (tmp_path / "out/case_3.nii.gz").is_file()
    assert (tmp_path / "out/case_4.nii.gz").stat().st_mtime_ns == before


def test_prediction_goes_on_past_a_broken_file(volumes: Path, run_3d: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for i in (0, 2):
        (inputs / f"case_{i}.nii.gz").write_bytes((volumes / f"imagesTr/case_{i}.nii.gz").read_bytes())
    (inputs / "case_1.nii.gz").write_bytes((volumes / "imagesTr/case_1.nii.gz").read_bytes()[:400])
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "inference",
        "--config_file",
        "configs/inference.json",
    ]
    command += ["--input_dir", str(inputs), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--checkpoint", str(run_3d / "model.pt"), "--init_filters", "8", "--tta", "false"]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 image(s) could not be predicted:" in done.stdout + done.stderr
    assert str(inputs / "case_1.nii.gz") in done.stdout + done.stderr
    written = {"case_0.nii.gz", "case_2.nii.gz", "predictions.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_task_overlay_of_the_default_changes_nothing(config: str) -> None:
    parser = monai.bundle.ConfigParser()
    parser.read_config([str(CONFIGS / config), str(CONFIGS / "tasks/hippocampus.json")])
    default = monai.bundle.ConfigParser()
    default.read_config(str(CONFIGS / config))
    for p in (parser, default):
        p["bundle_root"] = str(BUNDLE)
    keys = set(json.loads((CONFIGS / "tasks/hippocampus.json").read_text())) & set(default.get())
    for key in keys - ({"dataset_dir"} if config == "inference.json" else set()):  # inference has its input_dir
        assert parser.get_parsed_content(key) == default.get_parsed_content(key)


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_config_has_the_properties_monai_asks_for(config: str, volumes: Path, tmp_path: Path) -> None:
    kind = "train" if config == "train.json" else "infer"
    places = {"bundle_root": str(BUNDLE), "dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    if kind == "infer":
        places["input_dir"] = str(volumes / "imagesTr")
    workflow = monai.bundle.ConfigWorkflow(str(CONFIGS / config), workflow_type=kind, **places)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_real_hippocampus_with_the_shipped_weights(shared_data: Path, tmp_path: Path) -> None:
    dataset = shared_data / "Task04_Hippocampus"
    run(
        "evaluating",
        "train.json",
        "evaluate.json",
        dataset_dir=str(dataset),
        checkpoint=str(BUNDLE / "models/model.pt"),
        fold=json.loads((BUNDLE / "models/cases.json").read_text())["fold"],
        output_dir=str(tmp_path),
        limit_cases=3,
        device="cpu",
        num_workers=0,
        tta="false",
    )
    classes = json.loads((tmp_path / "evaluation/metrics.json").read_text())["classes"]
    assert classes["anterior"]["dice"]["mean"] > 0.85 and classes["posterior"]["dice"]["mean"] > 0.83
