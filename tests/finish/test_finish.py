"""Finishing a task: what comes of it, what is taken over, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finish_cases import HELD_OUT, TRAIN, Task, run_here
from generators import write_image

from scripts.common import BUNDLE_ROOT
from scripts.common.errors import UserError
from scripts.engines.provenance import read_provenance
from scripts.finish import __main__ as command
from scripts.finish import steps
from scripts.finish.__main__ import main
from scripts.finish.configuration import INFERENCE
from scripts.images.formats import read_raw
from scripts.images.pairs import files_by_case

NEW = ["case_12", "case_13", "case_14", "case_15"]
STEPS = ["evaluate", "determine_rules", "write_configuration", "predict", "clean", "draw", "write_summary"]


@pytest.fixture
def task(tasks: Callable[[int], Task]) -> Task:
    """The 2D task, whose folds the first test evaluates for all."""
    return tasks(2)


@pytest.fixture
def own(tasks: Callable[[int], Task], tmp_path: Path) -> Task:
    """The 2D task with folds that the test may change."""
    return own_copy(tasks(2), tmp_path)


def only_all(task: Task) -> None:
    """Make of fold 0 a training on all cases, and of fold 1 one that has not ended."""
    (task.folds / "fold_1/model_final.pt").unlink()
    settings = (task.folds / "fold_0").rename(task.folds / "fold_all") / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"fold": "all"}))


def own_copy(shared: Task, folder: Path) -> Task:
    task = Task.__new__(Task)
    vars(task).update(vars(shared))
    task.folds = shared.copy_to(folder / "folds")
    return task


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {name: read_raw(file, label=True).array for name, file in files_by_case(folder).items()}


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a folder but pictures of charts and the time of a report."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.name == "summary.json":
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key != "created"}
        elif file.is_file() and file.name != "report.html":
            found[name] = file.read_bytes()
    return found


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dims", [2, 3])
def test_from_trained_folds_to_the_report(
    dims: int, tasks: Callable[[int], Task], tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture
) -> None:
    task, out = own_copy(tasks(dims), tmp_path), tmp_path / "out"
    labels = task.new / "labels"
    assert main(task.words(out, "--labels", str(labels), "--samples", "2")) == 0
    assert runs == ["evaluating", "evaluating", "inference"]
    printed = capsys.readouterr().out
    assert "mini: folds 0, 1" in printed

    raw, cleaned = arrays(out / "predictions"), arrays(out / "postprocessed")
    assert list(raw) == list(cleaned) == NEW
    for folder in ("predictions", "postprocessed"):
        [run] = read_provenance(out / folder)
        assert sorted(run.predicted) == NEW and len(run.checkpoint) == 2 and not {*run.trained_on} & {*NEW}

    summary = json.loads((out / "summary.json").read_text())
    assert summary["folds"] == [0, 1] and summary["configuration"]["name"] == "mini"
    assert summary["held_out"]["cases"] == summary["rules"]["evidence"]["cases"] == HELD_OUT
    assert summary["no_rules"] is None
    changed = {name: int((raw[name] != cleaned[name]).sum()) for name in NEW}
    assert sum(change["voxels"] for change in summary["changed_voxels"]) >= sum(changed.values()) > 0
    for kind, maps in (("raw", raw), ("cleaned", cleaned)):
        expected = [dice(maps[name], read_raw(files_by_case(labels)[name], label=True).array, 3) for name in NEW]
        assert summary["predicted"][kind]["rim"]["dice"]["mean"] == pytest.approx(np.mean(expected))
    assert summary["predicted"]["cleaned"]["rim"]["dice"]["mean"] > summary["predicted"]["raw"]["rim"]["dice"]["mean"]
    assert all((out / file).exists() for file in summary["files"].values())
    drawn = json.loads((out / "report/summary.json").read_text())["figures"]["cases"]
    assert len(drawn) == 2

    again = tmp_path / "again"
    files = [INFERENCE, str(out / "configuration.json")]
    run_here([sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", str(files)] + [
        "--bundle_root", str(BUNDLE_ROOT), "--input_dir", str(task.new / "images"), "--output_dir", str(again)
    ])  # fmt: skip
    for name, predicted in arrays(again).items():
        assert np.array_equal(predicted, cleaned[name]), "the configuration predicts the same, cleaned"


def dice(predicted: np.ndarray, label: np.ndarray, value: int) -> float:
    a, b = predicted == value, label == value
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_what_is_there_is_taken(task: Task, tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    main(task.words(out, "--samples", "1"))
    before = times(out) | times(task.folds)
    runs.clear()
    capsys.readouterr()
    main(task.words(out, "--samples", "1"))
    assert runs == []
    changed = {path for path, time in (times(out) | times(task.folds)).items() if before.get(path) != time}
    small = {out / name for name in ("finish.json", "configuration.json", "summary.json")}
    assert changed == small | {path for path in before if "held_out" in path.parts}
    printed = capsys.readouterr().out
    for words in ("evaluated already", "determined already", "all are there already", "cleaned already", "drawn"):
        assert words in printed

    new = tmp_path / "images"
    shutil.copytree(task.new / "images", new)
    extra = next(new.iterdir())  # gets a twin of another name
    shutil.copy(extra, new / extra.name.replace("case_1", "case_9"))
    words = task.words(out, "--samples", "1")
    words[words.index("--input_dir") + 1] = str(new)
    main(words)
    assert runs == ["inference"] and len(arrays(out / "predictions")) == len(arrays(out / "postprocessed")) == 5

    values = read_raw(extra).array
    write_image(extra, values[:, ::-1].copy())
    with pytest.raises(UserError, match="holds predictions of other images: add --overwrite"):
        main(words)
    extra.unlink()
    with pytest.raises(UserError, match="holds predictions of other images: add --overwrite"):
        main(words)
    main([*words, "--overwrite"])
    assert len(arrays(out / "predictions")) == len(arrays(out / "postprocessed")) == 4


def test_killed_between_any_two_steps_the_same_command_goes_on(
    task: Task, tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = task.words(tmp_path / "out", "--samples", "0")
    for step in STEPS:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(command, step, kill)
            main(words)
    main(words)
    assert runs.count("inference") == 1 and runs.count("evaluating") in (0, 2)
    main(task.words(tmp_path / "whole", "--samples", "0"))
    ours, whole = contents(tmp_path / "out"), contents(tmp_path / "whole")
    for file in (ours, whole):
        file["configuration.json"] = file["configuration.json"].replace(b"/whole/", b"/out/")
    assert ours == whole


def kill(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_a_prediction_that_failed_midway_goes_on(
    task: Task, tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fail_after_two(command: list[str], what: str) -> None:
        run_here(command)
        for name in NEW[2:]:
            files_by_case(out / "predictions")[name].unlink()
        raise UserError("the prediction did not finish")

    with monkeypatch.context() as patch, pytest.raises(UserError):
        patch.setattr(steps, "run_program", fail_after_two)
        main(task.words(out, "--samples", "0"))
    before = times(out / "predictions")
    main(task.words(out, "--samples", "0"))
    after = times(out / "predictions")
    assert all(after[path] == before[path] for path in before if path.name != "predictions.json")
    assert list(arrays(out / "postprocessed")) == NEW


def test_other_weights_are_noticed(own: Task, tmp_path: Path, runs: list[str]) -> None:
    out = tmp_path / "out"
    main(own.words(out, "--samples", "0"))
    before = arrays(out / "predictions")
    shutil.copy(own.folds / "fold_1/model.pt", own.folds / "fold_0/model.pt")
    kept = contents(out)
    runs.clear()
    with pytest.raises(UserError, match="holds predictions of other weights: add --overwrite to replace them, or give"):
        main(own.words(out, "--samples", "0"))
    assert contents(out) == kept and runs == [], "nothing was done before it was asked"
    main(own.words(out, "--samples", "0", "--overwrite"))
    assert runs == ["evaluating", "inference"]
    assert any((before[name] != now).any() for name, now in arrays(out / "predictions").items())
    with pytest.raises(UserError, match="holds predictions of other settings"):
        main(own.words(out, "--samples", "0", "--keep_largest", "true"))


def test_one_fold_has_too_few_cases_for_rules(
    task: Task, tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture
) -> None:
    main(task.words(tmp_path / "out", "--samples", "1", "--fold", "1"))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["folds"] == [1] and summary["rules"] is None and summary["changed_voxels"] == []
    assert "no rules: 6 held-out case(s) are too few to learn from; 10 are asked for" in capsys.readouterr().out
    raw, cleaned = arrays(tmp_path / "out/predictions"), arrays(tmp_path / "out/postprocessed")
    assert all(np.array_equal(raw[name], cleaned[name]) for name in NEW)
    assert json.loads((tmp_path / "out/configuration.json").read_text())["postprocessing_rules"] == "none"
    assert runs[-1] == "inference"


def test_a_training_on_all_cases_is_predicted_with(own: Task, tmp_path: Path, runs: list[str]) -> None:
    only_all(own)
    main(own.words(tmp_path / "out", "--samples", "0"))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert runs == ["inference"] and summary["folds"] == ["all"] and summary["held_out"] is None


def test_which_folds_are_taken_is_said(
    own: Task, tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture
) -> None:
    (own.folds / "fold_1/model_final.pt").unlink()
    with pytest.raises(
        UserError, match=r"fold 1 of mini is not trained: .* has no fold_1/model_final\.pt; train first"
    ):
        main(own.words(tmp_path / "out", "--fold", "1"))
    main(own.words(tmp_path / "out", "--samples", "0"))
    printed = capsys.readouterr().out
    assert "mini: fold 0 in" in printed and "the training of fold 1 has not ended, and it is left out" in printed
    (own.folds / "fold_0/model_final.pt").unlink()
    with pytest.raises(UserError, match=r"no fold of mini is trained: .* name the folder .* with --folds_dir"):
        main(own.words(tmp_path / "other"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--init_filters", "16"], "fold 0 in .* was trained with init_filters 8: give that again, or another --folds"),
        (["--postprocessing_rules", "none"], "--postprocessing_rules: this command sets it itself"),
        (["--evaluator#amp", "false"], "--evaluator#amp: only whole settings"),
        (["--no_such_id", "3"], "--no_such_id: no config file defines the id"),
        (["--fold", "7"], "fold 7 of mini is not trained"),
        (["--checkpoint", "a.pt"], "--checkpoint: "),
        (["--labels", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_anything(
    more: list[str], message: str, task: Task, tmp_path: Path, runs: list[str]
) -> None:
    with pytest.raises(UserError, match=message):
        main(task.words(tmp_path / "out", *more))
    assert runs == [] and not (tmp_path / "out").exists()


def test_labels_of_all_images_are_asked_for_first(task: Task, tmp_path: Path, runs: list[str]) -> None:
    labels = shutil.copytree(task.new / "labels", tmp_path / "labels")
    (labels / "case_13.png").unlink()
    with pytest.raises(UserError, match="labels has no label of case_13: leave --labels out"):
        main(task.words(tmp_path / "out", "--labels", str(labels)))
    assert runs == []


@pytest.mark.parametrize("name", ["predictions/case_12.png", "postprocessed/mine.txt", "summary.json", "report/a.html"])
def test_files_of_others_are_kept(name: str, task: Task, tmp_path: Path, runs: list[str]) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="would be replaced, and nothing says that it may be lost"):
        main(task.words(tmp_path / "out"))
    assert mine.read_text() == "mine" and runs == []


def test_places_that_results_must_not_go_to(task: Task, tmp_path: Path, runs: list[str]) -> None:
    with pytest.raises(UserError, match="is the folder of a training"):
        main(task.words(task.folds / "fold_0"))
    with pytest.raises(UserError, match="would lie among images or labels that are read"):
        main(task.words(task.new / "images"))
    with pytest.raises(UserError, match="holds the images or labels of a data set"):
        main(task.words(task.data / "imagesTr"))
    with pytest.raises(UserError, match="MONAI reads # as ::"):
        main(task.words(tmp_path / "out#2"))
    assert runs == [] and not (tmp_path / "out#2").exists()


def test_as_a_program(own: Task, tmp_path: Path) -> None:
    """With a run of its own, whose end ends the command with one line."""
    files = str([TRAIN, str(own.overlay)])
    words = ["--config_file", files, "--folds_dir", str(own.folds), "--output_dir", str(tmp_path / "out")]
    only_all(own)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "case.png").write_bytes(b"no picture")
    call = [sys.executable, "-m", "scripts.finish", *words, "--input_dir", str(broken)]
    done = subprocess.run(call, cwd=BUNDLE_ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "case.png: cannot be read as an image" in done.stdout, done.stdout
    assert done.stderr.rstrip().endswith(
        "error: the prediction did not finish (its message stands above); once that is put right, the same command "
        "goes on from here"
    )


def test_one_image_without_labels(task: Task, tmp_path: Path, runs: list[str]) -> None:
    words = task.words(tmp_path / "out", "--samples", "5")
    words[words.index("--input_dir") + 1] = str(task.new / "images/case_14_0000.png")
    main(words)
    assert list(arrays(tmp_path / "out/postprocessed")) == ["case_14"]
    predicted = json.loads((tmp_path / "out/summary.json").read_text())["predicted"]
    assert predicted["cases"] == 1 and predicted["units"] == {"area_px": "px"}, "sizes, since there are no labels"


def test_files_of_others_among_ours_are_kept(task: Task, tmp_path: Path, runs: list[str]) -> None:
    main(task.words(tmp_path / "out", "--samples", "0"))
    mine = tmp_path / "out/predictions/note.txt"
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"note\.txt would be replaced"):
        main(task.words(tmp_path / "out", "--samples", "0", "--keep_largest", "true", "--overwrite"))
    assert mine.read_text() == "mine" and list(arrays(tmp_path / "out/predictions")) == NEW
