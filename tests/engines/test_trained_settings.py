"""Which patch size and mirrored axes inference uses."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from monai.bundle import ConfigParser

from scripts.common.errors import UserError
from scripts.engines import trained_settings

CONFIGS = Path(__file__).parents[2] / "bundle/configs"


def weights(folder: Path, **settings: object) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    return str(folder / "model.pt")


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    (tmp_path / "task.json").write_text('{"patch_size": [32, 32]}')
    return tmp_path / "task.json"


def patch_size(value: list[int], checkpoint: str | list[str], overlays: Sequence[Path] = ()) -> list[int]:
    return trained_settings.as_trained({"patch_size": value}, checkpoint, overlays)["patch_size"]


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setitem(
        sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="monai.bundle.__main__"))
    )
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "inference", *words])


def test_of_training_unless_typed(
    tmp_path: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained = weights(tmp_path / "run", patch_size=[16, 24])
    command_line(monkeypatch)
    assert patch_size([32, 32], trained) == [16, 24]
    assert patch_size([32, 32], str(tmp_path / "model.pt")) == [32, 32], "nothing beside these weights"
    assert patch_size([32, 32], weights(tmp_path / "old")) == [32, 32]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for words in (["--patch_size", "[32,32]"], ["--patch_size=[32,32]"], ["--patch-size", "[32,32]"]):
        command_line(monkeypatch, *words)
        assert patch_size([32, 32], trained) == [32, 32]
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "patch_size [32, 32] is used as typed" in warning and f"{trained} with [16, 24]" in warning
        caplog.clear()
    (tmp_path / "args.json").write_text('{"patch_size": [32, 32]}')
    command_line(monkeypatch, "--args_file", str(tmp_path / "args.json"))
    assert patch_size([32, 32], trained) == [32, 32]


def test_without_a_command_line(tmp_path: Path, overlay: Path) -> None:
    """In a notebook: what no overlay says was given."""
    trained = weights(tmp_path / "run", patch_size=[16, 24])
    assert patch_size([32, 32], trained, [tmp_path / "none.json", overlay]) == [16, 24]
    assert patch_size([64, 64], trained, [overlay]) == [64, 64]


def test_weights_that_were_trained_differently(tmp_path: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [weights(tmp_path / "a", patch_size=[16, 24]), weights(tmp_path / "b", patch_size=[32, 32])]
    command_line(monkeypatch)
    with pytest.raises(UserError, match=r"trained with different values of patch_size .*give one with --patch_size"):
        patch_size([32, 32], pair)
    command_line(monkeypatch, "--patch_size", "[32,32]")
    assert patch_size([32, 32], pair) == [32, 32]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_settings_file_is_named(tmp_path: Path, content: str) -> None:
    trained = weights(tmp_path / "run")
    (tmp_path / "run/settings.json").write_text(content)
    with pytest.raises(UserError, match=r"run/settings\.json "):
        patch_size([32, 32], trained)


@pytest.mark.parametrize("files", [["inference.json"], ["train.json", "evaluate.json"]])
def test_the_configs_use_them(tmp_path: Path, files: list[str]) -> None:
    """The window, and the axes that test-time augmentation mirrors: training may have left some out."""
    trained = weights(tmp_path / "run", patch_size=[16, 24, 16], mirror_axes=[1])
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / file) for file in files])
    parser.update({"bundle_root": str(CONFIGS.parent), "checkpoint": trained, "tta": True})
    inferer = parser.get_parsed_content("inferer")
    assert inferer.patch_size == (16, 24, 16)
    assert inferer.flips == [(), (1,)]
    training = ConfigParser()
    training.read_config(str(CONFIGS / "train.json"))
    kept = training["opening"]["settings"]
    assert {"patch_size", "mirror_axes"} <= kept.keys()
