"""The rows of the final table, and the files that say more."""

from __future__ import annotations

import json
import textwrap
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 5  # failures of a kind that are printed as they happen; results.jsonl holds them all


@dataclass
class Row:
    """One line of the table.

    Attributes:
        part, what: which part of the campaign, and of that which command or format.
        trials: how many were made.
        failures: kind of failure -> what happened each time; none where all is well.
        note: what else is worth knowing, such as why it was skipped.
    """

    part: str
    what: str
    trials: int = 0
    failures: dict[str, list[str]] = field(default_factory=dict)
    note: str = ""

    def fail(self, kind: str, detail: str) -> None:
        """Note a failure."""
        self.failures.setdefault(kind, []).append(detail)

    @property
    def failed(self) -> int:
        return sum(map(len, self.failures.values()))


class Journal:
    """Collects rows, and writes every trial as a line of JSON, so that a campaign that is stopped leaves its results.

    Args:
        folder: of results.jsonl, rows.jsonl and the table.
        loud: print each failure as it happens.
    """

    def __init__(self, folder: Path, loud: bool = True) -> None:
        self.folder, self.loud = folder, loud
        self.rows: list[Row] = []
        folder.mkdir(parents=True, exist_ok=True)

    def row(self, part: str, what: str) -> Row:
        """Begin a row."""
        self.rows.append(Row(part, what))
        return self.rows[-1]

    def trial(self, row: Row, name: str, problems: dict[str, str], **facts: Any) -> None:
        """Count a trial with its problems (kind -> detail), and write it down."""
        row.trials += 1
        for kind, detail in problems.items():
            row.fail(kind, f"{name}: {detail}")
            if self.loud and len(row.failures[kind]) <= SHOWN:
                print(f"FAILED  {row.part}, {row.what}, {name}: {kind}: {detail[-400:]}", flush=True)
        self._write("results.jsonl", {"part": row.part, "what": row.what, "trial": name, **problems, **facts})

    def end(self) -> str:
        """Write rows.jsonl and table.txt, and return the table."""
        for row in self.rows:
            self._write("rows.jsonl", asdict(row))
        table = format_table(self.rows)
        (self.folder / "table.txt").write_text(table + "\n", encoding="utf-8")
        return table

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": time.strftime("%H:%M:%S"), **content}, default=str) + "\n")


def format_table(rows: list[Row]) -> str:
    """Part, what, trials, failures, and what they are."""
    lines = [f"{'part':<13}{'what':<28}{'trials':>7}{'failed':>8}  notes"]
    lines.append("-" * 100)
    for row in rows:
        counts = [f"{len(details)} {kind}" for kind, details in row.failures.items()]
        note = "; ".join([*counts, *filter(None, [row.note])])
        wrapped = textwrap.wrap(note, 64) or [""]
        lines.append(f"{row.part:<13}{row.what:<28}{row.trials:>7}{row.failed:>8}  {wrapped[0]}".rstrip())
        lines += [" " * 58 + line for line in wrapped[1:]]
    total, failed = sum(row.trials for row in rows), sum(row.failed for row in rows)
    lines += ["-" * 100, f"{'all':<41}{total:>7}{failed:>8}"]
    return "\n".join(lines)
