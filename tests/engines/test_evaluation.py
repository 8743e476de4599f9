"""An evaluation keeps the scores of an earlier one that it would not write anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.engines.evaluation import check_evaluation_dir
from scripts.errors import UserError


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
