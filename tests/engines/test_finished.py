"""Which predictions are whole, and which are made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generators import write_image

from scripts.engines.finished import prediction_problem
from scripts.engines.prediction import input_cases
from scripts.engines.provenance import Run, write_provenance


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
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
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
