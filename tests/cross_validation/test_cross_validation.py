"""Cross-validation: what it runs, what it leaves alone, and what it puts together."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from fold_cases import TRAIN, short_run
from generators import hard_case, write_nnunet
from threads import threads

from scripts.common.errors import UserError
from scripts.cross_validation import running
from scripts.cross_validation.__main__ import main
from scripts.cross_validation.folds import EVALUATION, Settings
from scripts.engines.provenance import check_held_out, read_provenance

SPLITS = [{"train": ["gap_0", "gap_1"], "val": ["gap_2", "gap_3"]}, {"train": ["gap_2"], "val": ["gap_0", "gap_1"]}]
TINY = {
    "init_filters": 8,
    "epochs": 2,
    "iterations_per_epoch": 2,
    "batch_size": 1,
    "patch_size": [16, 16, 16],
    "labels": {"kidney": 1, "cyst": 5},
    "overlap": 0.25,
    "tta": "false",
    "device": "cpu",
    "num_workers": 0,
}


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(SPLITS))
    return path


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny tensors: a second thread only waits, here and in the processes that are started."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with threads(1):
        yield


def words(**options: Any) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_folds_from_data_set_to_scores(tmp_path: Path, split_file: Path, capfd: pytest.CaptureFixture) -> None:
    data = write_nnunet(tmp_path / "data", hard_case("label_gap", 4))
    options = TINY | {"dataset_dir": data, "splits": split_file, "cache_dir": tmp_path / "cache"}
    command = ["--config_file", str(TRAIN), *words(**options, output_dir=tmp_path / "run", keep_largest="true")]
    together = tmp_path / "run/cross_validation"

    assert main([*command, "--fold", "0"]) == 0
    assert (tmp_path / "run/fold_0/evaluation/metrics.json").is_file()
    assert not (tmp_path / "run/fold_1").exists() and not together.exists()

    interrupt_after_an_epoch(tmp_path / "run/fold_1", {name: str(value) for name, value in options.items()})
    before = files_of(tmp_path / "run/fold_0")
    assert main(command) == 0
    assert files_of(tmp_path / "run/fold_0") == before, "a finished fold was touched"
    assert "fold 0: trained already" in (printed := capfd.readouterr().out) and "fold 1: resuming" in printed
    assert "resuming after epoch 1 of 2" in (tmp_path / "run/fold_1/training.log").read_text()

    with (together / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"], row["fold"]) for row in rows] == [
        (f"gap_{i}", name, str(int(i < 2))) for i in range(4) for name in ("kidney", "cyst")
    ]
    assert json.loads((together / "metrics.json").read_text())["cases"] == 4
    assert {path.name for path in (together / "predictions").iterdir()} == {
        "predictions.json", *(f"gap_{i}.nii.gz" for i in range(4))
    }  # fmt: skip
    assert set(np.unique(nib.load(together / "predictions/gap_0.nii.gz").dataobj)) <= {0, 1, 5}
    runs = read_provenance(together / "predictions")
    assert [(run.fold, run.trained_on, run.predicted) for run in runs] == [
        (fold, split["train"], split["val"]) for fold, split in enumerate(SPLITS)
    ]
    check_held_out(together / "predictions", [f"gap_{i}" for i in range(4)])

    before = files_of(tmp_path / "run/fold_1")
    recorded = json.loads((tmp_path / "run/fold_1/evaluation/metrics.json").read_text())["settings"]
    assert recorded["tta"] == "false" and recorded["overlap"] == 0.25 and recorded["postprocessing_rules"] == "none"
    assert main(command) == 0
    assert files_of(tmp_path / "run/fold_1") == before
    assert "fold 1: evaluated already" in capfd.readouterr().out

    longer = ["--config_file", str(TRAIN), *words(**options | {"epochs": 3}, output_dir=tmp_path / "run")]
    assert main([*longer, "--fold", "1"]) == 0
    assert f"fold 1: training on to 3 epochs in {tmp_path / 'run/fold_1'}" in capfd.readouterr().out
    log = (tmp_path / "run/fold_1/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2, 3]
    after = files_of(tmp_path / "run/fold_1")
    changed = {path.name: after[path] != before[path] for path in before}
    assert changed["model_final.pt"]
    assert changed["metrics.json"] == changed["model.pt"], "evaluated again, unless the best weights stayed"


def interrupt_after_an_epoch(folder: Path, options: dict[str, str]) -> None:
    """What is left of a fold that was killed in its second epoch."""
    settings = options | {"epochs": 1, "labels": TINY["labels"], "patch_size": TINY["patch_size"]}
    settings |= {name: TINY[name] for name in TINY if isinstance(TINY[name], (int, float)) and name != "epochs"}
    root = str(TRAIN.parents[1])
    monai.bundle.run("training", config_file=str(TRAIN), bundle_root=root, output_dir=str(folder), fold=1, **settings)
    (folder / "model_final.pt").unlink()


def test_each_run_gets_its_own_ids(tmp_path: Path, split_file: Path) -> None:
    given = ["--output_dir", str(tmp_path), "--splits", str(split_file), "--tta", "false"]
    settings = Settings([str(TRAIN)], [*given, "--keep_largest=true", "--evaluator#amp", "false"])
    assert settings.count() == 2
    fold = settings.fold(1)
    assert fold.folder == tmp_path / "fold_1"
    training, evaluation = settings.training(fold), settings.evaluation(fold)
    assert "--keep_largest=true" not in training and "--evaluator#amp" not in training and "--resume" not in training
    assert "--keep_largest=true" in evaluation and "--evaluator#amp" in evaluation
    for command in (training, evaluation):
        assert command.count("--output_dir") == 1
        assert command[command.index("--output_dir") + 1] == str(fold.folder)
        assert command[command.index("--tta") + 1] == "false"
    assert evaluation[evaluation.index("--postprocessing_rules") + 1] == "none", "rules are learned from raw ones"
    fold.folder.mkdir()
    (fold.folder / "checkpoint.pt").touch()
    assert "--resume" in settings.training(fold)


@pytest.mark.parametrize("better", [True, False])
def test_a_finished_fold_trains_on_when_asked_for_more_epochs(
    better: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    short_run(tmp_path / "fold_0")
    commands = []

    def run(command: list[str], what: str) -> None:
        commands.append(command)
        if better:
            (tmp_path / "fold_0/model.pt").write_text("better")

    monkeypatch.setattr(running, "run_program", run)
    given = ["--config_file", str(TRAIN), "--output_dir", str(tmp_path), "--fold", "0"]
    for epochs in ("1", "2"):
        main([*given, "--epochs", epochs])
        assert commands == [] and "fold 0: trained already" in capsys.readouterr().out
    main([*given, "--epochs", "3"])
    training = commands[0]
    assert training[training.index("--resume") + 1] == "true" and training[training.index("--epochs") + 1] == "3"
    assert f"fold 0: training on to 3 epochs in {tmp_path / 'fold_0'}" in capsys.readouterr().out
    assert [command[4] for command in commands] == (["training", "evaluating"] if better else ["training"])


def test_a_trained_fold_without_log_or_checkpoint(tmp_path: Path) -> None:
    fold = Settings([str(TRAIN)], ["--output_dir", str(tmp_path), "--epochs", "3"]).fold(0)
    short_run(fold.folder)
    assert not fold.trained
    (fold.folder / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"fold 0 has fewer than 3 epochs, and without .*checkpoint\.pt it cannot"):
        main(["--config_file", str(TRAIN), "--output_dir", str(tmp_path), "--epochs", "3", "--fold", "0"])
    (fold.folder / "log.jsonl").unlink()
    assert fold.trained, "nobody can tell how long it was trained"


def test_by_default_the_folds_lie_where_training_puts_them() -> None:
    settings = Settings([str(TRAIN)], [])
    assert settings.fold(3).folder == TRAIN.parents[1] / "output/hippocampus/fold_3"
    assert settings.count() == 5


@pytest.mark.parametrize("option", ["--resume true", "--fold=1", "--checkpoint model.pt", "--predictions_dir x"])
def test_what_it_sets_itself_is_refused(option: str) -> None:
    with pytest.raises(UserError, match="cross-validation sets it itself"):
        Settings([str(TRAIN)], option.split())


def test_config_files_that_are_no_list_are_refused() -> None:
    with pytest.raises(UserError, match=r"--config_file a\.json b\.json: write several values as one list"):
        main(["--config_file", "a.json", "b.json"])


def test_configs_that_cannot_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        Settings([str(tmp_path / "none.json")], [])
    with pytest.raises(UserError, match=r"evaluate\.json has no 'training'"):
        Settings([EVALUATION], [])
    with pytest.raises(UserError, match="epochs must be a whole number of 1 or more, not many"):
        Settings([str(TRAIN)], ["--epochs", "many"])


@pytest.mark.parametrize("which", ["--fold 2", "--folds 0 2", "--fold -1"])
def test_an_unknown_fold_is_refused_before_anything_runs(tmp_path: Path, split_file: Path, which: str) -> None:
    command = ["--config_file", str(TRAIN), *which.split(), *words(splits=split_file, output_dir=tmp_path / "run")]
    with pytest.raises(UserError, match=r"fold -?\d does not exist: there are 2, 0 to 1"):
        main(command)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["--fold", "--folds"])
def test_no_fold_is_all(which: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--config_file", str(TRAIN), which, "all"])
    assert f"{which}: 'all' holds nothing out: for that run training itself" in capsys.readouterr().err


def test_a_fold_that_was_trained_otherwise_is_refused(tmp_path: Path, split_file: Path) -> None:
    files, folder = [str(TRAIN)], tmp_path / "fold_0"
    fold = Settings(files, ["--output_dir", str(tmp_path), "--splits", str(split_file)]).fold(0)
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"init_filters": 8, "slice_axis": None}))
    options = ["--output_dir", str(tmp_path), "--slice_axis", "null", "--init_filters"]
    Settings(files, [*options, "8"]).check(fold)
    with pytest.raises(UserError, match="was trained with init_filters 8: give that again"):
        Settings(files, [*options, "16"]).check(fold)
    trained = {"spacing": [1, 1, 2], "labels": {"kidney": 1, "cyst": 5}, "fold": 0}
    (folder / "settings.json").write_text(json.dumps(trained))
    given = [*options[:-1], "--labels", "{'kidney': 1, 'cyst': 5}", "--spacing"]
    Settings(files, [*given, "[1.0,1.0,2.0]"]).check(fold)
    with pytest.raises(UserError, match=r"was trained with spacing \[1, 1, 2\]: give that again"):
        Settings(files, [*given, "[1,1,1]"]).check(fold)
    with pytest.raises(UserError, match=r"was trained with spacing \[1, 1, 2\], labels \{'kidney': 1, 'cyst': 5\}"):
        Settings(files, options[:-1]).check(fold)  # the overlay's, not the command line's
    (folder / "settings.json").write_text('{"fold": 3}')
    with pytest.raises(UserError, match="was trained with fold 3"):
        Settings(files, options[:-1]).check(fold)
    (folder / "settings.json").unlink()
    (folder / "cases.json").write_text(json.dumps({"training": [], "validation": ["another"]}))
    with pytest.raises(UserError, match="was trained with another --splits"):
        Settings(files, ["--output_dir", str(tmp_path), "--splits", str(split_file)]).check(fold)
