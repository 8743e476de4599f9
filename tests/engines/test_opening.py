"""The folders that runs are opened in: what is kept, what is refused, and who has the claim."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from ignite.engine import Engine

from scripts.common.errors import UserError
from scripts.engines.opening import open_run, run_to_end


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


def test_a_folder_named_with_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_run(2024, False, {})  # as the command line hands it on
    assert (tmp_path / "2024/settings.json").is_file()
