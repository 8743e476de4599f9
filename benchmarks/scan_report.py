"""The tables of the scan benchmark, from what its JSON file holds."""

from __future__ import annotations

from typing import Any

from harness import LABELS, Row, environment_line, in_one_cell, markdown_table, number, ratio
from scan_candidates import MAMBAPY, MODES, RAW


def report(content: dict[str, Any]) -> str:
    """The tables of one run, from what its JSON file holds."""
    rows = [row for row in content["rows"] if row["kind"] == "table"]
    settings = content["settings"]
    graphs = "; each call replayed as a CUDA graph" if settings.get("cuda_graph") else ""
    head = f"{environment_line(content['environment'])}{graphs}; medians of {settings['rounds']} rounds"
    parts = [f"{head}. Two figures in a cell: forward / forward + backward; of errors: largest / root mean square."]
    for shape, dtype in dict.fromkeys((row["shape"], row["dtype"]) for row in rows):
        group = [row for row in rows if (row["shape"], row["dtype"]) == (shape, dtype)]
        parts.append(f"**{_title(shape)}, {dtype}**\n\n{shape_table(group)}")
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        if table := ratio_table([row for row in rows if row["dtype"] == dtype]):
            parts.append(f"**Times as fast as {baseline_name(rows)}, forward / forward + backward**\n\n{table}")
    return "\n\n".join(parts)


def _title(shape: str) -> str:
    return " x ".join(f"{int(n):,}" for n in shape.split("x"))


def baseline_name(rows: list[Row]) -> str:
    """The package that the backends are compared with; empty where none ran."""
    return next((row["backend"] for row in rows if row["backend"] in (RAW, MAMBAPY) and measured(row)), "")


def ratio_table(rows: list[Row]) -> str:
    """All shapes of one dtype: how many times as fast as the baseline each backend is. Empty without a baseline."""
    baselines = {row["shape"]: row for row in reversed(rows) if row["backend"] in (RAW, MAMBAPY) and measured(row)}
    names = list(dict.fromkeys(row["backend"] for row in rows if row["backend"] not in (RAW, MAMBAPY)))
    if not baselines:
        return ""
    lines = []
    for shape, baseline in reversed(baselines.items()):
        found = {row["backend"]: row for row in rows if row["shape"] == shape}
        cells = [in_one_cell([ratio(baseline, found.get(name, {}), mode) for mode in MODES], ".2f") for name in names]
        lines.append([_title(shape), *cells])
    return markdown_table([rows[0]["dtype"], *(LABELS.get(n, n) for n in names)], lines)


HEADERS = (
    "backend",
    "forward ms",
    "forward + backward ms",
    "GB/s",
    "peak MiB",
    "error of y",
    "error of gradients",
)


def shape_table(rows: list[Row]) -> str:
    """One line a candidate; the last column compares it with the baseline, if that one ran."""
    baseline = next((row for name in (RAW, MAMBAPY) for row in rows if row["backend"] == name and measured(row)), None)
    headers = [*HEADERS, *([f"times as fast as {baseline['backend']}"] if baseline else [])]
    lines, notes = [], []
    for row in rows:
        name = LABELS.get(row["backend"], row["backend"])
        if "failed" in row:
            notes.append(f"{name} failed: {row['failed']}")
        if not measured(row):
            lines += [[name, "failed", *["-"] * (len(headers) - 2)]] if "failed" in row else []
            continue
        errors = row.get("errors", {})
        gradients = [error for name, error in errors.items() if name != "y"]
        cells = [
            name,
            *(number(row.get(f"{mode}_ms"), 3) for mode in MODES),
            " / ".join(number(bandwidth(row, mode), 3) for mode in MODES),
            in_one_cell([_mebibytes(row, mode) for mode in MODES], ".0f"),
            in_one_cell(errors.get("y", (None, None)), ".1e"),
            in_one_cell([max(e[i] for e in gradients) if gradients else None for i in range(2)], ".1e"),
        ]
        if baseline:
            cells.append(in_one_cell([ratio(baseline, row, mode) for mode in MODES], ".2f"))
        lines.append(cells)
    return "\n\n".join([markdown_table(headers, lines), *notes])


def measured(row: Row) -> bool:
    return any(f"{mode}_ms" in row for mode in MODES)


def bandwidth(row: Row, mode: str) -> float | None:
    """GB/s."""
    return row["bytes"][mode] / row[f"{mode}_ms"] / 1e6 if f"{mode}_ms" in row else None


def _mebibytes(row: Row, mode: str) -> float | None:
    peak = row.get("peak_bytes", {}).get(mode)
    return None if peak is None else peak / 2**20
