"""The workflows end to end on small generated data sets: train, resume, evaluate, predict, in 3D and in 2D."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
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

from scripts.common.errors import find_user_error

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
SMALL_3D = {
    "patch_size": [16, 24, 16],
    "spacing": "null",
    "batch_size": 2,
}
SMALL_2D = {"patch_size": [32, 32], "batch_size": 2}
TINY = {
    "init_filters": 8,
    "iterations_per_epoch": 2,
    "num_workers": 0,
    "epochs": 2,
    "device": "cpu",
    "seed": 1,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Tiny tensors: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(run_id: str, *configs: str, **overrides: Any) -> None:
    files = [str(CONFIGS / config) for config in configs]
    if run_id == "training":  # beside the data set, not in the bundle
        overrides = {"cache_dir": f"{overrides['dataset_dir']}/preprocessed"} | overrides
    monai.bundle.run(run_id, config_file=files, bundle_root=str(BUNDLE), **overrides)


def error_of(run_id: str, *configs: str, **overrides: Any) -> str:
    """The message of the UserError that a run ends with."""
    with pytest.raises(Exception) as caught:
        run(run_id, *configs, **overrides)
    user_error = find_user_error(caught.value)
    assert user_error is not None, caught.value
    return str(user_error)


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_dataset_json(root: Path, labels: dict[str, str], cases: list[tuple[str, str]]) -> None:
    description = {
        "modality": {"0": "any"},
        "labels": labels,
        "training": [{"image": image, "label": label} for image, label in cases],
    }
    (root / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten volumes with a bright anterior and a dark posterior ball, in an LPS grid of 1 x 1.5 x 1 mm."""
    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    cases = []
    for i in range(10):
        shape = (14 + i % 3, 22 + i % 4, 15)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        label = np.zeros(shape, np.uint8)
        for value, y in ((1, 6), (2, 15)):
            label[((grid - np.array([7, y, 7])[:, None, None, None]) ** 2).sum(0) < 16] = value
        image = rng.normal(100, 5, shape) + np.array([0, 60, -60])[label]
        affine = np.diag([-1, -1.5, 1, 1.0])
        affine[:3, 3] = (90, 120, -70)
        write_volume(root / f"imagesTr/case_{i}.nii.gz", image.astype(np.float32), affine)
        write_volume(root / f"labelsTr/case_{i}.nii.gz", label, affine)
        cases.append((f"./imagesTr/case_{i}.nii.gz", f"./labelsTr/case_{i}.nii.gz"))
    write_dataset_json(root, {"0": "background", "1": "anterior", "2": "posterior"}, cases)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten grey pictures of 40 x 56 pixels (height x width) with a bright ellipse near the upper left."""
    root = tmp_path_factory.mktemp("pictures")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    cases = []
    for i in range(10):
        y, x = np.mgrid[:40, :56]
        label = (((y - 12) / 8) ** 2 + ((x - 16 - i % 3) / 11) ** 2 < 1).astype(np.uint8)
        image = np.clip(rng.normal(90, 6, label.shape) + 80 * label, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"imagesTr/case_{i}.png")
        Image.fromarray(label).save(root / f"labelsTr/case_{i}.png")
        cases.append((f"imagesTr/case_{i}.png", f"labelsTr/case_{i}.png"))
    write_dataset_json(root, {"0": "background", "1": "lung"}, cases)
    return root


@pytest.fixture(scope="module")
def run_3d(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run of two epochs."""
    output = tmp_path_factory.mktemp("run_3d") / "run"
    run("training", "train.json", dataset_dir=str(volumes), output_dir=str(output), **TINY, **SMALL_3D)
    return output


@pytest.fixture(scope="module")
def run_2d(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures long enough to find the ellipse."""
    output = tmp_path_factory.mktemp("run_2d") / "run"
    settings = TINY | {"iterations_per_epoch": 20, "learning_rate": 0.01}
    lung = ("train.json", "tasks/lung_xray.json")
    run("training", *lung, dataset_dir=str(pictures), output_dir=str(output), **settings, **SMALL_2D)
    return output


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


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command += [f"--master_port={port}", "-m", "monai.bundle", "run", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, env=environment)


def test_two_processes_train_and_score_like_one(volumes: Path, run_3d: Path, tmp_path: Path) -> None:
    common = ["--dataset_dir", str(volumes), "--num_workers", "0", "--init_filters", "8", "--spacing", "null"]
    common += ["--patch_size", "[16,24,16]", "--batch_size", "2", "--iterations_per_epoch", "2"]
    output = ["--output_dir", str(tmp_path / "run"), "--epochs", "1"]
    done = torchrun(
        "training", "--config_file", "['configs/train.json','configs/multi_gpu_train.json']", *common, *output
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/training.log").read_text().count("epoch 1/1") == 1
    weights = torch.load(tmp_path / "run/model.pt", weights_only=True)
    assert not any(name.startswith("module.") for name in weights)

    configs = "['configs/train.json','configs/evaluate.json','configs/multi_gpu_evaluate.json']"
    places = ["--output_dir", str(run_3d), "--evaluation_dir", str(tmp_path / "two"), "--tta", "false"]
    done = torchrun("evaluating", "--config_file", configs, *common, *places)
    assert done.returncode == 0, done.stderr[-3000:]
    settings = {"dataset_dir": str(volumes), "output_dir": str(run_3d)} | TINY | SMALL_3D
    one = str(tmp_path / "one")
    run("evaluating", "train.json", "evaluate.json", **settings, tta="false", evaluation_dir=one)
    reports = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert reports[0] == reports[1]


def test_processes_that_cannot_work_together_are_refused(volumes: Path, run_3d: Path, tmp_path: Path) -> None:
    """Each would score its share alone, or wait for ever for one that has nothing to score."""
    common = ["--dataset_dir", str(volumes), "--output_dir", str(run_3d), "--num_workers", "0", "--init_filters", "8"]
    configs = ["configs/train.json", "configs/evaluate.json"]
    done = torchrun("evaluating", "--config_file", str(configs), *common)
    assert done.returncode and "add configs/multi_gpu_train.json in training" in done.stderr
    configs.append("configs/multi_gpu_evaluate.json")
    done = torchrun("evaluating", "--config_file", str(configs), *common, "--limit_cases", "1")
    assert done.returncode and "1 held-out case(s) for 2 processes: use --nproc_per_node=1" in done.stderr


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
