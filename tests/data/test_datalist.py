"""Case lists: nnU-Net's folds, and data sets that are incomplete or contradict the config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from generators import hard_case, write_nnunet
from sklearn.model_selection import KFold

from scripts.common.errors import UserError
from scripts.data.datalist import k_fold, load_cases
from scripts.images.files import case_name

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


def load(
    root: Path, section: str = "training", fold: int | str = 0, channels: int = 1, splits: Path | None = None
) -> list[dict[str, str]]:
    return getattr(load_cases(root, fold, channels, LABELS, splits=splits), section)


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
    with pytest.raises(UserError, match=r"declares the labels \{'a': 1, 'b': 2\}"):
        load_cases(dataset, 0, 1, {"lung": 1})
    with pytest.raises(UserError, match=r"the config has \{'b': 1, 'a': 2\}"):
        load_cases(dataset, 0, 1, {"b": 1, "a": 2})


def test_case_name() -> None:
    assert case_name("/a/b.c_1.nii.gz") == "b.c_1" and case_name("x.JPG") == "x"


def test_nnunet_cases_with_a_file_per_channel(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path, hard_case("four_channels", 5))
    labels = {"oedema": 1, "core": 2, "enhancing": 3}
    fold = load_cases(root, 0, 4, labels)
    cases = fold.training + fold.validation
    assert sorted(case["name"] for case in cases) == [f"brain_{i}" for i in range(5)]
    assert all(len(case["image"]) == 4 for case in cases)
    (root / "imagesTr/brain_2_0003.nii.gz").unlink()
    with pytest.raises(UserError, match=r"1 file\(s\) that are missing:\s+.*brain_2_0003\.nii\.gz"):
        load_cases(root, 0, 4, labels)


def test_a_patient_is_on_one_side_only(dataset: Path) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    patients = {f"case_{i}": patient for i, patient in ((0, "a"), (1, "b"), (2, "a"), (3, "c"), (5, "d"), (10, "e"))}
    write(dataset, description | {"patients": patients})  # case_7 is a patient of its own
    held_out = []
    for fold in range(5):
        names = {case["name"] for case in load(dataset, "validation", fold)}
        assert names.isdisjoint(case["name"] for case in load(dataset, "training", fold))
        assert ("case_0" in names) == ("case_2" in names)
        held_out += names
    assert len(held_out) == 7
    write(dataset, description | {"patients": dict.fromkeys((f"case_{i}" for i in (0, 1, 2, 3, 5, 7, 10)), "a")})
    with pytest.raises(UserError, match=r"1 patient\(s\), too few for 5 folds: .*--splits FILE.*--fold all"):
        load(dataset)


def test_the_users_own_split_file(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    file.write_text(json.dumps([{"train": ["case_1", "case_10"], "val": ["case_7"]}, {"train": ["case_7"], "val": []}]))
    assert [case["name"] for case in load(dataset, splits=file)] == ["case_1", "case_10"]
    assert [case["name"] for case in load(dataset, "validation", splits=file)] == ["case_7"]
    assert len(load(dataset, fold="all", splits=file)) == 7
    with pytest.raises(UserError, match="fold must be 0 to 1 or 'all', not 2"):
        load(dataset, fold=2, splits=file)
    with pytest.raises(UserError, match=r"fold 1 of .*splits_final.json has no validation case: .*--fold all"):
        load(dataset, "validation", fold=1, splits=file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ("{}", "must be a list of folds"),
        ('[{"train": ["case_1"]}]', "must be a list of folds"),
        ('[{"train": ["case_1"], "val": ["case_99"]}]', "fold 0: the data set has no case case_99"),
        ('[{"train": ["case_1"], "val": ["case_1"]}]', "fold 0: case_1 in both train and val"),
    ],
)
def test_split_files_that_cannot_be_used(dataset: Path, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.json"
    with pytest.raises(UserError, match=r"mine\.json cannot be read"):
        load(dataset, splits=file)
    file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load(dataset, splits=file)
    assert "mine.json" in str(caught.value)
