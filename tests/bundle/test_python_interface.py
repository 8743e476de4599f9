"""The bundle from Python: MONAI's workflow objects, their properties, and arrays instead of files."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow

from scripts.common.errors import UserError, find_user_error
from scripts.networks import LightMUNet

BUNDLE = Path(__file__).parents[2] / "bundle"
INFERENCE = str(BUNDLE / "configs/inference.json")
TASK = str(BUNDLE / "configs/tasks/hippocampus.json")
AFFINE = np.array([[-1.1, 0, 0, 90], [0, -1.2, 0, 120], [0, 0, 1, -70], [0, 0, 0, 1.0]])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that is not the bundle's."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def save_network(file: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = LightMUNet(3, 1, 3, init_filters=8, stem="full", scan_order="axes", norm_bias=1)
    torch.save(network.state_dict(), file)


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """A small network with weights of its own, and how it predicts."""
    save_network(tmp_path / "model.pt", 0)
    return {
        "checkpoint": str(tmp_path / "model.pt"),
        "init_filters": 8,
        "patch_size": [16, 24, 16],
        "tta": False,
        "device": "cpu",
        "output_dir": str(tmp_path / "out"),
    }


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "images/a.nii.gz"
    file.parent.mkdir()
    array = np.random.default_rng(0).normal(100, 20, (14, 22, 15)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, AFFINE), file)
    return file


def inference(settings: dict[str, Any], *configs: str, **overrides: Any) -> ConfigWorkflow:
    arguments = {"workflow_type": "infer", "logging_file": False} | settings | overrides
    return create_workflow(config_file=[INFERENCE, *configs], **arguments)


def label_map(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def expected(settings: dict[str, Any], image: Path, folder: Path) -> np.ndarray:
    """What `run inference` predicts."""
    places = {"bundle_root": str(BUNDLE), "input_dir": str(image), "output_dir": str(folder)}
    monai.bundle.run("inference", config_file=INFERENCE, **settings | places)
    return label_map(folder / image.name)


def test_the_evaluator_predicts_with_the_weights(small: dict[str, Any], image: Path, tmp_path: Path) -> None:
    truth = expected(small, image, tmp_path / "run")
    assert len(np.unique(truth)) > 1
    workflow = inference(small, input_dir=str(image.parent))
    assert Path(workflow.bundle_root) == BUNDLE
    workflow.evaluator.run()
    assert np.array_equal(label_map(tmp_path / "out/a.nii.gz"), truth)


def test_weights_that_changed_are_loaded_anew(small: dict[str, Any], image: Path, tmp_path: Path) -> None:
    workflow = inference(small, input_dir=str(image.parent))
    before = {name: value.clone() for name, value in workflow.network_def.state_dict().items()}
    save_network(Path(small["checkpoint"]), 1)
    truth = expected(small, image, tmp_path / "run")
    workflow.run()
    after = workflow.network_def.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert np.array_equal(label_map(tmp_path / "out/a.nii.gz"), truth)


def test_missing_weights_are_an_error_at_once(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:
        inference(small, checkpoint=str(tmp_path / "none.pt"))
    assert "there are no weights at" in str(find_user_error(caught.value))


def test_the_example_of_the_documents(small: dict[str, Any], image: Path, tmp_path: Path) -> None:
    text = (BUNDLE / "docs/integrations.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"## Python\n\n```python\n(.*?)```", text, flags=re.DOTALL)
    example = example.replace("BUNDLE", str(BUNDLE)).replace("image.nii.gz", str(image))
    names = {"small": small}
    exec(example.replace("logging_file=False", "logging_file=False, **small"), names)
    assert np.array_equal(names["labels"], expected(small, image, tmp_path / "run"))
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_arrays_of_other_kinds(small: dict[str, Any], image: Path, tmp_path: Path) -> None:
    predict = inference(small, input_dir=str(image)).parser.get_parsed_content("predictor")
    array = nib.load(image).get_fdata()
    truth = expected(small, image, tmp_path / "run")
    assert np.array_equal(predict(array[None].astype(np.float32), AFFINE), truth)  # with its channel
    assert np.array_equal(predict(torch.from_numpy(array), torch.from_numpy(AFFINE)), truth)
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] += AFFINE[:3, 0] * (len(array) - 1)  # the same image, stored the other way round
    assert np.array_equal(predict(array[::-1].copy(), flipped)[::-1], truth)
    for wrong, affine, message in (
        (array, None, "the image has no affine: give the 4x4 matrix"),
        (array[0], AFFINE, "the image has 2 axes: give 3, or one more, the channels first"),
        (np.stack([array, array]), AFFINE, r"the image has 2 channel\(s\), the network takes 1"),
        (np.full_like(array, np.nan), AFFINE, "the image holds NaN"),
        (np.zeros_like(array), AFFINE, "the image is constant"),
        (array, np.zeros((4, 4)), "the image has a spacing of zero"),
    ):
        with pytest.raises(Exception) as caught:
            predict(wrong, affine)
        assert re.match(message, str(find_user_error(caught.value)))


def test_a_picture_is_predicted_as_its_file_is(tmp_path: Path) -> None:
    """2D, rows first."""
    from PIL import Image

    torch.manual_seed(0)
    network = LightMUNet(2, 1, 2, init_filters=8, stem="full", scan_order="axes", norm_bias=1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    picture = np.random.default_rng(0).integers(0, 255, (40, 56), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    workflow = inference(
        {"checkpoint": str(tmp_path / "model.pt"), "init_filters": 8, "patch_size": [32, 32], "tta": False},
        str(BUNDLE / "configs/tasks/lung_xray.json"),
        input_dir=str(tmp_path / "a.png"),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    workflow.evaluator.run()
    labels = workflow.parser.get_parsed_content("predictor")(picture)
    assert labels.shape == picture.shape and len(np.unique(labels)) > 1
    assert np.array_equal(labels, np.asarray(Image.open(tmp_path / "out/a.png")))


@pytest.mark.parametrize("task", [[], [TASK], [str(BUNDLE / "configs/tasks/lung_xray.json")]])
def test_properties_of_inference_need_no_input(task: list[str], elsewhere: Path) -> None:
    workflow = ConfigWorkflow([INFERENCE, *task], workflow_type="infer", logging_file=False)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.dataset_data == [] and len(workflow.dataset) == 0
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert "with --input_dir" in str(find_user_error(caught.value))
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(("kind", "configs"), [("train", ["train"]), ("infer", ["train", "evaluate"])])
def test_properties_of_training_and_evaluation(kind: str, configs: list[str], image: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        shutil.copy(image, root / f"imagesTr/{i}.nii.gz")
        nib.save(nib.Nifti1Image(np.ones((14, 22, 15), np.uint8), AFFINE), root / f"labelsTr/{i}.nii.gz")
    pairs = [f'{{"image": "imagesTr/{i}.nii.gz", "label": "labelsTr/{i}.nii.gz"}}' for i in range(5)]
    labels = '{"0": "background", "1": "anterior", "2": "posterior"}'
    (root / "dataset.json").write_text(f'{{"labels": {labels}, "training": [{",".join(pairs)}]}}')
    files = [str(BUNDLE / f"configs/{name}.json") for name in configs]
    places = {"dataset_dir": str(root), "output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, device="cpu", num_workers=0, **places)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.dataset_dir == str(root)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists(), "reading properties writes nothing"


def test_dataset_dir_is_the_folder_of_the_input(small: dict[str, Any], image: Path, tmp_path: Path) -> None:
    workflow = inference(small, TASK)
    workflow.dataset_dir = str(image.parent)
    workflow.initialize()
    assert [case["image"] for case in workflow.dataset_data] == [str(image)]
    workflow.run()
    assert (tmp_path / "out/a.nii.gz").is_file()
    typed = inference(small, TASK, dataset_dir=str(image.parent), overwrite=True)
    assert [case["name"] for case in typed.dataset_data] == ["a"]
    both = inference(small, TASK, input_dir=str(image), overwrite=True)  # the overlay names its training data
    assert [case["name"] for case in both.dataset_data] == ["a"]


def test_the_evaluator_names_a_broken_file(small: dict[str, Any], image: Path) -> None:
    image.write_bytes(image.read_bytes()[:300])
    workflow = inference(small, input_dir=str(image.parent))
    with pytest.raises(UserError, match=re.escape(str(image))):
        workflow.evaluator.run()


def test_a_config_elsewhere_runs_in_the_bundles_folder(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ever: a copy of a config knows no bundle but the one that it is run in."""
    (tmp_path / "configs").mkdir()
    shutil.copy(INFERENCE, tmp_path / "configs/mine.json")
    monkeypatch.chdir(BUNDLE)
    copy = str(tmp_path / "configs/mine.json")
    workflow = ConfigWorkflow(copy, workflow_type="infer", logging_file=False, meta_file=None, **small)
    workflow.initialize()
    assert os.path.samefile(workflow.bundle_root, BUNDLE)
