"""Where a prediction goes, and that it keeps the format and the grid of its image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from generators import hard_case, straight, write_image, write_nnunet
from monai.data import MetaTensor

from scripts.common.errors import UserError
from scripts.engines.prediction import SavePredictiond, input_cases
from scripts.images.cases import LoadCased, load_image


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


def test_a_name_from_another_program_leads_nowhere_else(tmp_path: Path) -> None:
    image = MetaTensor(torch.zeros(1, 2, 2), meta={"filename_or_obj": "a.png"})
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"the case name '\.\./a' leads to another folder"):
        SavePredictiond(["pred"], str(tmp_path / "out"))({"image": image, "pred": image, "name": "../a"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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
