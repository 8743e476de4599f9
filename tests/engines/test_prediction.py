"""Prediction case by case, past those that fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators import write_image
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from scripts.engines.prediction import (
    BrokenCase,
    CaseDataset,
    SavePredictiond,
    _predict_one,
    collate,
    input_cases,
    predict,
)
from scripts.engines.provenance import read_provenance, record_predictions
from scripts.images.cases import LoadCased


def test_a_broken_case_names_its_first_file(tmp_path: Path) -> None:
    files = [str(tmp_path / "a_0000.png"), str(tmp_path / "a_0001.png")]
    dataset = CaseDataset([{"name": "a", "image": files}], LoadCased(["image"], 2, 2, {"a": 1}))
    broken = dataset[0]
    assert isinstance(broken, BrokenCase) and broken["file"] == files[0] and "is missing" in broken["error"]


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


def test_an_error_without_a_message_is_one_case_of_many() -> None:
    def fail(engine: Engine, batch: object) -> None:
        raise MemoryError

    broken = _predict_one(Engine(fail), {"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": ["a.png"]})})
    assert broken["file"] == "a.png" and "memory ran out" in broken["error"]


def test_a_failed_case_names_its_file_once() -> None:
    assert str(BrokenCase(file="in/a.png", error="in/a.png is constant")) == "in/a.png: is constant"
    assert str(BrokenCase(file="in/a.png", error="MemoryError")) == "in/a.png: MemoryError"
