"""The bundle in MONAI Label, whose package does not install beside ours: what its tasks do, done here."""

from __future__ import annotations

import gc
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from label_bundle import LabelInference, forget, forgotten, label_training

from scripts.networks import LightMUNet

BUNDLE = Path(__file__).parents[2] / "bundle"
AFFINE = np.array([[-1.1, 0, 0, 90], [0, -1.2, 0, 120], [0, 0, 1, -70], [0, 0, 0, 1.0]])
SMALL = {"patch_size": [16, 24, 16], "spacing": None, "batch_size": 2}
TINY = {"init_filters": 8, "iterations_per_epoch": 1, "num_workers": 0, "seed": 1}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with forgotten():
        yield


@pytest.fixture
def label_app(tmp_path: Path) -> Path:
    """A bundle in the folder of a MONAI Label app, with small settings in its configs."""
    bundle = tmp_path / "model/lightm"
    bundle.mkdir(parents=True)
    (bundle / "scripts").symlink_to(BUNDLE / "scripts")  # what numba compiled is kept beside it
    shutil.copytree(BUNDLE / "configs", bundle / "configs")
    for name, settings in (("train", SMALL | TINY), ("inference", {**SMALL, "init_filters": 8, "tta": False})):
        file = bundle / f"configs/{name}.json"
        content = json.loads(file.read_text())
        content.update((key, value) for key, value in settings.items() if key in content)
        file.write_text(json.dumps(content))
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    network = LightMUNet(3, 1, 3, init_filters=8, stem="full", scan_order="axes", norm_bias=1)
    torch.save(network.state_dict(), bundle / "models/model.pt")
    (bundle / "models/cases.json").write_text('{"fold": 0, "training": ["shipped_1"], "validation": []}')
    return bundle


@pytest.fixture
def studies(tmp_path: Path) -> list[dict[str, str]]:
    """What an annotator labelled, as Label's datastore hands it in."""
    rng, cases = np.random.default_rng(0), []
    for i in range(3):
        label = np.zeros((14, 22 + i, 15), np.uint8)
        label[4:9, 4:9, 4:9], label[4:9, 12:18, 4:9] = 1, 2
        case = {key: str(tmp_path / f"studies/{folder}case_{i}.nii.gz") for key, folder in PLACES.items()}
        for key, array in (
            ("image", rng.normal(100, 5, label.shape).astype(np.float32) + 40 * label),
            ("label", label),
        ):
            Path(case[key]).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), case[key])
        cases.append(case)
    return cases


PLACES = {"image": "", "label": "labels/final/"}


def run_inference(bundle: Path, image: str, folder: Path) -> np.ndarray:
    config = str(bundle / "configs/inference.json")
    monai.bundle.run("inference", config_file=config, input_dir=image, output_dir=str(folder), device="cpu")
    return np.asarray(nib.load(folder / Path(image).name).dataobj)


def test_label_predicts_what_inference_does(label_app: Path, studies: list[dict[str, str]], tmp_path: Path) -> None:
    task = LabelInference(label_app)
    for i, case in enumerate(studies[:2]):
        truth = run_inference(label_app, case["image"], tmp_path / f"out{i}")
        assert len(np.unique(truth)) > 1
        assert np.array_equal(task(case["image"]), truth)
    assert not (label_app / "prediction").exists(), "Label saves by itself"


def runs(bundle: Path) -> list[str]:
    return sorted(path.name for path in (bundle / "output/hippocampus").iterdir() if path.name.startswith("fold"))


def test_label_trains_again_and_again(label_app: Path, studies: list[dict[str, str]]) -> None:
    shipped = (label_app / "models/model.pt").read_bytes()
    label_training(label_app, studies[:1], studies[1:])
    first = (label_app / "output/hippocampus/fold_0/model.pt").read_bytes()
    label_training(label_app, studies[:2], studies[2:])
    assert runs(label_app) == ["fold_0", "fold_0_2"]
    assert (label_app / "output/hippocampus/fold_0/model.pt").read_bytes() == first
    cases = json.loads((label_app / "output/hippocampus/fold_0_2/cases.json").read_text())
    assert cases["training"] == ["case_0", "case_1", "shipped_1"] and cases["validation"] == ["case_2"]
    assert (label_app / "models/model.pt").read_bytes() == shipped, "only if asked"


def test_label_predicts_with_what_it_trained(label_app: Path, studies: list[dict[str, str]], tmp_path: Path) -> None:
    models = label_app / "models"
    shipped = (models / "model.pt").read_bytes()
    for i in range(2):
        label_training(label_app, studies[:2], studies[2:], update_models=True)
        run = label_app / f"output/hippocampus/{runs(label_app)[i]}"
        for name in ("model.pt", "model_final.pt", "cases.json", "settings.json"):
            assert (models / name).read_bytes() == (run / name).read_bytes(), name
    assert (models / "replaced/model.pt").read_bytes() == shipped
    assert json.loads((models / "replaced/cases.json").read_text())["training"] == ["shipped_1"]
    truth = run_inference(label_app, studies[0]["image"], tmp_path / "out")
    assert np.array_equal(LabelInference(label_app)(studies[0]["image"]), truth)


def test_label_without_a_validation_is_told_so(label_app: Path, studies: list[dict[str, str]]) -> None:
    with pytest.raises(Exception) as caught:
        label_training(label_app, studies, [])
    assert "no case is held out" in str(caught.value.__cause__)
    assert not (label_app / "output").exists()


OPERATORS = ("selective_scan.three_phase", "fused.group_norm")


@pytest.mark.parametrize("module", OPERATORS)
def test_operators_are_registered_once(module: str) -> None:
    """PyTorch takes a name once a process."""
    if module.startswith("fused"):
        pytest.importorskip("triton")
    name = f"scripts.ops.{module}"
    first: Any = importlib.import_module(name)
    forget()
    second: Any = importlib.import_module(name)
    assert second is not first
    del first
    sys.modules.pop(name)
    del second
    gc.collect()
    x = torch.zeros(1, 4, 8, device="meta")
    if module.startswith("fused"):
        y, _ = torch.ops.lightm_unet.group_norm_relu(x, 2, x[0, 0], x[0, 0], 1e-5, True)
    else:
        A = torch.zeros(8, 2, device="meta")
        BC = torch.zeros(1, 4, 2, device="meta")
        y, *_ = torch.ops.lightm_unet.selective_scan(x, x, A, BC, BC, None, None, None, True, None, False, "triton")
    assert y.shape == x.shape
