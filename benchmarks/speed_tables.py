"""The tables of time and memory in the documents, from the committed records, by the printers of their benchmarks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from harness import Row, environment_line, markdown_table, number

RESULTS = Path(__file__).resolve().parent / "results"
Content = dict[str, Any]


def record(name: str) -> Content:
    """What benchmarks/results/NAME.json holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def machine(name: str) -> str:
    """What the record was measured on, and the note that it carries, if any."""
    content = record(name)
    note = f" {content['note']}" if "note" in content else ""
    return f"`results/{name}.json`: {environment_line(content['environment'])}.{note}"


def rows_with(name: str, **key: str) -> list[Row]:
    """The rows of a record that have all of these entries. Raises ValueError: there is none."""
    found = [row for row in record(name)["rows"] if key.items() <= row.items()]
    if not found:
        raise ValueError(f"no row of results/{name}.json has {key}")
    return found


def scan_ratios(name: str, dtype: str) -> str:
    from scan_report import ratio_table

    return ratio_table(rows_with(name, kind="table", dtype=dtype))


def scan_shape(name: str, shape: str) -> str:
    from scan_report import shape_table

    return shape_table(rows_with(name, kind="table", dtype="float32", shape=shape))


def networks(name: str, shape: str) -> str:
    from networks import shape_table

    return shape_table(rows_with(name, shape=shape))


def milliseconds(name: str, shape: str, network: str, mode: str) -> str:
    """Of one pass of a network."""
    (row,) = rows_with(name, shape=shape, network=network)
    return number(row[f"{mode}_ms"], 3)


# float32 and TF32 from networks.py, bfloat16 from recompute.py, which measures that only.
PRECISIONS = {
    "float32": ("networks_h200_float32", "lightm_unet:cuda"),
    "TF32 products": ("networks_h200", "lightm_unet:cuda"),
    "bfloat16": ("recompute_h200", "lightm_unet:recompute_activations=true"),
}


def precisions() -> str:
    """A train step of LightM-UNet alone, an input a row: ms and GiB by precision."""
    body = []
    for shape in ("2x3x512x512", "2x1x80x128x128"):
        cells = [shape]
        for name, network in PRECISIONS.values():
            (row,) = rows_with(name, shape=shape, network=network)
            cells.append(f"{number(row['train_ms'], 3)} / {row['peak_bytes']['train'] / 2**30:.2f}")
        body.append(cells)
    return markdown_table(["input", *(f"{name}, ms / GiB" for name in PRECISIONS)], body)


def table_of(benchmark: str, name: str) -> str:
    """What the benchmark itself prints of a record."""
    return importlib.import_module(benchmark).table(record(name))


def postprocessing(job: str) -> str:
    from postprocessing import job_table

    return job_table(record("postprocessing_cpu")["rows"], job)


def large_case() -> str:
    from large_case import table

    return table(record("large_case_cpu")["rows"])


def memory_lines() -> str:
    """What planning takes for a train step with 32 filters, and where that was measured."""
    from memory import MEMORY_JSON, lines_table

    content = json.loads(MEMORY_JSON.read_text(encoding="utf-8"))
    return f"{lines_table(content['fits'])}\n\n{content['source'].partition(': ')[2]}."
