"""Charts over all cases."""

from __future__ import annotations

from matplotlib.figure import Figure

from scripts.reporting.charts import draw_distribution
from scripts.reporting.style import DARK


def test_the_axis_of_a_ratio_has_no_tick_above_1() -> None:
    figure = Figure()
    draw_distribution(figure, DARK, {"prediction": {"lung": [0.885, 0.92, 0.95, 0.96, 0.984]}}, "Precision", "")
    ticks = figure.axes[0].get_yticks()
    assert 0.95 < max(ticks) <= 1.000001 and min(ticks) > 0.8
