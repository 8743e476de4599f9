"""Which files make a case to predict, and where its prediction goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators import hard_case, straight, write_image, write_nnunet
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scripts.common.errors import UserError
from scripts.engines.finished import prediction_problem
from scripts.engines.prediction import (
    BrokenCase,
    CaseDataset,
    SavePredictiond,
    _predict_one,
    collate,
    input_cases,
    predict,
)
from scripts.engines.provenance import Run, read_provenance, record_predictions, write_provenance
from scripts.images.cases import LoadCased, load_image


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


def test_a_sub_folder_that_may_not_be_opened_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, list_folder = touch(tmp_path / "in", "a.png"), Path.iterdir
    (folder / "private").mkdir()

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "private":
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert found(folder) == {"a": "a.png"}


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


class Saver:
    """An evaluator of cases that writes label maps of ones; what a case's name asks for fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine(self.process)
        self.engine.state.max_epochs = 1
        self.engine.add_event_handler(Events.STARTED, self.handle, "started")
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, self.handle, "completed")
        self.run, self.engine.run = self.engine.run, self.start  # type: ignore[method-assign]

    def start(self) -> None:
        """As MONAI's evaluators do."""
        self.engine.state.epoch = self.engine.state.iteration = 0
        self.run(self.engine.data_loader)

    def process(self, engine: Engine, batch: Any) -> None:
        self.name = batch["name"][0]
        if "process" in self.name:
            raise MemoryError
        if "silent" not in self.name:
            image = batch["image"][0]
            case = {"name": self.name, "image": image, "pred": torch.ones_like(image)}
            SavePredictiond(["pred"], str(self.folder))(case)

    def handle(self, engine: Engine, moment: str) -> None:
        if moment in self.name_of(engine):
            raise RuntimeError(moment)

    def name_of(self, engine: Engine) -> str:
        return engine.data_loader[0]["name"][0]


def predict_all(
    folder: Path, workers: int = 0, transform: Callable[[Any], Any] | None = None, **options: Any
) -> tuple[list[str], int]:
    """Predict a folder with a Saver; which files are there then, and the exit status."""
    out = folder.parent / "out"
    load = LoadCased(["image"], 3, 1, {"a": 1})
    dataset = CaseDataset(input_cases(str(folder), str(out), **options), Compose([load, *filter(None, [transform])]))
    loader = DataLoader(dataset, workers, batch_size=1, collate_fn=collate)
    try:
        predict(Saver(out).engine, loader, str(out))
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return sorted(path.name.partition(".")[0] for path in out.iterdir()), status


def volumes(folder: Path, *names: str) -> Path:
    voxels = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    for name in names:
        write_image(folder / f"{name}.nii.gz", voxels)
    return folder


def failures(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {line.strip() for record in caplog.records for line in record.getMessage().splitlines() if "nii.gz:" in line}


@pytest.mark.parametrize("moment", ["process", "started", "completed"])
def test_the_case_after_a_failing_one_is_predicted(
    tmp_path: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it fails: an engine whose run raised would return at once from the next."""
    folder = volumes(tmp_path / "in", f"a_{moment}", "b", f"c_{moment}", f"d_{moment}", "e")
    with caplog.at_level("INFO", logger="lightm_unet"):
        files, status = predict_all(folder)
    assert {"b", "e"} <= set(files) and status == 1
    assert f"2 of 5 predictions written to {tmp_path / 'out'}" in caplog.text
    assert len(failures(caplog)) == 3


def test_only_files_of_this_run_count_as_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = volumes(tmp_path / "in", "a", "b_silent", "c_silent")
    volumes(tmp_path / "out", "a", "b_silent")  # of an earlier run
    record_predictions(tmp_path / "out", "model.pt", input_cases(str(folder), str(tmp_path / "out"), overwrite=True))
    with caplog.at_level("INFO", logger="lightm_unet"):
        assert predict_all(folder, overwrite=True) == (["a", "b_silent", "predictions"], 1)
    assert [run.predicted for run in read_provenance(tmp_path / "out") or []] == [["a", "c_silent"]]
    assert "1 of 3 predictions written" in caplog.text
    assert all("was not written" in failure for failure in failures(caplog)) and len(failures(caplog)) == 2


class Kill:
    """The process that loads a case of this name is killed, as when memory runs out."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, case: dict[str, Any]) -> dict[str, Any]:
        if self.name in case["name"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return case


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals of POSIX")
def test_a_killed_loader_costs_its_case_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # how many seconds it waits before it looks whether its workers live
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    folder = volumes(tmp_path / "in", "a", "b_bad", "c", "d")
    before = signal.getsignal(signal.SIGCHLD)
    assert predict_all(folder, workers=2, transform=Kill("bad")) == (["a", "c", "d"], 1)
    assert {failure.partition(": ")[0] for failure in failures(caplog)} == {str(folder / "b_bad.nii.gz")}
    assert "was killed, probably for lack of memory" in caplog.text
    assert signal.getsignal(signal.SIGCHLD) == before


def test_links_in_a_circle_and_odd_names_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = volumes(tmp_path / "in", "a", "d")
    (folder / "b.nii.gz").symlink_to("b.nii.gz")
    (folder / "loop").symlink_to("loop")
    odd = os.fsencode(folder) + b"/c\xe9.nii.gz"
    try:
        os.rename(folder / "d.nii.gz", odd)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    volumes(folder, "e")
    with caplog.at_level("INFO", logger="lightm_unet"):
        assert predict_all(folder) == (["a", "e"], 1)
    assert failures(caplog) == {
        f"{folder}/b.nii.gz: is missing",
        f"{folder}/c\\udce9.nii.gz: has a name that is not UTF-8: rename it",
    }
    caplog.text.encode()
    record_predictions(tmp_path / "out", "model.pt", input_cases(str(folder), str(tmp_path / "out"), overwrite=True))
    assert [run.predicted for run in read_provenance(tmp_path / "out") or []] == [["a", "b", "e"]]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".tif", ".png"])
def test_what_is_no_whole_prediction_is_made_again(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    shape = (1, 40, 30) if ending == ".png" else (1, 20, 30, 10)
    pixels = np.random.default_rng(0).integers(0, 3, shape, np.uint8)
    for name in "abcdef":
        write_image(tmp_path / f"in/{name}{ending}", pixels)
        write_image(tmp_path / f"out/{name}{ending}", pixels)
    a, b, c, d, e, _ = (tmp_path / f"out/{name}{ending}" for name in "abcdef")
    a.write_bytes(b"")
    b.write_bytes(b.read_bytes()[:50])
    c.write_bytes(c.read_bytes()[: c.stat().st_size // 2])
    write_image(d, pixels[:, :-1])
    e.write_text("not an image")
    write_provenance(tmp_path / "out", Run("model.pt", None, None, list("abcdef")))
    cases = input_cases(str(tmp_path / "in"), str(tmp_path / "out"), skip_existing="true")
    assert [case["name"] for case in cases] == list("abcde")
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "lightm_unet"]
    assert warning.startswith("5 predictions that are there are made again: ")
    assert f"{a} is empty" in warning and f"{d} has another size than its image" in warning


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ((np.zeros((1, 2, 3, 4), np.float32), np.eye(4)), "is no label map"),
        ((np.zeros((2, 2, 3, 4), np.uint8), np.eye(4)), "is no label map"),
        ((np.zeros((1, 2, 3, 4), np.uint8), np.diag([1.0, 1, 2, 1])), "has another voxel size than its image"),
        ((np.zeros((1, 2, 3, 4), np.uint8), np.eye(4)), None),
    ],
)
def test_what_is_a_prediction_of_an_image(
    tmp_path: Path, made: tuple[np.ndarray, np.ndarray], problem: str | None
) -> None:
    image = write_image(tmp_path / "in/a.nii.gz", np.zeros((1, 2, 3, 4), np.float32))
    assert prediction_problem(write_image(tmp_path / "out/a.nii.gz", *made), image) == problem


def test_a_prediction_without_the_probabilities_asked_for_is_made_again(tmp_path: Path) -> None:
    for name in "abc":
        write_image(tmp_path / f"in/{name}.png", np.arange(12, dtype=np.uint8).reshape(1, 3, 4))
        write_image(tmp_path / f"out/{name}.png", np.ones((1, 3, 4), np.uint8))
    for name in "ab":
        np.savez_compressed(tmp_path / f"out/{name}_probabilities.npz", probabilities=np.ones((2, 3, 4)))
    write_provenance(tmp_path / "out", Run("model.pt", None, None, list("abc")))
    half = tmp_path / "out/b_probabilities.npz"
    half.write_bytes(half.read_bytes()[:100])
    options = {"skip_existing": True, "save_probabilities": True}
    assert [c["name"] for c in input_cases(str(tmp_path / "in"), str(tmp_path / "out"), **options)] == ["b", "c"]
    assert input_cases(str(tmp_path / "in"), str(tmp_path / "out"), skip_existing=True) == []


def colours(folder: Path, *names: str, channels: int = 3) -> Path:
    for name in names:
        write_image(folder / name, np.arange(60, dtype=np.uint8).reshape(5, 4, 3).transpose(2, 0, 1)[:channels])
    return folder


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


def test_an_error_without_a_message_is_one_case_of_many() -> None:
    def fail(engine: Engine, batch: object) -> None:
        raise MemoryError

    broken = _predict_one(Engine(fail), {"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": ["a.png"]})})
    assert broken["file"] == "a.png" and "memory ran out" in broken["error"]


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
