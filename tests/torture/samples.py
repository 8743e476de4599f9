"""Tiny data sets, their task overlays, and the commands that use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from .server import BUNDLE

Words = list[str]

CONFIGS = BUNDLE / "configs"
CLASSES = {"core": 1, "rim": 2}
SETTINGS = {"batch_size": 2, "init_filters": 8, "num_workers": 0, "device": "cpu", "overlap": 0.25, "strides": None}
SHORT = {"epochs": 2, "iterations_per_epoch": 1, "val_interval": 1}


def objects(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A label map with a ball of value 1 in a shell of value 2."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    distance = np.sqrt(((grid.T - rng.uniform(-0.3, 0.3, len(shape))) ** 2).sum(-1).T)
    return np.select([distance < 0.4, distance < 0.7], [1, 2], 0).astype(np.uint8)


def write_volumes(folder: Path, cases: int = 6, seed: int = 0) -> Path:
    """A data set of volumes in nnU-Net's layout."""
    rng = np.random.default_rng(seed)
    _folders(folder)
    for case in range(cases):
        label = objects((18, 20, 16), rng)
        image = (100 + 60 * label + rng.normal(0, 8, label.shape)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"imagesTr/c{case:02d}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"labelsTr/c{case:02d}.nii.gz")
    return _describe(folder, cases, ".nii.gz", "MRI")


def write_pictures(folder: Path, cases: int = 6, seed: int = 0, size: tuple[int, int] = (32, 36)) -> Path:
    """A data set of grey pictures in nnU-Net's layout."""
    rng = np.random.default_rng(seed)
    _folders(folder)
    for case in range(cases):
        label = objects(size, rng)
        image = np.clip(80 + 60 * label + rng.normal(0, 8, label.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"imagesTr/p{case:04d}_0000.png")
        Image.fromarray(label).save(folder / f"labelsTr/p{case:04d}.png")
    return _describe(folder, cases, ".png", "grey")


def shorten(overlay: Path, **more: Any) -> Path:
    """Make a planned overlay's network and patches as small as they may be."""
    task = json.loads(overlay.read_text(encoding="utf-8"))
    task |= SETTINGS | {"patch_size": [16] * task["spatial_dims"]} | more
    overlay.write_text(json.dumps(task), encoding="utf-8")
    return overlay


def planning(dataset: Path, overlay: Path, *more: str) -> Words:
    small = ["--gpu_memory_gb", "0", "--init_filters", "8", "--workers", "1"]
    return [
        "scripts.planning",
        "--dataset_dir",
        str(dataset),
        "--name",
        "mini",
        "--output",
        str(overlay),
        *small,
        *more,
    ]


def training(overlay: Path, run: Path, cache: Path, *more: str, **settings: Any) -> Words:
    files = _files("train.json", overlay)
    folders = {"output_dir": run, "cache_dir": cache}
    return ["monai.bundle", "run", "training", *files, *_options(SHORT | folders | settings), *more]


def evaluating(overlay: Path, run: Path, cache: Path, evaluation: Path, *more: str, **settings: Any) -> Words:
    files = _files("train.json", overlay, "evaluate.json")
    options = {"output_dir": run, "cache_dir": cache, "evaluation_dir": evaluation, "tta": "false"}
    return ["monai.bundle", "run", "evaluating", *files, *_options(options | settings), *more]


def inference(overlay: Path, images: Path, output: Path, weights: Path, *more: str, **settings: Any) -> Words:
    options = {"input_dir": images, "output_dir": output, "checkpoint": weights, "tta": "false"}
    return [
        "monai.bundle",
        "run",
        "inference",
        *_files("inference.json", overlay),
        *_options(options | settings),
        *more,
    ]


def cross_validation(overlay: Path, root: Path, cache: Path, *more: str) -> Words:
    options = _options(SHORT | {"output_dir": root, "cache_dir": cache, "tta": "false"})
    return ["scripts.cross_validation", *_files("train.json", overlay)[:2], *options, "--folds", "0", "1", *more]


def export(overlay: Path, weights: Path, output: Path, *more: str) -> Words:
    files = _files("inference.json", overlay)[:2]
    return ["scripts.export", *files, "--checkpoint", str(weights), "--output", str(output), *more]


def determine(overlay: Path, predictions: Path, labels: Path, rules: Path, *more: str) -> Words:
    words = ["scripts.postprocessing", "determine", "--predictions", str(predictions), "--labels", str(labels)]
    return [*words, "--config_file", str(overlay), "--allow_missing", "--output", str(rules), "--workers", "0", *more]


def apply(predictions: Path, rules: Path, output: Path, *more: str) -> Words:
    words = ["scripts.postprocessing", "apply", "--predictions", str(predictions), "--rules", str(rules)]
    return [*words, "--output_dir", str(output), "--workers", "0", *more]


def report(overlay: Path, predictions: Path, dataset: Path, output: Path, *more: str) -> Words:
    words = ["scripts.report", "--predictions", str(predictions), "--labels", str(dataset / "labelsTr"), "--subset"]
    words += ["--images", str(dataset / "imagesTr"), "--config_file", str(overlay), "--output_dir", str(output)]
    return [*words, "--workers", "1", "--panels", "1", *more]


def finish(overlay: Path, folds: Path, cache: Path, images: Path, output: Path, *more: str) -> Words:
    options = {"folds_dir": folds, "cache_dir": cache, "input_dir": images, "output_dir": output, "tta": "false"}
    few = ["--workers", "0", "--samples", "1"]
    return ["scripts.finish", *_files("train.json", overlay)[:2], *_options(options), *few, *more]


def write_rules(file: Path) -> Path:
    """Postprocessing rules that change something."""
    keep = {"largest_component": True, "min_size": None, "fill_holes": True}
    rules = {"labels": CLASSES, "largest_component_of_foreground": True, "classes": dict.fromkeys(CLASSES, keep)}
    file.write_text(json.dumps(rules), encoding="utf-8")
    return file


def _files(first: str, overlay: Path, *last: str) -> Words:
    files = [str(CONFIGS / first), str(overlay), *(str(CONFIGS / name) for name in last)]
    return ["--config_file", str(files), "--bundle_root", str(BUNDLE)]


def _options(settings: Mapping[str, Any]) -> Words:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def _folders(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def _describe(folder: Path, cases: int, ending: str, channel: str) -> Path:
    labels = {"background": 0, **CLASSES}
    content = {"channel_names": {"0": channel}, "labels": labels, "numTraining": cases, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
