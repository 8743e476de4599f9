"""The campaign's judges see what they are to see, and a short form of it finds nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import crash_points, refusals, server, whole
from .table import Journal, Row, format_table

REPOSITORY = Path(__file__).parents[2]
PARTS = ("flips", "bad_inputs", "faults", "kills")  # the others need minutes, or root


def test_short_campaign(tmp_path: Path) -> None:
    """Some trials of each part of `make torture`; seed 2 begins with kills of short commands."""
    environment = os.environ | {"TIME": "12", "SEED": "2", "OUT": str(tmp_path), "PARTS": ",".join(PARTS)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["part"] for row in rows} == {part.replace("_", " ").replace("flips", "flipped bits") for part in PARTS}
    assert all(row["trials"] or row["note"] for row in rows), rows


def child(act: object, setup: server.Setup) -> int:
    """What a forked child ends with that acts after a setup."""
    pid = os.fork()
    if pid == 0:
        setup()
        act()  # type: ignore[operator]
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_dies_right_before_or_after_an_event(tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "first").mkdir()
        (tmp_path / "second").mkdir()

    assert child(act, crash_points.die([tmp_path], 1, "before")) == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]
    (tmp_path / "first").rmdir()
    assert child(act, crash_points.die([tmp_path], 1, "after")) == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_events_are_recorded_by_kind_and_name(tmp_path: Path) -> None:
    folder, events = tmp_path / "folder", tmp_path / "events"
    folder.mkdir()

    def act() -> None:
        (folder / "part").write_text("text")
        (folder / "part").replace(folder / "file")
        (folder / "file").read_text()

    assert child(act, crash_points.record([folder], events)) == 0
    assert events.read_text().splitlines() == ["open part", "replace part"]


def test_a_child_dies_in_the_midst_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert child(lambda: file.write_bytes(bytes(1000)), crash_points.die_at_size(300)) == -signal.SIGXFSZ
    assert file.stat().st_size == 300


@pytest.mark.parametrize("name", ["model.pt", "log.jsonl", "settings.json", "metrics.csv", "report.html"])
def test_half_a_file_is_seen(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "model.pt":
        torch.save({"weight": torch.zeros(99)}, file)
    else:
        lines = {"log.jsonl": '{"a": 1}\n{"a": 2}\n', "settings.json": '{"a": 1}\n', "metrics.csv": "a,b\n1,2\n"}
        file.write_text(lines.get(name, "<html></html>\n"))
    assert whole.broken_files(tmp_path) == []
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    assert [line.split(":")[0] for line in whole.broken_files(tmp_path)] == [name]


def test_leftovers_are_temporary_names_and_only_the_outermost(tmp_path: Path) -> None:
    (tmp_path / "in.part.d").mkdir()
    (tmp_path / "in.part.d/.file").touch()
    (tmp_path / "whole.json").write_text("{}")
    assert [path.name for path in whole.leftovers(tmp_path)] == ["in.part.d"]


@pytest.mark.parametrize(
    ("output", "status", "kind"),
    [
        ("error: --epochs must be a number\n", 1, None),
        ("usage: x\nx: error: argument --epochs: must be a number\n", 2, None),
        ("09:00:00 ERROR lightm_unet: 1 image(s) could not be predicted:\n  a.png: --epochs\n", 1, None),
        ("error: it must be a number\n", 1, "names neither file nor key"),
        ("error: --epochs must be\na number\n", 1, "several lines"),
        ("Traceback (most recent call last):\nValueError: --epochs\n", 1, "traceback"),
        ("fine\n", 0, "accepted"),
        ("fine\n", 1, "no message"),
        ("", server.TIMED_OUT, "does not end"),
    ],
)
def test_refusals_are_judged(output: str, status: int, kind: str | None) -> None:
    problems = refusals.judge(server.Ended(status, output, 0.0), ("epochs",))
    assert list(problems) == ([] if kind is None else [kind])


def test_table_counts_failures_by_kind(tmp_path: Path) -> None:
    journal = Journal(tmp_path, loud=False)
    row = journal.row("kills", "training")
    journal.trial(row, "SIGKILL", {"corrupt": "model.pt"})
    journal.trial(row, "SIGTERM", {})
    assert (row.trials, row.failed) == (2, 1)
    table = format_table([*journal.rows, Row("power loss", "ext4", note="skipped: only root may mount")])
    assert "1 corrupt" in table and "skipped: only root may mount" in table
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
