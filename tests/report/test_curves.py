"""Reading of a run's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from scripts.report.curves import curve_charts, read_log
from scripts.report.style import DARK, LIGHT


def test_last_entry_of_an_epoch_counts_and_broken_lines_are_left_out(tmp_path: Path) -> None:
    entries = [{"epoch": 2, "loss": 1.0}, {"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]
    (tmp_path / "log.jsonl").write_text("\n".join([*map(json.dumps, entries), "[1]", '{"epoch": 3, "lo']))
    epochs, problem = read_log(tmp_path)
    assert [(entry["epoch"], entry["loss"]) for entry in epochs] == [(1, 3.0), (2, 2.0)]
    assert problem.startswith("2 line(s)")


@pytest.mark.parametrize("change", [{"epoch": float("nan")}, {"dice": 3}, {"dice": ["core"]}])
def test_an_entry_that_no_run_wrote_is_left_out(tmp_path: Path, change: dict[str, object]) -> None:
    entries = [{"epoch": 1, "dice": {"core": 0.5}}, {"epoch": 2, "dice": {"core": 0.5}} | change]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    epochs, problem = read_log(tmp_path)
    assert [entry["epoch"] for entry in epochs] == [1] and problem.startswith("1 line(s)")


def test_says_what_is_missing(tmp_path: Path) -> None:
    epochs, problem = read_log(tmp_path / "run")
    assert epochs == []
    assert "run/log.jsonl cannot be read" in problem
    (tmp_path / "log.jsonl").write_text("")
    assert "holds no epoch" in read_log(tmp_path)[1]


def test_draws_what_the_log_holds() -> None:
    epochs = [
        {"epoch": 1, "loss": 1.0, "lr": 0.1, "dice": None},
        {"epoch": 2, "loss": None, "lr": 0.01, "dice": {"$a$": 0.5, "_b": None}, "pseudo_dice": 0.4},
    ]
    charts = curve_charts(epochs)
    assert list(charts) == ["Loss", "Validation Dice", "Pseudo-Dice", "Learning rate"]
    for draw in charts.values():
        figure = Figure()
        draw(figure, DARK)
        assert figure.axes[0].lines


def test_ticks_are_whole_epochs_even_of_one_validation() -> None:
    figure = Figure()
    curve_charts([{"epoch": 4, "pseudo_dice": 0.2}])["Pseudo-Dice"](figure, DARK)
    ticks = figure.axes[0].get_xticks()
    assert 4 in ticks and all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("count", [5, 12])
def test_names_of_many_classes_stay_in_the_figure(count: int) -> None:
    names = [f"submandibular_gland_left_{i}" for i in range(count)]
    epochs = [{"epoch": e, "dice": dict.fromkeys(names, 0.5 + e / 100)} for e in range(1, 9)]
    figure = Figure(figsize=(3.7, 2.6), layout="constrained")
    curve_charts(epochs)["Validation Dice"](figure, LIGHT)
    figure.draw_without_rendering()
    (legend,) = [*figure.legends, *filter(None, [figure.axes[0].get_legend()])]
    box, shown = legend.get_window_extent(), [text.get_text() for text in legend.get_texts()]
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and len(set(shown)) == count
    assert count == 5 or not box.overlaps(figure.axes[0].get_window_extent())
