"""Which cases were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.engines.provenance import (
    Run,
    check_held_out,
    read_provenance,
    read_training_cases,
    record_predictions,
    write_provenance,
    write_training_cases,
)


def named(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "image": f"{name}_0000.nii.gz"} for name in names]


def test_from_training_to_the_check(tmp_path: Path) -> None:
    write_training_cases(tmp_path / "fold_0", 0, named("b", "a"), named("c"))
    checkpoint = tmp_path / "fold_0/model.pt"
    assert read_training_cases(checkpoint) == (0, ["a", "b"])
    record_predictions(tmp_path, str(checkpoint), [{"name": "c", "image": ["c_0000.nii.gz", "c_0001.nii.gz"]}])
    assert read_provenance(tmp_path) == [Run(str(checkpoint), 0, ["a", "b"], ["c"])]
    check_held_out(tmp_path, ["c"])
    write_provenance(tmp_path, Run("other.pt", 1, ["c"], ["a"]))
    check_held_out(tmp_path, ["a", "c"])
    write_provenance(tmp_path, Run("other.pt", 1, ["c"], ["c"]))
    assert [run.predicted for run in read_provenance(tmp_path)] == [["a"], ["c"]], "predicted anew by another model"
    for said in ({}, {"held_out": True}, {"trained_on": []}):
        with pytest.raises(UserError, match=r"was trained on 1 of the 2 cases in .*: c\. Predict held-out"):
            check_held_out(tmp_path, ["a", "c"], **said)


def test_what_the_pretrained_weights_have_seen_counts(tmp_path: Path) -> None:
    write_training_cases(tmp_path / "first", 0, named("b", "a"), named("c"))
    write_training_cases(tmp_path / "second", 1, named("b", "c"), named("a"), tmp_path / "first/model.pt")
    assert read_training_cases(tmp_path / "second/model.pt") == (1, ["a", "b", "c"])
    write_training_cases(tmp_path / "second", 1, named("b", "c"), named("a"), resume=True)
    assert read_training_cases(tmp_path / "second/model.pt") == (1, ["a", "b", "c"]), "also when it only goes on"
    unknown = tmp_path / "unknown/model.pt"  # weights from elsewhere: nothing says what they have seen
    write_training_cases(tmp_path / "fourth", 1, named("b"), named("a"), unknown)
    assert read_training_cases(tmp_path / "fourth/model.pt") == (1, None)
    record_predictions(tmp_path / "new", str(tmp_path / "fourth/model.pt"), named("a"))
    with pytest.raises(UserError, match="nothing says which cases the model"):
        check_held_out(tmp_path / "new", ["a"])
    write_training_cases(tmp_path / "third", 1, named("b", "c"), named("a"), None)
    assert read_training_cases(tmp_path / "third/model.pt") == (1, ["b", "c"])


def test_a_resumed_run_holds_out_the_same_cases(tmp_path: Path) -> None:
    """Else the best epoch would be chosen by cases that the run was trained on."""
    write_training_cases(tmp_path, 0, named("a", "b"), named("c"))
    with pytest.raises(UserError, match=r"held out other cases \(b, c\): resume it with .*--splits"):
        write_training_cases(tmp_path, 0, named("a", "c"), named("b"), resume=True)
    assert read_training_cases(tmp_path / "model.pt") == (0, ["a", "b"])


def test_an_ensemble_has_seen_what_each_has_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for fold, names in ((0, ["a"]), (1, ["b"])):
        write_training_cases(tmp_path / f"fold_{fold}", fold, named(*names), [])
    paths = [str(tmp_path / f"fold_{fold}/model.pt") for fold in (0, 1)]
    assert read_training_cases(f"[{paths[0]},{paths[1]}]") == (None, ["a", "b"])
    record_predictions(tmp_path / "new", paths, [{"image": "b.png"}])
    assert "was trained on 1 of these 1 cases (b)" in caplog.text
    with pytest.raises(UserError, match="trained on 1 of the 1 cases"):
        check_held_out(tmp_path / "new", ["b"])


def test_unknown_has_to_be_stated(tmp_path: Path) -> None:
    record_predictions(tmp_path, "elsewhere/model.pt", [{"image": "a.png"}])
    assert read_provenance(tmp_path)[0].trained_on is None and read_provenance(tmp_path / "none") is None
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"for 2 of 2 cases.*--held_out.*--trained_on FILE"):
            check_held_out(folder, ["a", "b"])
        check_held_out(folder, ["a", "b"], held_out=True)
        check_held_out(folder, ["a", "b"], trained_on=["z"])
        with pytest.raises(UserError, match="trained on 1 of the 2"):
            check_held_out(folder, ["a", "b"], trained_on=["b"])


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": [{"checkpoint": "a"}]}', '{"runs": 3}'])
def test_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(UserError, match=r"predictions.json"):
        read_provenance(tmp_path)
