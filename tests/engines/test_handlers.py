"""What a run logs, for programs and for people."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
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


def test_a_jump_of_the_loss_is_said_and_noise_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EpochLog(str(tmp_path), Engine(lambda *_: None), {"a": 1})
    with caplog.at_level(logging.WARNING, logger="lightm_unet"):
        for loss in (1.4, 0.5, 0.18, 0.3, 0.02, 0.2):
            log._warn_of_a_jump(loss)
        assert not caplog.records
        log._warn_of_a_jump(0.9)
    assert "the loss jumped to 0.9, it was down to 0.02" in caplog.text and "--learning_rate" in caplog.text
