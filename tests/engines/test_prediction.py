"""Which files make a case to predict, and where its prediction goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from generators import hard_case, straight, write_image, write_nnunet
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.data.images import LoadCased, load_image
from scripts.engines.prediction import BrokenCase, CaseDataset, SavePredictiond, _predict_one, input_cases
from scripts.errors import UserError
from scripts.provenance import Run, write_provenance


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(folder: Path, in_channels: int = 1) -> dict[str, object]:
    """Case name -> file name(s)."""
    cases = input_cases(str(folder), str(folder.parent / "out"), in_channels=in_channels)
    return {c["name"]: Path(c["image"]).name if isinstance(c["image"], str) else len(c["image"]) for c in cases}


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


def test_predictions_keep_name_format_and_grid(tmp_path: Path) -> None:
    data = hard_case("four_channels", 1)
    folder = write_nnunet(tmp_path, data, ".nrrd") / "imagesTr"
    (case,) = input_cases(str(folder), str(tmp_path / "out"), in_channels=4)
    loaded = LoadCased(["image"], 3, 4, {"a": 1})(case)
    loaded["pred"] = torch.from_numpy(data.cases[0].label[None])
    loaded["p"] = torch.rand(2, *data.cases[0].label.shape)
    SavePredictiond(["pred"], str(tmp_path / "out"), "p")(loaded)
    saved = load_image(tmp_path / "out/brain_0.nrrd", 3)
    assert np.array_equal(saved[0], data.cases[0].label) and np.allclose(saved.affine, straight((1, 1, 1)))
    assert np.allclose(load_image(tmp_path / "out/brain_0_probabilities.nrrd", 3), loaded["p"])
    with pytest.raises(UserError, match="already holds predictions of 1 of these 1"):
        input_cases(str(folder), str(tmp_path / "out"), in_channels=4)
    assert input_cases(str(folder), str(tmp_path / "out"), skip_existing=True, in_channels=4) == []
    SavePredictiond(["pred"], str(tmp_path / "out"))(loaded)  # replaced, and so without probabilities
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["brain_0.nrrd"]


@pytest.mark.parametrize(
    ("source", "target", "probabilities"),
    [
        ("a.jpg", "a.png", "a_probabilities.npz"),
        ("a.tif", "a.tif", "a_probabilities.npz"),
        ("a.mha", "a.mha", "a_probabilities.mha"),
        ("a.nii", "a.nii", "a_probabilities.nii.gz"),
    ],
)
def test_endings(tmp_path: Path, source: str, target: str, probabilities: str) -> None:
    volume = source in ("a.mha", "a.nii")
    pixels = np.arange(120, dtype=np.uint8).reshape((1, 4, 5, 6) if volume else (1, 12, 10))
    path = write_image(tmp_path / source, pixels)
    image = load_image(path, 3 if volume else 2)
    (tmp_path / "out").mkdir()
    data = {"image": image, "pred": image % 2, "p": torch.rand(2, *image.shape[1:])}
    SavePredictiond(["pred"], str(tmp_path / "out"), "p")(data)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {target, probabilities}
    assert np.array_equal(load_image(tmp_path / "out" / target, image.ndim - 1), data["pred"])


def test_two_cases_never_share_a_prediction(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="would both be written into"):
        found(touch(tmp_path / "in", "a.jpg", "a.png"), 1)
    folder = touch(tmp_path / "same", "a.png")
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


def test_a_name_from_another_program_leads_nowhere_else(tmp_path: Path) -> None:
    image = MetaTensor(torch.zeros(1, 2, 2), meta={"filename_or_obj": "a.png"})
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"the case name '\.\./a' leads to another folder"):
        SavePredictiond(["pred"], str(tmp_path / "out"))({"image": image, "pred": image, "name": "../a"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_broken_case_names_its_first_file(tmp_path: Path) -> None:
    files = [str(tmp_path / "a_0000.png"), str(tmp_path / "a_0001.png")]
    dataset = CaseDataset([{"name": "a", "image": files}], LoadCased(["image"], 2, 2, {"a": 1}))
    broken = dataset[0]
    assert isinstance(broken, BrokenCase) and broken["file"] == files[0] and "is missing" in broken["error"]


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


def test_an_error_without_a_message_is_one_case_of_many() -> None:
    def fail(engine: Engine, batch: object) -> None:
        raise MemoryError

    broken = _predict_one(Engine(fail), {"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": ["a.png"]})})
    assert broken == {"file": "a.png", "error": "MemoryError"}


def test_predictions_do_not_lie_among_the_images(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a_0000.png")
    with pytest.raises(UserError, match="would lie among images"):
        input_cases(str(folder), str(folder))


def test_a_case_is_done_only_when_all_its_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a stop between the files of a case: skip_existing must predict it again."""
    image = load_image(write_image(tmp_path / "a.mha", np.arange(120, dtype=np.uint8).reshape(1, 4, 5, 6)), 3)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.engines.prediction.save_probabilities", stop)
    cases = input_cases(str(tmp_path / "a.mha"), str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        SavePredictiond(["pred"], str(tmp_path / "out"), "p")({"image": image, "pred": image % 2, "p": image})
    assert input_cases(str(tmp_path / "a.mha"), str(tmp_path / "out"), skip_existing=True) == cases


def test_a_failed_case_names_its_file_once() -> None:
    assert str(BrokenCase(file="in/a.png", error="in/a.png is constant")) == "in/a.png: is constant"
    assert str(BrokenCase(file="in/a.png", error="MemoryError")) == "in/a.png: MemoryError"
