"""What a run logs, for programs and for people."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.common.errors import UserError
from scripts.engines.handlers import EpochLog, OutputAsList, TensorBoard, ValidationScores


def test_a_line_replaces_that_of_its_epoch_and_later_ones(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path), Engine(lambda *_: None), {"b": 2, "a": 1})
    assert log.names == ["a", "b"]
    for epoch, loss in ((1, 0.5), (2, 0.4), (3, 0.3), (2, 0.35)):
        log._write({"epoch": epoch, "loss": loss, "dice": {"a": math.nan}})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.35)]
    assert lines[0]["dice"] == {"a": None}


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"epoch": "1", "loss": 1}', '{"epoch": 1, "loss": "x"}'])
def test_a_broken_log_names_its_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"epoch": 1, "loss": null}}\n{line}\n')
    with pytest.raises(UserError, match=r"^line 2 of .*log\.jsonl is not that of an epoch: remove the line"):
        EpochLog(str(tmp_path), Engine(lambda *_: None), {"a": 1})._write({"epoch": 3, "loss": 1})
    assert (tmp_path / "log.jsonl").read_text().endswith(f"{line}\n")


def train(folder: Path, losses: Sequence[float], done: int = 0) -> None:
    """Epochs of one iteration with these losses, the first ``done`` of which were trained before."""
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(losses[engine.state.epoch - 1])})
    engine.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    OutputAsList().attach(engine)
    EpochLog(str(folder), Engine(lambda *_: None), {"a": 1}).attach(engine)
    engine.load_state_dict({"epoch": done, "max_epochs": len(losses), "epoch_length": 1})
    engine.run([{"image": torch.zeros(1)}])


@pytest.mark.parametrize("stopped_after", [0, 5])
def test_a_jump_of_the_loss_is_said_and_noise_is_not(
    stopped_after: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = [1.4, 0.5, 0.18, 0.3, 0.02, 0.2]
    with caplog.at_level(logging.WARNING, logger="lightm_unet"):
        if stopped_after:
            train(tmp_path, losses[:stopped_after])
        train(tmp_path, losses, done=stopped_after)
        assert not caplog.records
        train(tmp_path, [*losses, 0.9], done=len(losses))
    assert "the loss jumped to 0.9, it was down to 0.02" in caplog.text and "--learning_rate" in caplog.text


def test_a_loss_that_is_no_number_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lightm_unet"):
        train(tmp_path, [0.5, math.nan])
    assert [record.message[:28] for record in caplog.records] == ["the loss is not a number: st"]


def test_an_undefined_score_leaves_the_moving_average_as_it_was() -> None:
    """A held-out case without foreground, for which none is predicted, has no pseudo-Dice."""
    evaluator = Engine(lambda *_: None)
    ValidationScores({"a": 1}).attach(evaluator)
    averages = []
    for pseudo_dice in (math.nan, 0.5, math.nan, 0.6):
        evaluator.state.metric_details = {"val_mean_dice": torch.tensor([[pseudo_dice]])}
        evaluator.state.metrics = {"pseudo_dice": torch.tensor([pseudo_dice])}
        evaluator.fire_event(Events.EPOCH_COMPLETED)
        averages.append(evaluator.state.metrics["ema_pseudo_dice"])
    assert math.isnan(averages[0]) and averages[1:] == pytest.approx([0.5, 0.5, 0.51])


def test_tensorboard_writes_nothing_until_there_is_something(tmp_path: Path) -> None:
    folder = tmp_path / "run/tensorboard"
    writer = TensorBoard(str(folder))
    assert not hasattr(writer, "__anything__") and not folder.exists()
    writer.add_scalar("loss", 0.5, 1)
    writer.flush()
    assert list(folder.iterdir())
