"""What dataset.json may say, in the MSD layout and in nnU-Net's, and what is refused."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from generators import hard_case, write_msd, write_nnunet

from scripts.common.errors import UserError
from scripts.data.layouts import DatasetDescription, read_dataset
from scripts.images.label_names import read_labels

FILE = Path("dataset.json")


def change(root: Path, **entries: Any) -> DatasetDescription:
    """Read the data set after some of dataset.json's entries were replaced; None removes one."""
    content = json.loads((root / "dataset.json").read_text()) | entries
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return read_dataset(root)


def test_both_layouts_describe_the_same_data_set(tmp_path: Path) -> None:
    data = hard_case("partly_labelled", 3)
    msd, nnunet = read_dataset(write_msd(tmp_path / "m", data)), read_dataset(write_nnunet(tmp_path / "n", data))
    assert (msd.layout, nnunet.layout) == ("msd", "nnunet") and msd.name == "PartlyLabelled"
    for description in (msd, nnunet):
        assert [case["name"] for case in description.cases] == ["part_0", "part_1", "part_2"]
        assert all(Path(case[key]).is_file() for case in description.cases for key in ("image", "label"))
        assert description.labels == {"a": 1, "b": 2} and description.ignore_label == 3
        assert description.channel_names == ["MRI"] and description.file_ending == ".nii.gz"
        assert description.declared_cases == 3


def test_channels_in_files_of_their_own_or_in_one(tmp_path: Path) -> None:
    brain = read_dataset(write_nnunet(tmp_path / "brain", hard_case("four_channels", 2), ending=".nrrd"))
    assert [Path(path).name for path in brain.cases[1]["image"]] == [f"brain_1_{i:04d}.nrrd" for i in range(4)]
    assert isinstance(read_dataset(write_msd(tmp_path / "msd", hard_case("four_channels", 2))).cases[0]["image"], str)
    photos = read_dataset(write_nnunet(tmp_path / "photos", hard_case("rgb_pictures", 2)))
    assert photos.channel_names == ["R", "G", "B"] and photos.cases[0]["image"].endswith("photo_0_0000.png")


def test_missing_files_are_expected_where_they_should_be(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path, hard_case("four_channels", 2))
    (root / "imagesTr/brain_0_0002.nii.gz").unlink()
    (root / "labelsTr/brain_1.nii.gz").unlink()
    (root / "imagesTr/._brain_1_0000.nii.gz").touch()  # macOS
    cases = read_dataset(root).cases
    assert cases[0]["image"][2] == str(root / "imagesTr/brain_0_0002.nii.gz")
    assert cases[1]["label"] == str(root / "labelsTr/brain_1.nii.gz") and len(cases) == 2


def test_nnunets_list_of_cases(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path, hard_case("tiny", 2))
    entry = {"images": ["imagesTr/tiny_1_0000.nii.gz"], "label": "labelsTr/tiny_1.nii.gz"}
    description = change(root, dataset={"first": entry})
    assert description.cases == [
        {"name": "first", "image": str(root / entry["images"][0]), "label": str(root / entry["label"])}
    ]
    with pytest.raises(UserError, match=r'"dataset" must hold .* "first" does not'):
        change(root, dataset={"first": {"images": "a"}})


def test_msd_folders_tell_equal_names_apart_and_version_1_names(tmp_path: Path) -> None:
    root = write_msd(tmp_path, hard_case("tiny", 2))
    entries = [{"image": f"p{i}/image.nii.gz", "label": f"p{i}/label.nii.gz"} for i in (2, 1)]
    assert [case["name"] for case in change(root, training=entries).cases] == ["p1_image", "p2_image"]
    with pytest.raises(UserError, match="more than once: p1_image"):
        change(root, training=[entries[1], entries[1]])
    (root / "imagesTr/tiny_0.nii.gz").rename(root / "imagesTr/tiny_0_0000.nii.gz")
    old = {"image": "./imagesTr/tiny_0.nii.gz", "label": "./labelsTr/tiny_0.nii.gz"}
    assert change(root, training=[old]).cases[0]["image"].endswith("tiny_0_0000.nii.gz")
    (root / "imagesTr/tiny_1.nii.gz").rename(root / "imagesTr/tiny[1]_0000.nii.gz")
    bracketed = change(root, training=[{**old, "image": "./imagesTr/tiny[1].nii.gz"}])
    assert bracketed.cases[0]["image"].endswith("tiny[1]_0000.nii.gz")
    several = {"image": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}
    assert change(root, training=[several]).cases[0]["name"] == "a"


def test_patients(tmp_path: Path) -> None:
    data = hard_case("tiny", 2)
    patients = {"tiny_0": "anna", "tiny_1": "anna"}
    assert read_dataset(write_msd(tmp_path / "m", data, patients=patients)).patients == patients
    root = write_nnunet(tmp_path / "n", data, patients=patients)
    assert read_dataset(root).patients == patients
    with pytest.raises(UserError, match=r'dataset\.json: "patients" names cases that do not exist: nobody'):
        change(root, patients={"nobody": "x"})


def test_labels_of_both_kinds() -> None:
    assert read_labels({"0": "background", "5": "cyst", "1": "kidney"}, FILE)[0] == {"kidney": 1, "cyst": 5}
    labels, ignore, regions = read_labels(
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}, FILE
    )
    assert labels == {"label_1": 1, "label_2": 2, "enhancing": 3} and ignore == 4
    assert regions == {"whole": ["label_1", "label_2", "enhancing"], "core": ["label_2", "enhancing"]}
    assert read_labels({"background": 0, "whole": [1, 2], "core": [2]}, FILE)[0] == {"label_1": 1, "core": 2}


@pytest.mark.parametrize("name", ["$x", "@x", "%x", "a#b", "a::b", "_target_", " "])
def test_names_that_configs_would_misread(name: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.json: the label name"):
        read_labels({"background": 0, name: 1}, FILE)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": 1, "b": 1}, "the value 1 to a and b"),
        ({"a": 1, "ignore": 1}, '"ignore" has the value 1, which is that of a label too'),
        ({"1": "a", "2": "a"}, "one name to two values"),
        ({"a": -1}, '"a" must have an integer'),
        ({"a": 1.5}, '"a" must have an integer'),
        ({"a": []}, '"a" must have an integer'),
        ({"a": True}, '"a" must have an integer'),
        ({"background": 0, "a": [0, 1]}, 'the region "a" holds 0, the background'),
        (["a"], '"labels" must be an object'),
        ({"a": 2**31}, '"a" has the value 2147483648, the largest that can be used is 65535'),
        ({"a": 1, "ignore": [3, 4]}, '"ignore" must have one value above 0'),
        ({"a": 1, "ignore": 0}, '"ignore" must have one value above 0'),
        ({"a": 1, "ignore": 70_000}, '"ignore" has the value 70000'),
        ({f"nucleus {i}": i for i in range(1, 65_000)}, "has 64999 labels, a network can learn 1000"),
    ],
)
def test_labels_that_cannot_be_used(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_labels(labels, FILE)


def test_descriptions_that_cannot_be_used(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path, hard_case("tiny", 2))
    with pytest.raises(UserError, match='keys of "channel_names" must be numbers'):
        change(root, channel_names={"T1": 0})
    with pytest.raises(UserError, match=r"imagesTr holds no image named CASE_0000\.png"):
        change(root, channel_names={"0": "T1"}, file_ending=".png")
    (root / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match="must hold an object"):
        read_dataset(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json is not valid JSON"):
        read_dataset(root)
    with pytest.raises(UserError, match="does not exist"):
        read_dataset(root / "nowhere")


# --- written elsewhere


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("write", [write_msd, write_nnunet])
def test_a_byte_order_mark(tmp_path: Path, encoding: str, write: Any) -> None:
    root = write(tmp_path, hard_case("tiny", 2))
    (root / "dataset.json").write_text((root / "dataset.json").read_text(), encoding=encoding)
    assert len(read_dataset(root).cases) == 2


def test_backslashes(tmp_path: Path) -> None:
    root = write_msd(tmp_path / "m", hard_case("tiny", 2))
    entries = [{"image": f".\\imagesTr\\tiny_{i}.nii.gz", "label": f"labelsTr\\tiny_{i}.nii.gz"} for i in range(2)]
    entries[1]["patient"] = "anna"
    described = change(root, training=entries)
    assert [case["name"] for case in described.cases] == ["tiny_0", "tiny_1"] and described.patients == {
        "tiny_1": "anna"
    }
    assert all(Path(case[key]).is_file() for case in described.cases for key in ("image", "label"))
    (root / "imagesTr/tiny_0.nii.gz").rename(root / "imagesTr/tiny_0_0000.nii.gz")  # nnU-Net v1
    assert change(root, training=entries).cases[0]["image"].endswith("imagesTr/tiny_0_0000.nii.gz")
    several = [{"image": f"p{i}\\image.nii.gz", "label": f"p{i}\\label.nii.gz"} for i in (1, 2)]
    assert [case["name"] for case in change(root, training=several).cases] == ["p1_image", "p2_image"]
    root = write_nnunet(tmp_path / "n", hard_case("tiny", 2))
    entry = {"images": ["imagesTr\\tiny_1_0000.nii.gz"], "label": "labelsTr\\tiny_1.nii.gz"}
    assert Path(change(root, dataset={"b": entry}).cases[0]["image"]).is_file()


def test_letters_composed_in_another_way(tmp_path: Path) -> None:
    """macOS writes é as e and an accent: dataset.json, images, labels and lists of patients may each have either."""
    one, two = (unicodedata.normalize(form, "Bébé_ö") for form in ("NFC", "NFD"))
    data = hard_case("tiny", 2)
    data.cases[0].name = two
    root = write_msd(tmp_path / "m", data)
    entry = {"image": f"imagesTr/{one}.nii.gz", "label": f"labelsTr/{one}.nii.gz", "patient": "anna"}
    described = change(root, training=[entry])
    (case,) = described.cases
    assert case["name"] == two and Path(case["image"]).is_file() and Path(case["label"]).is_file()
    assert described.patients == {two: "anna"}
    root = write_nnunet(tmp_path / "n", data)
    (root / f"labelsTr/{two}.nii.gz").rename(root / f"labelsTr/{one}.nii.gz")
    described = change(root, patients={one: "anna", "tiny_1": None})
    assert [case["name"] for case in described.cases] == [two, "tiny_1"] and described.patients == {two: "anna"}
    assert all(Path(case[key]).is_file() for case in described.cases for key in ("image", "label"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"training": {}}, '"training"'),
        ({"training": [{"image": "a"}]}, r'"training" must list .* one of its entries is \{"image": "a"\}'),
        ({"training": ["a.nii.gz"]}, '"training" must list'),
        ({"training": [{"image": 3, "label": "b"}]}, '"training" must list'),
        ({"modality": "CT"}, '"modality" must be'),
        ({"modality": {"0": ["CT"]}}, '"modality" must be'),
        ({"modality": {"²": "CT"}}, 'keys of "modality" must be numbers'),
        ({"labels": None}, '"labels"|declares no label'),
        ({"labels": {"a": "1" * 50}}, '"a" must have an integer'),
        ({"labels": {"a": float("nan")}}, '"a" must have an integer'),
        ({"patients": {"tiny_0": ["x"]}}, "a patient must be a name"),
        ({"patients": 3}, '"patients" must be'),
        ({"file_ending": [".png"], "training": None, "channel_names": ["T1"]}, '"file_ending" must be'),
        ({"file_ending": ".png", "training": None}, r"but \.nii\.gz: mend \"file_ending\""),
    ],
)
def test_keys_of_wrong_types_are_named(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    root = write_msd(tmp_path, hard_case("tiny", 2))
    with pytest.raises(UserError, match=message) as caught:
        described = change(root, **entries)
        if not described.labels:  # the check says so
            raise UserError("declares no label")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "declared"),
    [
        ({"numTraining": "2"}, 2),
        ({"numTraining": "two"}, None),
        ({"numTraining": float("inf")}, None),
        ({"numTraining": []}, None),
        ({"name": ["a"], "tensorImageSize": 4, "reference": None, "file_ending": 7}, 2),
        ({"modality": ["MRI"]}, 2),
        ({"labels": {"0": "background", "1": "nodule"}}, 2),
        ({"labels": {"background": "0", "nodule": "1"}}, 2),
        ({"labels": {"background": 0.0, "nodule": 1.0}}, 2),
    ],
)
def test_harmless_types_are_taken(tmp_path: Path, entries: dict[str, Any], declared: int | None) -> None:
    described = change(write_msd(tmp_path, hard_case("tiny", 2)), **entries)
    assert described.declared_cases == declared and described.labels == {"nodule": 1}
    assert described.channel_names == ["MRI"] and described.name
