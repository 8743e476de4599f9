"""What a run logs for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ignite.engine import Engine

from scripts.engines.handlers import EpochLog


def test_a_line_replaces_that_of_its_epoch_and_later_ones(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path), Engine(lambda *_: None), {"b": 2, "a": 1})
    assert log.names == ["a", "b"]
    for epoch, loss in ((1, 0.5), (2, 0.4), (3, 0.3), (2, 0.35)):
        log._write({"epoch": epoch, "loss": loss, "dice": {"a": math.nan}})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.35)]
    assert lines[0]["dice"] == {"a": None}
