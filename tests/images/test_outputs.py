"""What may be written where."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.images import outputs
from scripts.images.outputs import check_names, check_output_file, check_output_folder, open_folder, refuse_foreign

BUNDLE = Path(outputs.__file__).parents[2]


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Data sets in both layouts, one whose dataset.json names folders of its own, and links to them."""
    root = tmp_path / "data"
    for name in ("msd", "nnunet"):
        touch(*(root / name / f"{kind}/a.nii.gz" for kind in ("imagesTr", "labelsTr", "imagesTs")))
        (root / name / "dataset.json").write_text("{}")
    touch(root / "own/scans/day_1/a.png", root / "own/masks/a.png")
    content = {"training": [{"image": "./scans/day_1/a.png", "label": "masks\\a.png"}], "test": ["./more/b.png"]}
    (root / "own/dataset.json").write_text(json.dumps(content))
    touch(tmp_path / "cache/files/a-0123456789ab.json", tmp_path / "cache/0123456789ab/settings.json")
    touch(tmp_path / "no_cache/files/a.json", tmp_path / "no_cache/settings.json")
    touch(root / "flat/a.png", root / "flat/a_mask.png", root / "bare/labelsTr/a.nii.gz", root / "bare/notes.txt")
    (root / "flat/dataset.json").write_text(json.dumps({"training": [{"image": "a.png", "label": "a_mask.png"}]}))
    (tmp_path / "link").symlink_to(root / "msd/labelsTr")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("data/msd/labelsTr", "holds the images or labels of a data set"),
        ("data/msd/imagesTr/deeper/still", "holds the images or labels of a data set"),
        ("data/nnunet/labelsTs", "holds the images or labels of a data set"),  # not there yet
        ("data/nnunet/out/../imagesTs", "holds the images or labels of a data set"),
        ("link", "holds the images or labels of a data set"),
        ("link/out", "holds the images or labels of a data set"),
        ("data/bare/labelsTr", "holds the images or labels of a data set"),  # whose dataset.json is elsewhere
        ("data/own/masks", "holds the images or labels of a data set"),
        ("data/own/scans/day_1/out", "holds the images or labels of a data set"),
        ("data/own/more", "holds the images or labels of a data set"),
        ("data/flat", "holds the images or labels of a data set"),
        ("cache", "cache holds prepared cases and may be deleted"),
        ("cache/evaluation", "cache holds prepared cases and may be deleted"),
        ("cache/0123456789ab/deeper/still", "cache holds prepared cases and may be deleted"),
        ("data/bare/notes.txt", "is a file, not a folder"),
        ("data/bare/notes.txt/out", "is a file, not a folder"),
        ("loop/out", "cannot write to"),
        ("n" * 300, "File name too long"),
        ("a\0b", "cannot write to"),
        ("out::2", "MONAI reads # in a path as ::"),
    ],
)
def test_places_that_are_refused(data: Path, folder: str, reason: str) -> None:
    before = sorted(data.rglob("*"))
    with pytest.raises(UserError, match=reason) as caught:
        check_output_folder(data / folder, "--output_dir")
    assert "\n" not in str(caught.value) and sorted(data.rglob("*")) == before


@pytest.mark.parametrize("folder", ["", " ", None, "null", "~/out"])
def test_no_place_at_all_is_refused(folder: str | None) -> None:
    with pytest.raises(UserError, match="--output_dir"):
        check_output_folder(folder, "--output_dir")


@pytest.mark.parametrize(
    "folder",
    [
        "out",
        "data",
        "data/msd/out",
        "data/flat/out",
        "data/own/scans/out",
        "data/labelsTr_predicted",
        "new/labelsTr",
        "it's my folder, 2024",
        "no_cache/out",
    ],
)
def test_places_that_are_free(data: Path, folder: str) -> None:
    path = check_output_folder(data / folder, "--output_dir")
    open_folder(path, "--output_dir")
    assert path.is_dir()
    check_output_folder(data / folder, "--output_dir")


def test_a_folder_of_predictions_may_be_called_like_a_data_set_s(tmp_path: Path) -> None:
    """As one that makes a new data set of predictions does; it must be possible to go on with it."""
    touch(tmp_path / "labelsTr/a.nii.gz", tmp_path / "labelsTr/predictions.json")
    check_output_folder(tmp_path / "labelsTr", "--output_dir")


def test_only_a_cache_goes_where_a_cache_is(data: Path) -> None:
    assert check_output_folder(data / "cache", "--cache_dir") == data / "cache"
    with pytest.raises(UserError, match="cache holds prepared cases"):
        check_output_file(data / "cache/rules.json", "--output")


def test_nothing_goes_among_the_inputs(data: Path) -> None:
    (data / "in").mkdir()
    (data / "in/a.png").symlink_to(data / "data/own/masks/a.png")
    touch(data / "store/b.png")
    (data / "in/b.png").symlink_to(data / "store/b.png")
    for folder in ("in", "store", "in/../store"):
        with pytest.raises(UserError, match="would lie among images"):
            check_output_folder(data / folder, "--output_dir", [data / "in/a.png", data / "in/b.png"])
    with pytest.raises(UserError, match="would lie among images"):
        check_output_folder(data / "store", "--output_dir", [data / "store"])
    check_output_folder(data / "in/out", "--output_dir", [data / "in/a.png", data / "loop"])
    check_output_folder(data, "--output_dir", [data / "in/a.png"])


@pytest.mark.parametrize("folder", ["models", "models/lung_xray", "scripts/../models"])
def test_the_shipped_weights_are_left_alone(folder: str) -> None:
    with pytest.raises(UserError, match="holds the weights that come with the bundle"):
        check_output_folder(BUNDLE / folder, "--output_dir")
    check_output_folder(BUNDLE / "models/mine", "--output_dir")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write to .*no permission .*--output_dir"):
        check_output_folder(tmp_path / "out", "--output_dir")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("data/msd/dataset.json", "which would be lost"),
        ("data/msd/DATASET.json", "which would be lost"),
        ("data/msd/labelsTr/rules.json", "images or labels of a data set"),
        ("data/own/masks/rules.json", "images or labels of a data set"),
        ("data", "is a folder"),
        ("data/out.nii.gz", "the name of an image"),
        ("data/bare/notes.txt/rules.json", "is a file, not a folder"),
        ("data/read.json", "which would be lost"),
        ("data/settings.json", "and would be lost"),
        ("data/model.pt", "and would be lost"),
    ],
)
def test_files_that_are_refused(data: Path, file: str, reason: str) -> None:
    touch(data / "data/read.json")
    (data / "data/model.pt").write_bytes(b"PK\x03\x04weights")
    (data / "data/old.json").write_text(' {"labels": {')  # half of what an earlier run wrote
    check_output_file(data / "data/old.json", "--output")
    with pytest.raises(UserError, match=reason) as caught:
        check_output_file(data / file, "--output", [data / "data/bare/../read.json"])
    assert "\n" not in str(caught.value)
    check_output_file(data / "data/msd/rules.json", "--output")


def test_two_outputs_under_one_name(tmp_path: Path) -> None:
    check_names([("a.nii", tmp_path / "a.nii"), ("a.nii", tmp_path / "a.nii"), ("A.nii", tmp_path / "A.nii")])
    with pytest.raises(UserError, match=r"a\.nii and a\.nii\.gz would both be written into .*p\.nii\.gz"):
        check_names([("a.nii", tmp_path / "p.nii.gz"), ("a.nii.gz", tmp_path / "p.nii.gz")])


def test_names_that_a_disk_does_not_tell_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: True)
    with pytest.raises(UserError, match=r"a\.nii and A\.nii would both be written"):
        check_names([("a.nii", tmp_path / "a.nii"), ("A.nii", tmp_path / "A.nii")])


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    refuse_foreign([tmp_path / "a", tmp_path / "b"], "--output_dir")
    (tmp_path / "b").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"b would be replaced.*move it away, or give another --output_dir"):
        refuse_foreign([tmp_path / "a", tmp_path / "b"], "--output_dir")
    touch(tmp_path / "a")
    refuse_foreign([tmp_path / "a"], "--output_dir")
    with pytest.raises(UserError, match="a would be replaced"):
        refuse_foreign([tmp_path / "a"], "--output_dir", empty_too=True)


def test_opening_a_folder_leaves_no_trace(tmp_path: Path) -> None:
    touch(tmp_path / "out/.0123456789ab.part.model.pt", tmp_path / "out/model.pt")
    os.utime(tmp_path / "out/.0123456789ab.part.model.pt", (0, 0))
    open_folder(tmp_path / "out", "--output_dir")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt"]
    with pytest.raises(UserError, match="cannot write to"):
        open_folder(tmp_path / "out/model.pt", "--output_dir")
