"""The page: one HTML file with everything in it, that opens from disk and asks no network for anything."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

__all__ = ["Chart", "Figures", "metric_name", "page_of"]

CARD_CLASSES = 6  # from this many classes on, one card gives their mean
HERE = Path(__file__).parent
NAMES = {"dice": "Dice", "iou": "IoU", "nsd": "Surface Dice", "hd95": "HD95", "assd": "ASSD"}
RESULT_NAMES = {"prediction": "Prediction", "postprocessed": "Postprocessed"}


@dataclass(frozen=True)
class Chart:
    """One chart in its light and its dark form, and what it shows, for those who cannot see it."""

    light: Path
    dark: Path
    text: str


@dataclass(frozen=True)
class Figures:
    """All figures of a report.

    Args:
        distributions, postprocessing, training: charts.
        panels: case -> its PNGs (panel, and the montage for volumes), worst case first.
    """

    distributions: Sequence[Chart]
    postprocessing: Sequence[Chart]
    training: Sequence[Chart]
    panels: Mapping[str, Sequence[Path]]


def page_of(summary: Mapping[str, Any], figures: Figures) -> str:
    """The whole page.

    Args:
        summary: see summary.summary_of, with "title" and "created".
    """
    sections = {
        "scores": ("Scores" if _scored(summary) else "Sizes", _scores(summary)),
        "distributions": ("Distributions", _charts(figures.distributions)),
        "postprocessing": ("Postprocessing", _postprocessing(summary, figures.postprocessing)),
        "training": ("Training", _charts(figures.training)),
        "cases": ("Cases", _cases(summary)),
        "gallery": (_gallery_title(summary), _gallery(summary, figures.panels)),
    }
    filled = {name: part for name, part in sections.items() if part[1]}
    blocks = [
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>\n{content}</section>'
        for name, (title, content) in filled.items()
    ]
    return Template(_text("page.html")).substitute(
        title=escape(summary["title"]),
        subtitle=escape(f"{summary['cases']} cases, made {summary['created']}"),
        navigation=" ".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in filled.items()),
        sections="\n".join([_cards(summary) + _notes(summary["notes"]), *blocks]),
        footer=_footer(summary),
        style=_text("page.css"),
        script=_text("page.js"),
        data=_data(summary, figures.panels),
    )


def metric_name(metric: str, unit: str = "") -> str:
    """A metric's key as people write it: hd95 -> HD95, volume_error_ml -> Volume error."""
    words = metric.split("_")
    if words[-1] in (unit, "percent"):
        words = words[:-1]
    return NAMES.get(metric) or " ".join(words).capitalize()


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _scored(summary: Mapping[str, Any]) -> bool:
    return "dice" in summary["units"]


def _final(summary: Mapping[str, Any]) -> str:
    """The result that counts: the postprocessed one, where there is one."""
    return list(summary["results"])[-1]


def _number(value: float, unit: str, signed: bool = False) -> str:
    if math.isnan(value):
        return "–"
    size = abs(value)
    digits = 3 if not unit else 0 if size >= 100 else 1 if size >= 10 else 2
    sign = "" if not round(size, digits) else "−" if value < 0 else "+" if signed else ""
    return f"{sign}{size:,.{digits}f}"


def _cards(summary: Mapping[str, Any]) -> str:
    cards = [_card("Cases", str(summary["cases"])), _card("Classes", str(len(summary["classes"])))]
    scores = summary["results"][_final(summary)]
    metric = next(iter(summary["units"]))
    unit = summary["units"][metric]
    name = metric_name(metric, unit) + (f", {unit}" if unit else "")
    if len(summary["classes"]) < CARD_CLASSES:
        cards += [_class_card(f"{name}, {label}", scores[label][metric], unit) for label in summary["classes"]]
    else:
        means = [scores[label][metric]["mean"] for label in summary["classes"]]
        defined = [mean for mean in means if not math.isnan(mean)]
        mean = sum(defined) / len(defined) if defined else math.nan
        cards.append(_card(f"{name}, mean of classes", _number(mean, unit)))
    which = " after postprocessing" if _final(summary) == "postprocessed" else ""
    caption = f'<p class="quiet">Mean ± SD over cases{which}.</p>'
    return f'<dl class="cards">{"".join(cards)}</dl>{caption}'


def _class_card(title: str, statistics: Mapping[str, float], unit: str) -> str:
    sd = "" if math.isnan(statistics["sd"]) else f"± {_number(statistics['sd'], unit)}"
    return _card(title, _number(statistics["mean"], unit), sd, _undefined(statistics))


def _card(title: str, value: str, small: str = "", below: str = "") -> str:
    small = f" <small>{escape(small)}</small>" if small else ""
    below = f'<div class="quiet">{escape(below)}</div>' if below else ""
    value = f'<div class="value">{escape(value)}{small}</div>'
    return f'<div class="card"><dt>{escape(title)}</dt><dd>{value}{below}</dd></div>'


def _undefined(statistics: Mapping[str, float]) -> str:
    missing = statistics["cases"] - statistics["defined"]
    return f"undefined in {missing} of {statistics['cases']}" if missing else ""


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _scores(summary: Mapping[str, Any]) -> str:
    units = summary["units"]
    heads = [metric_name(metric, unit) + (f", {unit}" if unit else "") for metric, unit in units.items()]
    tables = []
    for kind, scores in summary["results"].items():
        rows = [
            [name, *(_score_cell(own[metric], unit) for metric, unit in units.items())] for name, own in scores.items()
        ]
        tables.append(_table(f"{RESULT_NAMES[kind]}: mean ± SD", ["Class", *heads], rows))
    return f'<div class="stack">{"".join(tables)}</div>'


def _score_cell(statistics: Mapping[str, float], unit: str) -> str:
    sd = "" if math.isnan(statistics["sd"]) else f"± {_number(statistics['sd'], unit)}"
    below = [f"<small>{escape(line)}</small>" for line in (sd, _undefined(statistics)) if line]
    return escape(_number(statistics["mean"], unit)) + "".join(below)


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the rows; the other cells are HTML."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in heads)
    lines = [
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for first, *cells in rows
    ]
    return _scroll(
        caption,
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>",
    )


def _scroll(title: str, table: str) -> str:
    """A table too wide for the screen moves in its own frame, which the keyboard reaches."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">{table}</div>'


def _postprocessing(summary: Mapping[str, Any], charts: Sequence[Chart]) -> str:
    found = summary["postprocessing"]
    if not found:
        return ""
    cards = "".join(_card(kind.capitalize(), str(n)) for kind, n in found["cases"].items() if n or kind != "undefined")
    heads = ["Class and metric", "Before", "After", "Mean gain", "Improved", "Degraded", "Unchanged", "Undefined"]
    first, *others = next(iter(found["gain"].values()))
    tables = _table("Dice", heads, _gain_rows(summary, [first]))
    more = _table("All other metrics", heads, _gain_rows(summary, others))
    intro = "<p>Cases by their mean Dice. A positive gain is better, also where the metric itself falls.</p>"
    return (
        f'{intro}<dl class="cards">{cards}</dl><div class="split">{_charts(charts)}{tables}</div>'
        f"<details><summary>All other metrics</summary>{more}</details>"
    )


def _gain_rows(summary: Mapping[str, Any], metrics: Sequence[str]) -> list[list[str]]:
    rows = []
    for name, own in summary["postprocessing"]["gain"].items():
        for metric in metrics:
            unit, gain = summary["units"][metric], own[metric]
            ends = [_number(summary["results"][kind][name][metric]["mean"], unit) for kind in RESULT_NAMES]
            kind = "" if math.isnan(gain["mean"]) or not gain["mean"] else "good" if gain["mean"] > 0 else "bad"
            shown = f'<span class="{kind}">{_number(gain["mean"], unit, signed=True)}</span>'
            title = f"{name}, {metric_name(metric, unit)}" + (f", {unit}" if unit else "")
            rows.append(
                [title, *ends, shown, *(str(gain[k]) for k in ("improved", "degraded", "unchanged", "undefined"))]
            )
    return rows


def _charts(charts: Sequence[Chart]) -> str:
    return f'<div class="charts">{"".join(map(_chart, charts))}</div>' if charts else ""


def _chart(chart: Chart) -> str:
    # Style sheets choose one of the two: a <picture> would print its dark form on white paper.
    images = [
        f'<img class="{theme}" alt="{escape(chart.text)}" src="{_png(path)}">'
        for theme, path in (("light", chart.light), ("dark", chart.dark))
    ]
    return f'<figure class="chart">{"".join(images)}</figure>'


def _cases(summary: Mapping[str, Any]) -> str:
    metrics = "".join(
        f'<option value="{i}">{escape(metric_name(metric, unit) + (f", {unit}" if unit else ""))}</option>'
        for i, (metric, unit) in enumerate(summary["units"].items())
    )
    controls = [
        '<label>Name contains <input id="filter" type="search" autocomplete="off"></label>',
        f'<label>Metric <select id="metric">{metrics}</select></label>',
    ]
    if len(summary["results"]) > 1:
        options = '<option value="postprocessed">postprocessed</option><option value="prediction">prediction</option>'
        options += '<option value="gain">gain</option>' if summary["postprocessing"] else ""
        controls.append(f'<label>Result <select id="result">{options}</select></label>')
    if summary["postprocessing"]:
        options = "".join(f"<option>{change}</option>" for change in ("improved", "degraded", "unchanged"))
        controls.append(
            f'<label>Mean Dice <select id="change"><option value="">all cases</option>{options}</select></label>'
        )
    table = _scroll("Cases", '<table id="table"><thead></thead><tbody></tbody></table>')
    return (
        f'<div class="controls">{"".join(controls)}</div>{table}'
        '<p class="quiet"><span id="count" role="status"></span> '
        '<button id="more" hidden>Show all</button></p>'
        "<noscript><p>The table needs JavaScript; summary.json holds the same numbers.</p></noscript>"
    )


def _gallery_title(summary: Mapping[str, Any]) -> str:
    return "Worst cases first" if _scored(summary) else "Smallest predictions first"


def _gallery(summary: Mapping[str, Any], panels: Mapping[str, Sequence[Path]]) -> str:
    if not panels:
        return ""
    rows = {row["case"]: row for row in summary["per_case"]}
    shown = f'<p class="quiet">{len(panels)} of {summary["cases"]} cases.'
    articles = [_case(summary, rows[name], i, paths) for i, (name, paths) in enumerate(panels.items())]
    return f"{shown} Choose a picture to enlarge it.</p>" + "".join(articles)


def _case(summary: Mapping[str, Any], row: Mapping[str, Any], index: int, paths: Sequence[Path]) -> str:
    name = row["case"]
    panel, *montage = [_webp(path) for path in paths]
    more = ""
    if montage:
        picture = _panel(montage[0], f"Slices through {name}")
        more = f"<details><summary>All slices of {escape(name)}</summary>{picture}</details>"
    facts = f'<span class="quiet">{escape(_facts(summary, row))}</span>'
    picture = _panel(panel, f"Planes of {name}: image, label maps, errors and contours. {_facts(summary, row)}")
    head = f"<header><h3>{escape(name)}</h3>{facts}</header>"
    return f'<article class="case" id="case-{index}">{head}{picture}{more}</article>'


def _facts(summary: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The first metric, class by class, of the final result."""
    metric, unit = next(iter(summary["units"].items()))
    scores = row[_final(summary)]
    parts = [f"{name} {_number(scores[name][metric], unit)}" for name in summary["classes"]][:12]
    return f"{metric_name(metric, unit)}{f' ({unit})' if unit else ''}: {', '.join(parts)}"


def _panel(source: str, text: str) -> str:
    image = f'<img alt="{escape(text)}" src="{source}">'
    return f'<button class="panel" aria-label="Enlarge: {escape(text)}">{image}</button>'


def _footer(summary: Mapping[str, Any]) -> str:
    parts = []
    if _scored(summary):
        unit = summary["units"]["hd95"]
        parts.append(
            f"Surface Dice allows {summary['tolerance']:g} {unit}. A score is undefined where its class is in neither "
            "map; distances also where it is in one of them only. Undefined scores are counted and are in no mean."
        )
    parts.append("summary.json beside this page holds every number; figures/ holds the pictures.")
    return "".join(f"<p>{escape(part)}</p>" for part in parts)


def _data(summary: Mapping[str, Any], panels: Mapping[str, Any]) -> str:
    """What the table needs, as JSON that cannot end its <script>."""
    units, names = summary["units"], [*summary["classes"], *summary["regions"]]
    figures = {name: f"case-{i}" for i, name in enumerate(panels)}
    judged = set(next(iter(summary["postprocessing"]["gain"].values()))) if summary["postprocessing"] else set()
    cases = [
        {
            "name": row["case"],
            "figure": figures.get(row["case"]),
            "change": row.get("change"),
            "scores": [
                [[_short(row[kind][name][metric]) for name in names] for metric in units] for kind in summary["results"]
            ],
        }
        for row in summary["per_case"]
    ]
    metrics = [{"key": metric, "unit": unit, "judged": metric in judged} for metric, unit in units.items()]
    data = {"metrics": metrics, "columns": names, "classes": len(summary["classes"]), "cases": cases}
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _short(value: float) -> float | None:
    """Six significant digits are enough for a table."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _png(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _webp(path: Path) -> str:
    """A panel for the page, smaller than its PNG: lossless where that is smallest, as it is with few large voxels."""
    with Image.open(path) as image:
        encoded = [_encode(image.convert("RGB"), **options) for options in ({"lossless": True}, {"quality": 90})]
    return "data:image/webp;base64," + base64.b64encode(min(encoded, key=len)).decode()


def _encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()
