"""Which of several configurations is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finish_cases import Task

from scripts.common.errors import UserError
from scripts.common.run_folder import ScoresFolder
from scripts.finish.__main__ import main
from scripts.finish.comparison import compare, format_comparison
from scripts.images.task import Task as Labels


class Stub:
    """A configuration of so many parameters."""

    def __init__(self, folder: Path, name: str, parameters: int) -> None:
        self.name, self.task = name, Labels({"a": 1, "b": 2}, {"both": ["a", "b"]})
        self.weights = [folder / f"{name}.pt"]
        folder.mkdir(exist_ok=True)
        torch.save({"weight": torch.zeros(parameters)}, self.weights[0])


def scores(folder: Path, dice: dict[str, float | None]) -> ScoresFolder:
    """Class a has these scores, b is 0.2 worse where it is defined; a region that does not count."""
    target = ScoresFolder(folder)
    rows = []
    for case, value in dice.items():
        rows += [{"case": case, "class": "a", "dice": value}, {"case": case, "class": "both", "dice": 0.0}]
        rows.append({"case": case, "class": "b", "dice": None if value is None else value - 0.2})
    folder.mkdir()
    target.metrics.write_text(json.dumps({"per_case": rows}))
    return target


def test_the_best_is_taken_unless_a_smaller_one_is_as_good(tmp_path: Path) -> None:
    big, small, poor = (Stub(tmp_path, *pair) for pair in (("big", 100), ("small", 10), ("poor", 1)))
    found = {
        "big": scores(tmp_path / "big", {"x": 0.8, "y": 0.7, "z": 0.6, "only": 0.1}),
        "small": scores(tmp_path / "small", {"x": 0.7, "y": 0.75, "z": 0.62, "none": None}),
        "poor": scores(tmp_path / "poor", {"x": 0.5, "y": 0.4, "z": 0.3}),
    }
    result = compare([poor, big, small], found)
    assert result["cases"] == 3 and result["best"] == "big" and result["chosen"] == "small"
    assert [row["name"] for row in result["configurations"]] == ["big", "small", "poor"]
    first, second, third = result["configurations"]
    assert first["dice"] == pytest.approx(0.6) and first["difference"] == first["standard_error"] == 0
    # differences -0.1, 0.05, 0.02: mean -0.01, SD 0.0794, divided by the root of 3
    assert second["difference"] == pytest.approx(-0.01) and second["standard_error"] == pytest.approx(
        0.045826, abs=1e-6
    )
    assert third["difference"] == pytest.approx(-0.3) and third["standard_error"] == pytest.approx(0)
    assert "taken: small, the smallest within the standard error of the best" in format_comparison(result)
    assert compare([poor, big], found)["chosen"] == "big", "smaller, and worse"
    found["poor"] = scores(tmp_path / "other", {"u": 0.5, "x": 0.5})
    with pytest.raises(UserError, match=r"1 case\(s\) were held out by each of big, poor"):
        compare([big, poor], found)


def test_two_configurations_from_the_command_line(
    tasks: Callable[[int], Task], tmp_path: Path, runs: list[str], capsys: pytest.CaptureFixture
) -> None:
    """The other has the weights of fold 0 in both folds, and predicts without overlap."""
    first = tasks(2)
    other = Task(tmp_path, 2, "other", dataset_dir=str(first.data), splits=str(first.splits), overlap=0)
    shutil.copytree(first.folds, other.folds)
    for fold in ("fold_0", "fold_1"):
        settings = other.folds / fold / "settings.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"name": "other"}))
        (other.folds / fold / "model.pt").write_bytes((first.folds / "fold_0/model.pt").read_bytes())
    words = first.words(tmp_path / "out", "--samples", "0")
    both = [*words, *other.words(tmp_path / "out")[:4]]
    main(both)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    table = summary["comparison"]
    assert table["cases"] == 12 and {row["name"] for row in table["configurations"]} == {"mini", "other"}
    assert summary["configuration"]["name"] == table["chosen"]
    assert f"taken: {table['chosen']}" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out/held_out").iterdir()} == {"mini", "other"}
    before = runs.count("evaluating")
    main(both)
    assert runs.count("evaluating") == before and runs.count("inference") == 1
    with pytest.raises(UserError, match="2 configurations are called mini"):
        main([*words, *words[:4]])
    with pytest.raises(UserError, match="2 --config_file and 1 --folds_dir: give one for each"):
        main([*words, *words[:2]])
