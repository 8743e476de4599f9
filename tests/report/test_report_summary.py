"""Ranking, gains and the completion of classes that no task declares."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_cases import cube, write

from scripts.images.task import Task
from scripts.report.pairing import Case
from scripts.report.scoring import CaseResult, score_case
from scripts.report.summary import classes_of, complete, gain, rank, summary_of

SHAPE = (8, 8, 8)


def scored(folder: Path, name: str, label: np.ndarray, prediction: np.ndarray, cleaned: np.ndarray) -> CaseResult:
    for kind, array in (("l", label), ("p", prediction), ("c", cleaned)):
        write(folder / kind / f"{name}.nii", array)
    files = {kind: folder / kind / f"{name}.nii" for kind in "lpc"}
    return score_case(Case(name, files["p"], files["l"], (), files["c"]), Task(), 1.0)


def test_positive_gain_is_always_better() -> None:
    assert gain("", 0.5, 0.75) == 0.25
    assert gain("mm", 5.0, 2.0) == 3.0
    assert gain("ml", -2.0, 1.0) == 1.0
    assert math.isnan(gain("mm", math.nan, 1.0))


def test_classes_of_other_cases_are_absent_and_undefined(tmp_path: Path) -> None:
    one, two = cube(SHAPE, 1, 4), cube(SHAPE, 1, 4, 2)
    results = [scored(tmp_path, "one", one, one, one), scored(tmp_path, "two", two, two, two)]
    labels = classes_of(results)
    assert labels == {"label 1": 1, "label 2": 2}
    summary = summary_of(complete(results, labels), labels, 1.0)
    dice = summary["results"]["prediction"]["label 2"]["dice"]
    assert (dice["mean"], dice["defined"], dice["cases"]) == (1.0, 1, 2)
    assert summary["per_case"][0]["prediction"]["label 2"]["volume_ml"] == 0.0


def test_counts_what_postprocessing_changed(tmp_path: Path) -> None:
    label, worse = cube(SHAPE, 1, 5), cube(SHAPE, 1, 4)
    results = [
        scored(tmp_path, "better", label, worse, label),
        scored(tmp_path, "worse", label, label, worse),
        scored(tmp_path, "same", label, worse, worse),
        scored(tmp_path, "empty", cube(SHAPE, 0, 0), cube(SHAPE, 0, 0), cube(SHAPE, 0, 0)),
    ]
    labels = classes_of(results)
    summary = summary_of(complete(results, labels), labels, 1.0)
    assert summary["postprocessing"]["cases"] == {"improved": 1, "degraded": 1, "unchanged": 1, "undefined": 1}
    gains = summary["postprocessing"]["gain"]["label 1"]
    assert gains["dice"]["mean"] == pytest.approx(0.0)
    assert gains["hd95"]["improved"] == 1
    assert "volume_ml" not in gains
    assert summary["worst_first"] == ["same", "worse", "better", "empty"]
    assert [result.name for result in rank(results)][:1] == ["same"]
    assert any("1 prediction(s) without any foreground: empty" in note for note in summary["notes"])
