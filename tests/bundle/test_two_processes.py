"""The workflows in two processes on one machine, as torchrun starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from workflow_runs import BUNDLE, SMALL_3D, TINY, run


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
