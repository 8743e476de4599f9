"""What a run saves as it goes."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from ignite.engine import Engine

from scripts.engines.checkpoints import SaveCheckpoints


def test_the_best_epoch_after_undefined_scores(tmp_path: Path) -> None:
    """As long as no score is defined the latest weights are kept, then the best."""
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    net = torch.nn.Linear(1, 1)
    saver = SaveCheckpoints(str(tmp_path), net, torch.optim.SGD(net.parameters(), 1.0), evaluator, {"a": 1})
    trainer.state.best_scores = trainer.scaler = None
    kept = []
    for epoch, score in enumerate([math.nan, math.nan, 0.5, 0.4, 0.6], start=1):
        trainer.state.epoch = epoch
        evaluator.state.epoch, evaluator.state.ema_pseudo_dice = epoch, score
        evaluator.state.metrics = {"ema_pseudo_dice": score, "dice_a": score}
        torch.nn.init.constant_(net.bias, epoch)
        saver._end_epoch(trainer)
        kept.append(torch.load(tmp_path / "model.pt", weights_only=True)["bias"].item())
    assert kept == [1, 2, 3, 3, 5]
