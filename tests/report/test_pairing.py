"""Pairing of files by case name."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.report.pairing import pair_cases


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


def test_pairs_by_name_across_formats_and_channels(tmp_path: Path) -> None:
    predictions = folder(tmp_path / "p", "a.nii.gz", "b_0001.nii.gz", "a_probabilities.nii.gz")
    images = folder(tmp_path / "i", "a_0001.nii.gz", "a_0000.nii.gz", "b_0001.nii.gz", "c_0000.nii.gz")
    labels = folder(tmp_path / "l", "a.mha", "b_0001.nii")
    cases = pair_cases(predictions, images, labels, None)
    assert [case.name for case in cases] == ["a", "b_0001"]
    assert [path.name for path in cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [path.name for path in cases[1].images] == ["b_0001.nii.gz"]
    assert cases[0].label == labels / "a.mha"
    assert cases[0].postprocessed is None


def test_lists_every_name_that_does_not_pair(tmp_path: Path) -> None:
    predictions = folder(tmp_path / "p", "a.png", "b.png", "c.png")
    labels = folder(tmp_path / "l", "c.png", "d.png", "e.png")
    cleaned = folder(tmp_path / "c", "a.png", "b.png")
    with pytest.raises(UserError) as caught:
        pair_cases(predictions, None, labels, cleaned)
    message = str(caught.value)
    assert "2 prediction(s) without reference: a, b" in message
    assert "2 reference(s) without prediction; --subset leaves them out: d, e" in message
    assert "1 prediction(s) without postprocessed prediction: c" in message


def test_subset_leaves_references_out_but_no_predictions(tmp_path: Path) -> None:
    predictions = folder(tmp_path / "p", "a.png")
    labels = folder(tmp_path / "l", "a.png", "b.png")
    assert [case.name for case in pair_cases(predictions, None, labels, None, subset=True)] == ["a"]


@pytest.mark.parametrize(
    ("names", "message"), [(("a.png", "a.nii"), "both belong to the case"), ((), "holds no image")]
)
def test_refuses_ambiguous_and_empty_folders(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair_cases(folder(tmp_path / "p", *names), None, None, None)


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        pair_cases(tmp_path / "none", None, None, None)
