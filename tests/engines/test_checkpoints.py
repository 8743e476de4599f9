"""Loading and keeping weights, and the folders that hold them."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import UserError
from scripts.engines.checkpoints import (
    SaveCheckpoints,
    check_preparation,
    load_weights,
    open_run,
    restore_run,
    run_to_end,
)
from scripts.engines.optimizers import decay_matrices
from scripts.engines.pretrained import start_from
from scripts.networks import LightMUNet


def network(**options: str) -> LightMUNet:
    return LightMUNet(2, 1, 2, 8, **options)


def test_weights_of_another_scan_order_are_refused(tmp_path: Path) -> None:
    """Their shapes fit: without the check the predictions would be worse without a word."""
    torch.save(network().state_dict(), tmp_path / "model.pt")
    load_weights(network(scan_order="axes"), tmp_path / "model.pt")  # nothing says how they were trained
    (tmp_path / "settings.json").write_text(json.dumps({"scan_order": "raster"}))
    load_weights(network(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="trained with scan_order raster, but the network reads in axes order"):
        load_weights(network(scan_order="axes"), tmp_path / "model.pt")


def test_weights_of_another_stem_are_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="do not fit the network; check the task overlay, init_filters and stem"):
        load_weights(network(stem="full"), tmp_path / "model.pt")


@pytest.mark.parametrize("content", ["", "{}", "half"])
def test_a_broken_file_is_said_to_be(tmp_path: Path, content: str) -> None:
    file = tmp_path / "model.pt"
    file.write_text(content)
    if content == "half":
        torch.save(network().state_dict(), file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        UserError, match=r"model\.pt is not a file of PyTorch weights, or not a whole one \(\w+"
    ) as caught:
        load_weights(network(), file)
    assert "weights_only" not in str(caught.value), "PyTorch advises to trust the file"


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's /proc and its limits")
def test_weights_are_not_blamed_when_memory_runs_out(tmp_path: Path) -> None:
    import resource

    file = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(64 << 20, dtype=torch.uint8)}, file)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), before[1]))
    try:
        with pytest.raises(UserError, match=r"model\.pt cannot be read: memory ran out: close other programs"):
            load_weights(network(), file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_damaged_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    file, state = tmp_path / "model.pt", network().state_dict()
    torch.save(state, file)
    whole = bytearray(file.read_bytes())
    whole[whole.index(max(state.values(), key=torch.numel).numpy().tobytes())] ^= 1
    file.write_bytes(whole)
    with pytest.raises(UserError, match=r"model\.pt is damaged.*copy it again; give another with --checkpoint$"):
        load_weights(network(), file)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    next(iter(state.values())).view(-1)[0] = math.nan
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt holds NaN or infinite values in 1 of its tensors \(stem"):
        load_weights(network(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt holds NaN or infinite .*give another with --pretrained"):
        start_from(network(), tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], {"network": 3}, {"a": "b"}, torch.zeros(2)])
def test_other_things_than_weights_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt holds something else than the weights of a network"):
        load_weights(network(), tmp_path / "model.pt")


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


def test_a_run_whose_checkpoint_was_deleted_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model_final.pt").touch()
    with pytest.raises(UserError, match="already holds a run"):
        open_run(str(tmp_path), False, {})
    with pytest.raises(UserError, match="nothing to resume"):
        open_run(str(tmp_path), True, {})


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "training.log").open("a") as log_of_another:
        fcntl.flock(log_of_another, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another training runs in .*--output_dir"):
            open_run(str(tmp_path), False, {})
        assert not (tmp_path / "settings.json").exists()
    open_run(str(tmp_path), False, {})
    open_run(str(tmp_path), False, {})  # the same process may start over


def test_a_training_that_failed_lets_go_of_its_folder(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    open_run(str(tmp_path), False, {})

    def fail(engine: Engine, batch: object) -> None:
        with (tmp_path / "training.log").open("a") as log_of_another, pytest.raises(BlockingIOError):
            fcntl.flock(log_of_another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise MemoryError

    trainer = Engine(fail)
    trainer.run = partial(trainer.run, [0])
    with pytest.raises(MemoryError):
        run_to_end(trainer)
    with (tmp_path / "training.log").open("a") as log_of_another:
        fcntl.flock(log_of_another, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        (["model.pt"], "model.pt"),  # another program's
        (["model.pt", "settings.json", "cases.json"], "model.pt"),  # weights that were copied here
        (["model.pt", "settings.json", "training.log"], "model.pt"),  # a run whose checkpoints were deleted
        (["settings.json"], "settings.json"),
        (["settings.json", "training.log"], "settings.json"),
        (["training.log"], "training.log"),
        (["log.jsonl", "notes.txt"], "log.jsonl"),
    ],
)
def test_files_that_no_interrupted_run_left_are_kept(tmp_path: Path, there: list[str], kept: str) -> None:
    for name in there:
        (tmp_path / name).write_text(f"the user's {name}")
    if "settings.json" in there:
        (tmp_path / "settings.json").write_text('"the user\'s settings.json"')
    with pytest.raises(UserError, match=rf"/({kept}|training\.log).* would be replaced.*another --output_dir"):
        open_run(str(tmp_path), False, {"name": "a"})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(there)
    assert all(f"the user's {name}" in (tmp_path / name).read_text() for name in there)


def test_the_settings_of_another_program_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_text("another program's")
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 12}')
    with pytest.raises(UserError, match=r"settings\.json is not that of a training"):
        open_run(str(tmp_path), True, {"name": "a", "init_filters": 8})
    assert (tmp_path / "settings.json").read_text() == '{"editor.fontSize": 12}'
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_that_was_killed_in_its_first_epoch_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "training.log").touch()  # killed at once
    open_run(str(tmp_path), False, {})
    for name in ("cases.json", "log.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "training.log").write_text("preparing cases")
    open_run(str(tmp_path), False, {})


@pytest.mark.parametrize("option", ["output_dir", "cache_dir"])
def test_nothing_is_trained_among_the_images(tmp_path: Path, option: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").touch()
    places = {"output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    cases = [{"name": "a", "image": str(tmp_path / "images/a.png"), "label": str(tmp_path / "labels/a.png")}]
    with pytest.raises(UserError, match=rf"--{option} .*images: what is written would lie among images"):
        open_run(**places | {option: str(tmp_path / "images")}, resume=False, settings={}, cases=cases)
    for folder in ("run/../run", "run/.."):
        with pytest.raises(UserError, match=r"--cache_dir .* holds the run's own folder"):
            open_run(**places | {"cache_dir": str(tmp_path / folder)}, resume=False, settings={}, cases=cases)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_opening_a_run_removes_what_killed_ones_left(tmp_path: Path) -> None:
    left = [tmp_path / "run/.0123456789ab.part.model.pt", tmp_path / "cache/digest/.0123abcd-7-89abcdef.part"]
    (tmp_path / "cache/digest/a-0123").mkdir(parents=True)
    left[1].mkdir()
    (tmp_path / "run").mkdir()
    left[0].touch()
    for path in left:
        os.utime(path, (0, 0))
    open_run(str(tmp_path / "run"), False, {}, cache_dir=str(tmp_path / "cache"))
    assert not any(path.exists() for path in left) and (tmp_path / "cache/digest/a-0123").is_dir()


def test_typed_words_are_the_same_settings(tmp_path: Path) -> None:
    open_run(str(tmp_path), False, {"slice_axis": "null", "crop_nonzero": "false"})
    (tmp_path / "checkpoint.pt").touch()
    open_run(str(tmp_path), True, {"slice_axis": None, "crop_nonzero": False})
    with pytest.raises(UserError, match="slice_axis was None, now 2"):
        open_run(str(tmp_path), True, {"slice_axis": 2, "crop_nonzero": False})


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
    write = saver._write

    def kill(name: str, content: dict[str, object]) -> None:
        if name == "model.pt":
            raise KeyboardInterrupt
        write(name, content)

    monkeypatch.setattr(saver, "_write", kill)
    with pytest.raises(KeyboardInterrupt):
        saver._end_epoch(trainer)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    trainer.state.max_epochs, trainer.optimizer = 2, optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    restore_run(trainer, evaluator, net, schedule, str(tmp_path), True)  # type: ignore[arg-type]
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(best[name], value) for name, value in net.state_dict().items())


def test_weights_for_images_that_are_prepared_otherwise_are_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_preparation(tmp_path / "model.pt", {"spacing": [1, 1]})  # nothing says how theirs were
    (tmp_path / "settings.json").write_text(json.dumps({"spacing": [1, 1], "crop_nonzero": "false"}))
    check_preparation(tmp_path / "model.pt", {"spacing": (1, 1), "crop_nonzero": False, "labels": {"a": 1}})
    assert not caplog.records
    check_preparation(tmp_path / "model.pt", {"spacing": "null", "crop_nonzero": False})
    assert "were trained with spacing [1, 1], now it is null: predictions may be wrong" in caplog.text


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


@pytest.mark.parametrize("content", [{"epoch": "1"}, {"epoch": 1}, None])
def test_weights_are_no_state_of_a_training(content: dict[str, object] | None, tmp_path: Path) -> None:
    net = torch.nn.Linear(1, 1)
    state = net.state_dict() if content is None else {"network": net.state_dict(), **content}
    torch.save(state, tmp_path / "checkpoint.pt")
    engine = Engine(lambda *_: None)
    with pytest.raises(UserError, match=r"checkpoint\.pt is not the checkpoint of a run: start another run"):
        restore_run(engine, engine, net, None, str(tmp_path), True)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["{", "[]", "5", ""])
def test_broken_settings_are_named(content: str, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    (tmp_path / "settings.json").write_text(content)
    (tmp_path / "checkpoint.pt").touch()
    for use in (
        lambda: load_weights(network(), tmp_path / "model.pt"),
        lambda: check_preparation(tmp_path / "model.pt", {}),
    ):
        with pytest.raises(UserError, match=r"settings\.json (is not valid JSON|must hold an object)[^\n]* remove it"):
            use()
    with pytest.raises(UserError, match=r"settings\.json is not (that of a training|valid JSON)[^\n]*: put "):
        open_run(str(tmp_path), True, {})


def test_a_folder_named_with_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_run(2024, False, {})  # as the command line hands it on
    assert (tmp_path / "2024/settings.json").is_file()
