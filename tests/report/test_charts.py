"""Charts over all cases."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure

from scripts.report.charts import draw_distribution
from scripts.report.style import DARK, LIGHT


def test_the_axis_of_a_ratio_has_no_tick_above_1() -> None:
    figure = Figure()
    draw_distribution(figure, DARK, {"prediction": {"lung": [0.885, 0.92, 0.95, 0.96, 0.984]}}, "Precision", "")
    ticks = figure.axes[0].get_yticks()
    assert 0.95 < max(ticks) <= 1.000001 and min(ticks) > 0.8


@pytest.mark.parametrize(
    "names",
    [
        ["anterior", "posterior"],
        ["Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible"],
        ["submandibular_gland_left", "submandibular_gland_right", "WIDE NAMES IN CAPITALS"],
        [f"class {i}" for i in range(12)],
        [f"vertebra_lumbar_{i}" for i in range(25)],
        [f"organ number {i}" for i in range(117)],
    ],
)
def test_names_of_classes_do_not_cover_each_other(names: list[str]) -> None:
    figure = Figure(figsize=(3.7, 2.6), layout="constrained")
    draw_distribution(figure, LIGHT, {"prediction": {name: [0.5, 0.9] for name in names}}, "Dice", "")
    LIGHT.apply(figure)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    places = [label.get_transform().transform(label.get_position())[0] for label in labels]
    angle = math.radians(labels[0].get_rotation())
    for left, right, here, there in zip(labels, labels[1:], places, places[1:]):
        if angle:  # rows of text side by side, at right angles to their direction
            assert (there - here) * math.sin(angle) > 0.8 * labels[0].get_fontsize() * figure.dpi / 72
        else:
            assert left.get_window_extent().x1 < right.get_window_extent().x0
    shown = [label.get_text() for label in labels]
    assert len(set(shown)) == len(shown) >= min(len(names), 20)
