"""Case lists: nnU-Net's folds, and data sets that are incomplete or contradict the config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.model_selection import KFold

from scripts.data.datalist import case_name, k_fold, load_cases
from scripts.errors import UserError

LABELS = {"anterior": 1, "posterior": 2}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    names = [f"case_{i}.nii.gz" for i in (3, 1, 2, 10, 0, 7, 5)]
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    write(tmp_path, {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": training})
    return tmp_path


def write(root: Path, description: object) -> None:
    (root / "dataset.json").write_text(json.dumps(description))


def load(root: Path, section: str = "training", fold: int | str = 0, channels: int = 1) -> list[dict[str, str]]:
    return load_cases(root, section, fold, channels, LABELS)


@pytest.mark.parametrize("count", [5, 7, 44, 220])
def test_folds_are_those_of_scikit_learn(count: int) -> None:
    expected = KFold(5, shuffle=True, random_state=12345).split(range(count))
    for (training, validation), (expected_training, expected_validation) in zip(k_fold(count), expected, strict=True):
        assert training == expected_training.tolist() and validation == expected_validation.tolist()


def test_every_case_is_held_out_once(dataset: Path) -> None:
    held_out = [case["image"] for fold in range(5) for case in load(dataset, "validation", fold)]
    assert sorted(held_out) == sorted(case["image"] for case in load(dataset, fold="all"))
    for fold in range(5):
        assert not {c["image"] for c in load(dataset, "validation", fold)} & {
            c["image"] for c in load(dataset, fold=fold)
        }


def test_missing_files_are_listed(dataset: Path) -> None:
    (dataset / "labelsTr/case_5.nii.gz").unlink()
    (dataset / "imagesTr/case_1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"2 file\(s\)(.|\n)*case_1\.nii\.gz|case_5\.nii\.gz"):
        load(dataset)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ('{"training": []}', '"training"'), ('{"training": ["a.nii"]}', '"training"')],
)
def test_broken_dataset_json(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.json is missing"):
        load(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_contradictions_and_folds_that_do_not_exist(dataset: Path) -> None:
    with pytest.raises(UserError, match="fold must be 0 to 4 or 'all', not 5"):
        load(dataset, fold=5)
    with pytest.raises(UserError, match=r"declares 1 channel\(s\), the config has in_channels=4"):
        load(dataset, channels=4)
    with pytest.raises(UserError, match=r"declares the labels \[1, 2\]"):
        load_cases(dataset, "training", 0, 1, {"lung": 1})


def test_case_name() -> None:
    assert case_name("/a/b.c_1.nii.gz") == "b.c_1" and case_name("x.JPG") == "x"
