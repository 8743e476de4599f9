"""An evaluation keeps the scores of an earlier one that it would not write anew."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from scripts.common.errors import UserError
from scripts.engines.clean_start import run_clean
from scripts.engines.evaluation import SaveScores, check_evaluation_dir
from scripts.engines.provenance import Run, write_provenance
from scripts.engines.weights import weights_digest
from scripts.metrics import write_csv


def cases(names: str) -> list[dict[str, str]]:
    return [{"name": name, "image": f"{name}.nii.gz"} for name in names]


def test_scores_of_cases_that_are_left_out_are_kept(tmp_path: Path) -> None:
    check_evaluation_dir(str(tmp_path), cases("a"))
    rows = [{"case": case, "class": "lung", "dice": 1.0} for case in "abc"]
    (tmp_path / "metrics.json").write_text(json.dumps({"per_case": rows}))
    check_evaluation_dir(str(tmp_path), cases("abc"))
    check_evaluation_dir(str(tmp_path), cases("abcd"))
    with pytest.raises(UserError, match=r"scores of 2 case\(s\).*\(b, c\).*another --evaluation_dir"):
        check_evaluation_dir(str(tmp_path), cases("a"))  # as --limit_cases 1 does


def labelled(root: Path, *names: str) -> list[dict[str, str]]:
    """Cases of a data set in root/data, whose files are there."""
    for name in names:
        for kind in ("imagesTr", "labelsTr"):
            (root / "data" / kind).mkdir(parents=True, exist_ok=True)
            (root / "data" / kind / f"{name}.nii.gz").write_text(f"the user's {kind}")
    folders = {kind: root / "data" / f"{kind}sTr" for kind in ("image", "label")}
    return [{"name": name, **{kind: str(folders[kind] / f"{name}.nii.gz") for kind in folders}} for name in names]


@pytest.mark.parametrize("folder", ["data/labelsTr", "data/imagesTr", "data/imagesTr/new", "link"])
@pytest.mark.parametrize("option", ["evaluation_dir", "predictions_dir"])
def test_an_evaluation_never_writes_into_the_data_set(tmp_path: Path, option: str, folder: str) -> None:
    """As --predictions_dir DATASET/labelsTr once did, which replaced every label."""
    cases = labelled(tmp_path, "a", "b")
    (tmp_path / "link").symlink_to(tmp_path / "data/labelsTr")
    before = {path: path.read_text() for path in tmp_path.rglob("*.nii.gz")}
    places = {"evaluation_dir": str(tmp_path / "scores"), "predictions_dir": str(tmp_path / "scores/predictions")}
    with pytest.raises(UserError, match=f"--{option} "):
        check_evaluation_dir(cases=cases, **places | {option: str(tmp_path / folder)})
    assert before == {path: path.read_text() for path in tmp_path.rglob("*.nii.gz")}
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("file", ["metrics.csv", "metrics.json", "predictions/a.nii.gz"])
def test_files_that_no_evaluation_wrote_are_kept(tmp_path: Path, file: str) -> None:
    cases, folder = labelled(tmp_path, "a"), tmp_path / "scores"
    (folder / "predictions").mkdir(parents=True)
    (folder / file).write_text("the user's")
    with pytest.raises(UserError, match=f"{file} would be replaced"):
        check_evaluation_dir(str(folder), cases, str(folder / "predictions"))
    assert (folder / file).read_text() == "the user's"
    if "predictions" in file:  # once an evaluation wrote it, it may write it again
        write_provenance(folder / "predictions", Run("model.pt", 0, None, ["a"]))
        check_evaluation_dir(str(folder), cases, str(folder / "predictions"))


def test_an_evaluation_that_was_killed_between_its_two_files_is_done_again(tmp_path: Path) -> None:
    write_csv(tmp_path / "metrics.csv", [{"case": "a", "class": "lung", "dice": 1.0}])
    check_evaluation_dir(str(tmp_path), cases("a"))


def test_two_cases_whose_predictions_would_be_one_file(tmp_path: Path) -> None:
    cases = labelled(tmp_path, "a", "a_probabilities")
    with pytest.raises(UserError, match=r"would both be written into .*a_probabilities\.nii\.gz"):
        check_evaluation_dir(str(tmp_path / "scores"), cases, str(tmp_path / "scores/predictions"))


def test_scores_name_the_weights_that_made_them(tmp_path: Path) -> None:
    """As they were when the evaluation began: a training may replace them meanwhile."""
    weights = tmp_path / "model.pt"
    weights.write_text("first")
    digest = weights_digest(weights)
    scores = SaveScores(str(tmp_path / "evaluation"), {"lung": 1}, checkpoint=str(weights))
    engine = Engine(lambda *_: weights.write_text("second"))
    engine.add_event_handler(Events.STARTED, scores._start)
    engine.add_event_handler(Events.COMPLETED, scores._finish)
    engine.run([0])
    assert json.loads((tmp_path / "evaluation/metrics.json").read_text())["weights"] == [digest]
    assert digest != weights_digest(weights)


def test_an_evaluation_runs_after_one_that_failed() -> None:
    def process(engine: Engine, batch: int) -> None:
        ran.append(batch)
        if len(ran) == 1:
            raise MemoryError

    ran: list[int] = []
    engine = Engine(process)
    engine.run = partial(engine.run, [7], max_epochs=1)  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        run_clean(engine)  # type: ignore[arg-type]
    engine.state.epoch = 0
    run_clean(engine)  # type: ignore[arg-type]
    assert ran == [7, 7]
