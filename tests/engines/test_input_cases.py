"""Which files make a case to predict, and what is refused before the first is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from generators import write_image
from PIL import Image

from scripts.common.errors import UserError
from scripts.engines.prediction import input_cases
from scripts.engines.provenance import Run, write_provenance


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(folder: Path, in_channels: int = 1) -> dict[str, object]:
    """Case name -> file name(s)."""
    cases = input_cases(str(folder), str(folder.parent / "out"), in_channels=in_channels)
    return {c["name"]: Path(c["image"]).name if isinstance(c["image"], str) else len(c["image"]) for c in cases}


def colours(folder: Path, *names: str, channels: int = 3) -> Path:
    for name in names:
        write_image(folder / name, np.arange(60, dtype=np.uint8).reshape(5, 4, 3).transpose(2, 0, 1)[:channels])
    return folder


def test_channels_are_grouped_to_cases(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", *(f"{case}_{i:04d}.nii.gz" for case in "ab" for i in range(3)))
    assert found(folder, 3) == {"a": 3, "b": 3}
    (folder / "a_0001.nii.gz").unlink()
    (folder / "b_0002.nii.gz").unlink()
    with pytest.raises(UserError, match="takes 3 channels") as caught:
        found(folder, 3)
    assert f"{folder}/a_0001.nii.gz" in str(caught.value) and f"{folder}/b_0002.nii.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "in_channels", "expected"),
    [
        (["a_0000.png", "b_0000.png"], 1, {"a": "a_0000.png", "b": "b_0000.png"}),
        (["a_0000.png", "b_0000.png"], 3, {"a": "a_0000.png", "b": "b_0000.png"}),  # RGB in one file
        (["a.png", "b_0000.png"], 1, {"a": "a.png", "b_0000": "b_0000.png"}),
        (["scan_0001.png", "scan_0002.png"], 1, {"scan_0001": "scan_0001.png", "scan_0002": "scan_0002.png"}),
        (["scan_0000.png", "scan_0007.png"], 3, {"scan_0000": "scan_0000.png", "scan_0007": "scan_0007.png"}),
    ],
)
def test_other_names_are_a_case_each(
    tmp_path: Path, names: list[str], in_channels: int, expected: dict[str, str]
) -> None:
    assert found(touch(tmp_path / "in", *names), in_channels) == expected


@pytest.mark.parametrize("given", ["a_0000.png", "a_0001.png"])
def test_one_channel_of_a_case_is_refused(tmp_path: Path, given: str) -> None:
    folder = touch(tmp_path / "in", "a_0000.png", "a_0001.png")
    with pytest.raises(UserError, match=rf"{given} is one of 2 channels of a: give their folder"):
        found(folder / given, 2)
    assert found(folder / "a_0000.png", 1) == {"a": "a_0000.png"}


def test_a_file_with_all_channels_is_a_case(tmp_path: Path) -> None:
    """Numbered colour pictures, of which some have the numbers of channels."""
    folder = colours(tmp_path / "in", "a_0000.png", "a_0001.png", "a_0002.png", "b_0001.png")
    assert found(folder, 3) == {name: f"{name}.png" for name in ("a_0000", "a_0001", "a_0002", "b_0001")}
    assert found(folder / "a_0001.png", 3) == {"a_0001": "a_0001.png"}
    with Image.open(folder / "b_0001.png") as picture:
        picture.quantize(16).save(folder / "b_0001.png")  # with a palette
    assert found(folder, 3)["b_0001"] == "b_0001.png"
    colours(folder, *(f"c_{channel:04d}.png" for channel in range(3)), channels=1)
    assert found(folder, 3)["c"] == 3, "these are channels, a file each"
    volume = np.zeros((2, 3, 4, 5), np.float32)
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        write_image(tmp_path / "4d" / name, volume)
    assert found(tmp_path / "4d", 2) == {"a_0000": "a_0000.nii.gz", "a_0001": "a_0001.nii.gz"}


def test_images_in_sub_folders_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = touch(tmp_path / "in", "a.png")
    touch(folder / "more", "b.png")
    touch(folder / "notes", "readme.txt")
    touch(folder / ".hidden", "c.png")
    with caplog.at_level("WARNING", logger="lightm_unet"):
        assert found(folder) == {"a": "a.png"}
    assert caplog.messages == [f"the images in sub-folders of {folder} are not predicted: more"]
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match=r"holds no image .*; its sub-folder more does"):
        found(folder)


def test_a_sub_folder_that_may_not_be_opened_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, list_folder = touch(tmp_path / "in", "a.png"), Path.iterdir
    (folder / "private").mkdir()

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "private":
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert found(folder) == {"a": "a.png"}


def test_two_cases_never_share_a_prediction(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would both be written into"):
        found(touch(tmp_path / "in", "a.jpg", "a.png"), 1)
    folder = touch(tmp_path / "same", "a.png")
    with pytest.raises(UserError, match="would lie among images"):
        input_cases(str(folder), str(folder))


def test_predictions_do_not_lie_among_the_images(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a_0000.png")
    with pytest.raises(UserError, match="would lie among images"):
        input_cases(str(folder), str(folder))


@pytest.mark.parametrize(
    ("names", "clash"),
    [
        (["a.nii", "a.nii.gz"], "a_probabilities.nii.gz"),
        (["a.mha", "a.mhd"], "a.mha"),
        (["a.nii.gz", "a_probabilities.nii.gz"], "a_probabilities.nii.gz"),  # which a new prediction of a takes away
        (["predictions.tif"], "predictions.json"),
    ],
)
def test_all_names_are_checked_before_the_first_prediction(tmp_path: Path, names: list[str], clash: str) -> None:
    folder = touch(tmp_path / "in", *names)
    if names[0].endswith(".tif"):
        (folder / "predictions.json").write_text('{"spacing": [1, 1]}')  # a TIFF's spacing goes along
    with pytest.raises(UserError, match=f"would both be written into .*/{clash}"):
        input_cases(str(folder), str(tmp_path / "out"), save_probabilities="true")
    assert not (tmp_path / "out").exists()
    if names == ["a.nii", "a.nii.gz"]:  # without probabilities their names differ
        assert len(input_cases(str(folder), str(tmp_path / "out"))) == 2
    else:
        with pytest.raises(UserError, match=f"would both be written into .*/{clash}"):
            found(folder)


@pytest.mark.parametrize("beside", ["a_probabilities.nii.gz", "a.nii.gz"])
def test_files_that_no_prediction_wrote_are_kept(tmp_path: Path, beside: str) -> None:
    """Neither switch asks to lose the probabilities of someone else."""
    folder, out = touch(tmp_path / "in", "a.nii.gz"), touch(tmp_path / "out", beside)
    (out / beside).write_text("the user's")
    with pytest.raises(UserError, match="already holds predictions of 1 of these 1"):
        found(folder)
    if beside != "a.nii.gz":
        with pytest.raises(UserError, match=r"a_probabilities\.nii\.gz would be replaced"):
            input_cases(str(folder), str(out), skip_existing=True)
        write_provenance(out, Run("model.pt", 0, None, ["a"]))  # the case was begun and its process killed
        assert len(input_cases(str(folder), str(out), skip_existing=True)) == 1
    assert len(input_cases(str(folder), str(out), overwrite=True)) == 1


def test_processes_share_the_cases_whatever_is_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = touch(tmp_path / "in", *(f"{case}.png" for case in "abcdef"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    taken = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        taken += [case["name"] for case in input_cases(str(folder), str(tmp_path / "out"), skip_existing=True)]
        touch(tmp_path / "out", *(f"{name}.png" for name in taken))
    assert sorted(taken) == list("abcdef")
