"""Data sets that are hard in one way each, from training to predictions on the original grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
from generators import DataSet, hard_case, write_msd, write_nnunet

from scripts.images.formats import read_raw

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
QUICK = {
    "init_filters": 8,
    "iterations_per_epoch": 25,
    "epochs": 1,
    "batch_size": 2,
    "learning_rate": 0.01,
    "num_workers": 0,
    "device": "cpu",
    "tta": False,
}
PLAIN = {
    "spatial_dims": 3,
    "slice_axis": None,
    "regions": {},
    "spacing": None,
    "normalization": ["zscore"],
    "crop_nonzero": False,
    "patch_size": [16, 16, 16],
    "strides": None,
    "mirror_axes": [0],
    "overlap": 0.25,
}
CT = {"lower": -600, "upper": 300, "mean": -150, "std": 150}
IN_SLICES = {"spatial_dims": 2, "slice_axis": 2, "patch_size": [32, 32]}
# name of the generated data set, what its overlay says, layout, file ending
CASES = {
    "anisotropic": (
        "anisotropic_ct",
        {
            "spacing": [0.7, 0.7, 5.0],
            "normalization": [{"ct": CT}],
            "patch_size": [32, 32, 4],
            "strides": [[2, 2, 1], [2, 2, 1], [2, 2, 2]],
            "iterations_per_epoch": 60,
        },
        write_nnunet,
        None,
    ),
    "slices": (
        "anisotropic_ct",
        IN_SLICES | {"spacing": [0.8, 0.8, None], "normalization": [{"ct": CT}], "iterations_per_epoch": 60},
        write_nnunet,
        ".tif",
    ),
    "colour": (
        "rgb_pictures",
        {"spatial_dims": 2, "normalization": ["rgb"] * 3, "patch_size": [32, 32]},
        write_nnunet,
        None,
    ),
    "channels": (
        "four_channels",
        {"normalization": ["zscore_nonzero"] * 4, "crop_nonzero": True, "iterations_per_epoch": 60},
        write_nnunet,
        None,
    ),
    "tiny": ("tiny", {}, write_msd, None),
    "rotated": ("rotated", {"spacing": [1.0, 1.0, 1.0]}, write_nnunet, ".mha"),
    "one_slice": ("one_slice", IN_SLICES, write_msd, None),
    "flat": ("flat_volumes", {"spatial_dims": 2, "rows_first": True, "patch_size": [32, 32]}, write_msd, None),
    "gap": (
        "label_gap",
        {"regions": {"both": ["kidney", "cyst"]}, "iterations_per_epoch": 50},
        write_nnunet,
        ".nrrd",
    ),
    "ignored": ("partly_labelled", {}, write_nnunet, None),
}


def overlay(path: Path, dataset: Path, data: DataSet, settings: dict[str, Any]) -> str:
    task = {
        "name": data.name,
        "dataset_dir": str(dataset),
        "in_channels": len(data.cases[0].image),
        "labels": data.labels,
        "ignore_label": data.ignore_label,
        **PLAIN,
        **settings,
    }
    path.write_text(json.dumps(task))
    return str(path)


def run(run_id: str, *configs: str, **overrides: Any) -> None:
    monai.bundle.run(run_id, config_file=list(configs), bundle_root=str(BUNDLE), **QUICK | overrides)


def dice(predicted: np.ndarray, label: np.ndarray) -> float:
    return 2 * (predicted & label).sum() / (predicted.sum() + label.sum())


@pytest.mark.parametrize("case", CASES)
def test_train_evaluate_predict(case: str, tmp_path: Path) -> None:
    name, settings, write, ending = CASES[case]
    data = hard_case(name)
    dataset = write(tmp_path / "data", data, ending)
    task = overlay(tmp_path / "task.json", dataset, data, settings)
    output = {"output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    longer = {key: settings[key] for key in ("iterations_per_epoch",) if key in settings}
    train, evaluate, infer = (str(CONFIGS / f"{config}.json") for config in ("train", "evaluate", "inference"))
    run("training", train, task, **output, **longer)
    run("evaluating", train, evaluate, task, **output)
    classes = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["classes"]
    assert list(classes) == [*data.labels, *settings.get("regions", {})]
    (record,) = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert list(record["dice"]) == list(data.labels) and record["samples_per_second"] > 0

    places = {"input_dir": str(dataset / "imagesTr"), "output_dir": str(tmp_path / "out")}
    run("inference", infer, task, **places, checkpoint=str(tmp_path / "run/model.pt"))
    found = []
    for original in data.cases:
        (path,) = [
            file
            for file in (tmp_path / "out").iterdir()
            if file.name.split(".")[0] == original.name and not file.name.endswith(".json")
        ]
        predicted = read_raw(path, label=True)
        assert predicted.array.shape[1:] == original.label.shape
        if original.affine is not None and ending != ".tif":
            assert np.allclose(predicted.affine, original.affine, atol=1e-4)
        assert set(np.unique(predicted.array).tolist()) <= {0, *data.labels.values()}
        known = original.label != (data.ignore_label or -1)
        found.append(dice((predicted.array[0] > 0) & known, (original.label > 0) & known))
    assert np.mean(found) > 0.6, found


def test_cases_that_cannot_be_used_are_all_named(tmp_path: Path) -> None:
    data = hard_case("label_gap")
    dataset = write_nnunet(tmp_path / "data", data)
    images = sorted((dataset / "imagesTr").iterdir())
    for image in images[:2]:
        image.write_bytes(image.read_bytes()[:200])
    task = overlay(tmp_path / "task.json", dataset, data, {})
    with pytest.raises(Exception, match="") as caught:
        run(
            "training",
            str(CONFIGS / "train.json"),
            task,
            output_dir=str(tmp_path / "run"),
            cache_dir=str(tmp_path / "cache"),
            fold="all",
        )
    message = str(caught.value.__cause__ or caught.value)
    assert "2 case(s) cannot be used" in message and all(image.name in message for image in images[:2])
