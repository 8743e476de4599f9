"""A run that goes on from its checkpoint.pt, or does not."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import UserError
from scripts.engines import checkpoints
from scripts.engines.checkpoints import SaveCheckpoints
from scripts.engines.optimizers import decay_matrices
from scripts.engines.resuming import restore_run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"weight": torch.tensor([[math.inf]])}}, r"NaN or infinite values in 1 .* \(network\.weight\)"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.tensor(math.nan)}}}}, r"\(optimizer\.state\.0\.exp_avg\)"),
        ({"epoch": None}, r"checkpoint\.pt is not the checkpoint of a run"),
    ],
)
def test_a_run_does_not_go_on_from_what_is_no_number(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    net = torch.nn.Linear(1, 1)
    content = {"network": net.state_dict(), "optimizer": {}, "epoch": 1} | change
    torch.save({key: value for key, value in content.items() if value is not None}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=message + r".*start another"):
        restore_run(Engine(lambda *_: None), Engine(lambda *_: None), net, None, str(tmp_path), True)  # type: ignore


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", 3),
        ("optimizer", []),
        ("scaler", "half"),
        ("epoch", -1),
        ("epoch", True),
        ("ema_pseudo_dice", "good"),
        ("ema_pseudo_dice", math.inf),
        ("best_scores", "good"),
        ("best_scores", {"epoch": 1}),
        ("best_scores", {"epoch": 1, "ema_pseudo_dice": 0.5, "dice": {"a": "good"}}),
    ],
)
def test_a_run_does_not_go_on_from_what_no_run_wrote(tmp_path: Path, key: str, value: Any) -> None:
    net = torch.nn.Linear(1, 1)
    content = {"network": net.state_dict(), "optimizer": {}, "epoch": 1}
    content |= dict.fromkeys(["scaler", "ema_pseudo_dice", "best_scores"]) | {key: value}
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=rf"checkpoint\.pt .* its {key} cannot be used: start another run"):
        restore_run(Engine(lambda *_: None), Engine(lambda *_: None), net, None, str(tmp_path), True)  # type: ignore


@pytest.mark.parametrize("content", [{"epoch": "1"}, {"epoch": 1}, None])
def test_weights_are_no_state_of_a_training(content: dict[str, object] | None, tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)
    state = net.state_dict() if content is None else {"network": net.state_dict(), **content}
    torch.save(state, tmp_path / "checkpoint.pt")
    engine = Engine(lambda *_: None)
    with pytest.raises(UserError, match=r"checkpoint\.pt is not the checkpoint of a run: start another run"):
        restore_run(engine, engine, net, None, str(tmp_path), True)  # type: ignore[arg-type]


def test_a_run_starts_after_one_that_failed_in_this_process(tmp_path: Path) -> None:
    """Trainer or validation: ignite's engines would return at once."""

    def process(engine: Engine, batch: int) -> None:
        ran.append(batch)
        if fail:
            raise MemoryError

    ran: list[int] = []
    trainer, evaluator = Engine(process), Engine(process)
    for fail in (True, False):
        restore_run(trainer, evaluator, torch.nn.Linear(1, 1), None, str(tmp_path), False)  # type: ignore[arg-type]
        for engine in (trainer, evaluator):
            engine.state.epoch = 0
            with pytest.raises(MemoryError) if fail else nullcontext():
                engine.run([7], max_epochs=1)
    assert ran == [7] * 4


def test_a_kill_between_checkpoint_and_best_weights_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """checkpoint.pt comes first: a model.pt without one is never an interrupted run's."""
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    net = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(decay_matrices(net, 0.3))
    saver = SaveCheckpoints(str(tmp_path), net, optimizer, evaluator, {"a": 1})
    trainer.state.best_scores = trainer.scaler = None
    trainer.state.epoch = evaluator.state.epoch = 1
    evaluator.state.metrics, evaluator.state.ema_pseudo_dice = {"ema_pseudo_dice": 0.5, "dice_a": 0.5}, 0.5

    def kill(path: Path, state: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save_weights", kill)
        saver._end_epoch(trainer)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    trainer.state.max_epochs, trainer.optimizer = 2, optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    restore_run(trainer, evaluator, net, schedule, str(tmp_path), True)  # type: ignore[arg-type]
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(best[name], value) for name, value in net.state_dict().items())


def test_a_run_of_another_optimiser_does_not_go_on(tmp_path: Path) -> None:
    """That of version 0.4 had all parameters in one group."""
    net = torch.nn.Linear(1, 1)
    before, now = torch.optim.AdamW(net.parameters()), torch.optim.AdamW(decay_matrices(net, 0.3))
    content = {"network": net.state_dict(), "optimizer": before.state_dict(), "epoch": 1}
    content |= dict.fromkeys(["scaler", "ema_pseudo_dice", "best_scores"])
    torch.save(content, tmp_path / "checkpoint.pt")
    trainer = SimpleNamespace(optimizer=now, state=SimpleNamespace(max_epochs=2))
    scheduler = torch.optim.lr_scheduler.LambdaLR(now, lambda epoch: 1.0)
    with pytest.raises(UserError, match="its optimiser is not this config's, as after an update"):
        restore_run(trainer, Engine(lambda *_: None), net, scheduler, str(tmp_path), True)  # type: ignore[arg-type]


def test_a_run_goes_on_with_this_devices_form_of_the_optimiser(tmp_path: Path) -> None:
    """Such as one of an older version, or of a CPU, on a GPU."""
    net = torch.nn.Linear(2, 1)
    before = torch.optim.AdamW(decay_matrices(net, 0.3), lr=0.5)
    net(torch.ones(1, 2)).sum().backward()
    before.step()
    content = {"network": net.state_dict(), "optimizer": before.state_dict(), "epoch": 1}
    content |= dict.fromkeys(["scaler", "ema_pseudo_dice", "best_scores"])
    torch.save(content, tmp_path / "checkpoint.pt")
    now = torch.optim.AdamW(decay_matrices(net, 0.2), lr=0.25, fused=True)
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    trainer.state.max_epochs, trainer.optimizer = 2, now
    schedule = torch.optim.lr_scheduler.LambdaLR(now, lambda epoch: 1.0)
    restore_run(trainer, evaluator, net, schedule, str(tmp_path), True)  # type: ignore[arg-type]
    assert [group["fused"] for group in now.param_groups] == [True, True]
    assert [group["weight_decay"] for group in now.param_groups] == [0.2, 0] and now.param_groups[0]["lr"] == 0.25
    now.step()
    assert now.state_dict()["state"][0]["step"] == 2
