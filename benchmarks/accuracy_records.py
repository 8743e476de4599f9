"""The records of the accuracy benchmark: one file a row of its tables, results/accuracy/TASK/NAME.json.

A file says which row it holds (ROW) and lists its runs, one a fold and seed. It is found by what it says, so that it
may be given another name.
"""

from __future__ import annotations

import fcntl
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import read_json

RESULTS = Path(__file__).resolve().parent / "results" / "accuracy"
ROW = ("task", "network", "variant", "budget")
LONGEST_NAME = 40  # characters; then come the budget and, if need be, a number

Record = dict[str, Any]  # one run with its row's entries


def load_records(folder: Path = RESULTS) -> list[Record]:
    """Every run of every row. Raises SystemExit: a file holds something else."""
    return [record for path in sorted(folder.glob("*/[!.]*.json")) for record in load_row(path)]


def load_row(path: Path) -> list[Record]:
    """The runs of one file. Raises SystemExit: it cannot be read, or holds something else."""
    content = read_json(path)
    if not isinstance(content, dict) or not {*ROW, "runs"} <= set(content):
        raise SystemExit(f"{path}: holds no row of the accuracy tables")
    row = {key: content[key] for key in ROW}
    return [row | run for run in content["runs"]]


def row_name(record: Record) -> str:
    """What the tables call the runs of one network and variant."""
    return f"{record['network']} {record['variant']}".strip()


def find_run(folder: Path, wanted: Mapping[str, Any]) -> Path | None:
    """The file that holds the run with this row, fold and seed."""
    for path in _files(folder, wanted["task"]):
        if any(all(run[key] == wanted[key] for key in (*ROW, "fold", "seed")) for run in load_row(path)):
            return path
    return None


def save_run(folder: Path, record: Record) -> Path:
    """Put a run into its row's file, in place of the same fold and seed if they are there; the other runs stay.

    Returns:
        The file, a new one if there is none of this row.
    """
    from scripts.common.readable_json import write_json

    row = {key: record[key] for key in ROW}
    with _locked(folder / _plain(record["task"])) as task_folder:  # trainings side by side end in the same row
        files = {path: load_row(path) for path in _files(folder, record["task"])}
        path = next((path for path, runs in files.items() if runs and row.items() <= runs[0].items()), None)
        path = path or _free_name(task_folder, record)
        runs = [run for run in files.get(path, []) if _fold_and_seed(run) != _fold_and_seed(record)]
        runs = sorted([*runs, record], key=_fold_and_seed)
        write_json(path, row | {"runs": [{key: run[key] for key in run if key not in ROW} for run in runs]})
    return path


def _files(folder: Path, task: str) -> list[Path]:
    return sorted((folder / _plain(task)).glob("[!.]*.json"))


def _fold_and_seed(run: Record) -> tuple[str, int]:
    return run["fold"], run["seed"]


def _free_name(folder: Path, record: Record) -> Path:
    words = textwrap.wrap(_plain(row_name(record)).replace("-", " "), LONGEST_NAME)[0].split()
    stem = "-".join([*words, record["budget"]])
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def _plain(text: str) -> str:
    """Letters, digits, "_" and "." of a text, the rest as single hyphens."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """The folder, which is made, while no other process holds its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(handle)  # which also unlocks
