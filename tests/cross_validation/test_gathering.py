"""Which evaluations of folds count, and how they are put together."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import pytest
from fold_cases import TRAIN, finished, short_run, write_scores

from scripts.common.errors import UserError
from scripts.cross_validation import running
from scripts.cross_validation.__main__ import main
from scripts.cross_validation.folds import Fold
from scripts.cross_validation.gathering import gather


def test_an_evaluation_of_other_cases_does_not_count(tmp_path: Path) -> None:
    fold = finished(tmp_path, 0, {"a": 0.5, "b": 0.7})
    assert fold.evaluated
    (fold.folder / "cases.json").write_text(json.dumps({"training": ["c"], "validation": ["a", "b"]}))
    assert fold.evaluated
    (fold.folder / "cases.json").write_text(json.dumps({"training": [], "validation": ["a", "b", "c"]}))
    assert not fold.evaluated, "as after an evaluation with --limit_cases"


def test_an_evaluation_by_other_settings_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    commands = []
    monkeypatch.setattr(running, "run_program", lambda command, what: commands.append(command[4]))
    given = ["--config_file", str(TRAIN), "--output_dir", str(tmp_path), "--fold", "0", "--overlap", "0.25"]
    short_run(tmp_path / "fold_0")
    checkpoint = str(tmp_path / "fold_0/model.pt")
    done = {"tta": True, "overlap": 0.25, "postprocessing_rules": "none", "checkpoint": checkpoint, "gone": 1}
    for by_hand in ({}, {"tta": "false"}, {"overlap": 0.5}, {"mirror_axes": [0]}, {"checkpoint": "model_final.pt"}):
        write_scores(tmp_path / "fold_0", **done | by_hand)
        main([*given, "--epochs", "2"])
        assert commands == ["evaluating"] * bool(by_hand), by_hand
        assert all(f"evaluated with {key}" in capsys.readouterr().out for key in by_hand)
        commands.clear()


def test_scores_belong_to_the_weights_that_made_them(tmp_path: Path) -> None:
    """Whatever the clock says, which may have gone back."""
    fold = finished(tmp_path, 0, {"a": 0.5})
    metrics, weights = fold.evaluation.path / "metrics.json", fold.folder / "model.pt"
    os.utime(metrics, (1, 1))
    assert fold.evaluated and fold.outdated is None, "older than the weights, but theirs"
    weights.write_text("others")
    os.utime(weights, (0, 0))
    assert not fold.evaluated and fold.outdated == "its scores are of other weights"
    metrics.write_text(json.dumps({"per_case": []}))  # as version 0.6 wrote it
    assert not fold.evaluated and "do not say of which weights" in str(fold.outdated)
    metrics.write_text(metrics.read_text()[:-3])
    assert not fold.evaluated and fold.outdated is None


def test_scores_whose_predictions_are_gone_or_damaged(tmp_path: Path) -> None:
    fold, out = finished(tmp_path, 0, {"a": 0.5, "b": 0.5}), tmp_path / "out"
    gather([fold], out)
    damaged = fold.evaluation.path / "predictions/b.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(UserError, match=r"b\.nii\.gz cannot be read: remove it, and the same command evaluates fold 0"):
        gather([fold], out)
    assert nib.load(out / "predictions/b.nii.gz").shape == (2, 3, 4), "what was gathered before is kept"
    damaged.write_bytes(b"")
    assert not fold.evaluated and fold.outdated == "the predictions of 1 case(s) are gone (b)"


def test_gathering_counts_undefined_scores_and_starts_anew(tmp_path: Path) -> None:
    folds = [finished(tmp_path, 0, {"b": 0.5, "d": None}), finished(tmp_path, 1, {"a": 0.7}, ".tif")]
    (folds[1].evaluation.path / "predictions/a.json").write_text('{"spacing": [1, 1, 1]}')  # a TIFF stack's voxel size
    out = tmp_path / "out"
    gather(folds, out)
    content = json.loads((out / "metrics.json").read_text())
    assert content["folds"] == [0, 1] and content["cases"] == 3
    assert content["classes"]["a"]["dice"] == pytest.approx(
        {"mean": 0.6, "sd": 0.02**0.5, "median": 0.6, "defined": 2, "cases": 3}
    )
    names = {path.name for path in (out / "predictions").iterdir()}
    assert names == {"a.tif", "a.json", "b.nii.gz", "d.nii.gz", "predictions.json"}
    gather(folds[:1], out)
    assert {path.name for path in (out / "predictions").iterdir()} == {"b.nii.gz", "d.nii.gz", "predictions.json"}


@pytest.mark.parametrize("file", ["note.txt", "z.nii.gz", "a_probabilities.nii.gz"])
def test_gathering_takes_nothing_away_that_it_did_not_bring(tmp_path: Path, file: str) -> None:
    fold, out = finished(tmp_path, 0, {"a": 0.5}), tmp_path / "out"
    gather([fold], out)
    (out / "predictions" / file).write_text("the user's")
    with pytest.raises(UserError, match=f"out/predictions/{file} would be replaced"):
        gather([fold], out)
    assert (out / "predictions" / file).read_text() == "the user's"
    assert (out / "predictions/a.nii.gz").is_file()


def test_gathering_keeps_metrics_of_others(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.csv").write_text("the user's")
    with pytest.raises(UserError, match=r"metrics\.csv would be replaced"):
        gather([finished(tmp_path, 0, {"a": 0.5})], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.csv"]


def test_a_gathering_that_was_killed_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold, out = finished(tmp_path, 0, {"a": 0.5, "b": 0.5}), tmp_path / "out"
    copy = shutil.copyfile

    def kill(source: Path, target: Path) -> None:
        if source.name == "b.nii.gz":
            raise KeyboardInterrupt
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", kill)
    with pytest.raises(KeyboardInterrupt):
        gather([fold], out)
    monkeypatch.undo()
    gather([fold], out)
    assert {path.name for path in (out / "predictions").iterdir()} == {"a.nii.gz", "b.nii.gz", "predictions.json"}


def test_gathering_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    folds = [finished(tmp_path, 0, {"a": 0.5, "b": 0.5}), finished(tmp_path, 1, {"b": 0.7})]
    with pytest.raises(UserError, match=r"1 case\(s\) are held out by more than one fold \(b\)"):
        gather(folds, tmp_path / "out")
    with pytest.raises(UserError, match=r"fold\(s\) 2 are not finished"):
        gather([*folds, Fold(2, tmp_path / "fold_2", epochs=1)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
