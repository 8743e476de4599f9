"""The export's command: what it writes beside the network, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import INFERENCE, LABELS, Export, settings, words

from scripts.common import BUNDLE_ROOT
from scripts.common.errors import UserError, find_user_error
from scripts.engines.weights import weights_digest
from scripts.export.__main__ import main
from scripts.export.model import read_model

HIPPOCAMPUS = BUNDLE_ROOT / "configs/tasks/hippocampus.json"


@pytest.fixture
def nothing_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(network: object, patch_size: object, path: Path) -> int:
        path.write_bytes(b"a network")
        return 1

    monkeypatch.setattr("scripts.export.__main__.write_onnx", write)


def export(weights: Path, output: Path, *more: str, **ids: Any) -> None:
    main(["--checkpoint", str(weights), "--output", str(output), *more, *words(settings(3, **ids))])


@pytest.mark.usefixtures("nothing_is_exported")
def test_the_json_says_what_a_user_needs(weights_3d: Export, tmp_path: Path) -> None:
    export(weights_3d.weights, tmp_path / "net.onnx")
    facts = json.loads((tmp_path / "net.json").read_text(encoding="utf-8"))
    assert facts == {
        "format": "lightm_unet_onnx",
        "version": 1,
        "name": "hippocampus",
        "image_dims": 3,
        "in_channels": 1,
        "labels": LABELS,
        "label_values": [0, 2, 5],
        "orientation": "RAS",
        "crop_nonzero": False,
        "normalization": ["zscore"],
        "spacing": None,
        "slice_axis": None,
        "patch_size": [16, 8, 24],
        "window": [16, 8, 24],
        "overlap": 0.5,
        "mirror_axes": [0],
        "weights": "weights.pt",
        "weights_digest": weights_digest(weights_3d.weights),
    }


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({}, {"image_dims": 2, "orientation": None, "window": [16, 8]}),
        ({"slice_axis": 2}, {"image_dims": 3, "orientation": "RAS", "window": [16, 8, 1], "slice_axis": 2}),
        ({"slice_axis": 0}, {"window": [1, 16, 8]}),
        ({"labels": {"b": 3, "a": 1}}, {"label_values": [0, 1, 3], "labels": {"a": 1, "b": 3}}),
        ({"normalization": "null"}, {"normalization": ["zscore"]}),
        ({"crop_nonzero": "true", "overlap": 0.25}, {"crop_nonzero": True, "overlap": 0.25}),
        ({"spacing": [0.5, 2]}, {"spacing": [0.5, 2]}),
    ],
)
def test_the_json_follows_the_task(weights_2d: Export, ids: dict[str, Any], expected: dict[str, Any]) -> None:
    facts = facts_of(weights_2d.weights, settings(2, **ids))
    assert {key: facts[key] for key in expected} == expected


def facts_of(weights: Path, ids: dict[str, Any]) -> dict[str, Any]:
    return read_model([INFERENCE], str(weights), words(ids)).facts


def test_the_window_is_that_of_the_training(weights_2d: Export, tmp_path: Path) -> None:
    weights = Path(shutil.copy(weights_2d.weights, tmp_path))
    (tmp_path / "settings.json").write_text(json.dumps({"patch_size": [32, 16], "mirror_axes": [1]}))
    ids = {name: value for name, value in settings(2).items() if name not in ("patch_size", "mirror_axes")}
    task = tmp_path / "task.json"  # what stands in an overlay is not typed, and the training's own comes first
    task.write_text(json.dumps(json.loads(HIPPOCAMPUS.read_text()) | {"patch_size": [16, 8], "mirror_axes": [0]}))
    facts = facts_of(weights, ids | {"task_file": str(task)})
    assert (facts["patch_size"], facts["window"], facts["mirror_axes"]) == ([32, 16], [32, 16], [1])


def test_the_longest_scan_is_the_finest_vss_stage(weights_2d: Export, weights_3d: Export) -> None:
    assert read_model([INFERENCE], str(weights_2d.weights), words(settings(2))).longest_scan == 16 * 8
    assert read_model([INFERENCE], str(weights_3d.weights), words(settings(3))).longest_scan == 8 * 4 * 12


@pytest.mark.usefixtures("nothing_is_exported")
def test_nothing_is_lost(weights_3d: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, beside = tmp_path / "new" / "net.onnx", tmp_path / "new" / "net.json"
    export(weights_3d.weights, output)
    assert sorted(file.name for file in output.parent.iterdir()) == ["net.json", "net.onnx"]
    assert str(output) in capsys.readouterr().out
    with pytest.raises(UserError, match="there already: add --overwrite"):
        export(weights_3d.weights, output)
    export(weights_3d.weights, output, "--overwrite", overlap=0.25)
    assert json.loads(beside.read_text())["overlap"] == 0.25
    beside.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="nothing says that it may be lost"):
        export(weights_3d.weights, output, "--overwrite")
    beside.unlink()
    with pytest.raises(UserError, match="nothing says that it may be lost"):  # another program's network
        export(weights_3d.weights, output, "--overwrite")
    assert output.read_bytes() == b"a network"


@pytest.mark.parametrize("name", ["net.pt", "net", "net.json", "image.nii.gz"])
def test_the_output_must_be_called_onnx(weights_3d: Export, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        export(weights_3d.weights, tmp_path / name)


@pytest.mark.usefixtures("nothing_is_exported")
def test_an_input_is_never_written(weights_3d: Export, tmp_path: Path) -> None:
    task = Path(shutil.copy(HIPPOCAMPUS, tmp_path / "task.json"))
    before = task.read_bytes()
    with pytest.raises(UserError, match="is a file that is read"):
        export(weights_3d.weights, tmp_path / "task.onnx", "--config_file", f"['{INFERENCE}','{task}']", "--overwrite")
    assert task.read_bytes() == before


def test_wrong_weights_and_words_are_refused(weights_3d: Export, tmp_path: Path) -> None:
    output = tmp_path / "net.onnx"
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(weights_3d.weights.read_bytes()[:-100])
    for weights, ids, message in [
        (tmp_path / "none.pt", {}, "there are no weights at"),
        (damaged, {}, "is not a file of PyTorch weights"),
        (weights_3d.weights, {"init_filters": 16}, "do not fit the network"),
        (weights_3d.weights, {"conv_stages": 0}, "give --conv_stages 1"),
        (weights_3d.weights, {"patch_size": [15, 8, 24]}, "patch_size .* multiple of 2"),
        (weights_3d.weights, {"overlap": 1.5}, "overlap must be"),
        (weights_3d.weights, {"int_filters": 8}, "did you mean 'init_filters'"),
        (f"[{weights_3d.weights},{damaged}]", {}, "one after the other"),
    ]:
        with pytest.raises(Exception) as caught:
            export(weights, output, **ids)
        assert re.search(message, str(find_user_error(caught.value))), caught.value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.pt"]


@pytest.mark.usefixtures("nothing_is_exported")
def test_rules_beside_the_weights_are_mentioned(
    weights_3d: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(shutil.copy(weights_3d.weights, tmp_path))
    export(weights, tmp_path / "a.onnx")
    assert "postprocessing" not in capsys.readouterr().out
    (tmp_path / "postprocessing.json").write_text("{}")
    export(weights, tmp_path / "b.onnx")
    assert "postprocessing.json" in capsys.readouterr().out


def test_a_failed_export_leaves_nothing(weights_3d: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network: object, patch_size: object, path: Path) -> int:
        torch.save({}, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.export.__main__.write_onnx", fail)
    with pytest.raises(OSError, match="No space left"):
        export(weights_3d.weights, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
