"""A finished task as a bundle of its own."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finish_cases import Task, run_here
from monai.bundle import download

from scripts.common.errors import UserError
from scripts.finish import packing
from scripts.finish.__main__ import main
from scripts.images.formats import read_raw
from scripts.images.pairs import files_by_case


@pytest.mark.parametrize("dims", [2, 3])
def test_a_packed_task_predicts_elsewhere(
    dims: int, tasks: Callable[[int], Task], tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, out, archive = tasks(dims), tmp_path / "out", tmp_path / "to/mine.zip"
    if dims == 2:  # in 3D its trial is a program of its own
        monkeypatch.setattr(packing, "run_program", lambda command, what: run_here(command))
    words = task.words(out, "--samples", "0", "--device", "cpu", "--pack", str(archive))
    main(words)
    assert [path.name for path in archive.parent.iterdir()] == ["mine.zip"]
    with pytest.raises(UserError, match=r"--pack .*mine\.zip is there already: add --overwrite"):
        main(words)

    with zipfile.ZipFile(archive) as content:
        names = set(content.namelist())
        text = "".join(content.read(name).decode() for name in names if name.endswith((".json", "README.md")))
    assert str(task.root) not in text, "no path of this machine"
    assert {f"mini/{name}" for name in ("LICENSE", "configs/train.json", "scripts/networks/lightm_unet.py")} < names
    assert not any("hippocampus" in name or "lung" in name or name.endswith(".pyc") for name in names)
    assert "mini/models/mini/fold_0/postprocessing.json" in names

    download(name="mini", url=archive.as_uri(), bundle_dir=str(tmp_path / "there"), progress=False)
    root, new = tmp_path / "there/mini", tmp_path / "new"
    card, metadata = (root / "docs/README.md").read_text(), json.loads((root / "configs/metadata.json").read_text())
    assert "Trained on 12 cases (folds 0, 1" in card and "| rim | 0." in card
    assert metadata["name"] == "mini" and metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert metadata["eval_metrics"].keys() == {"mean_dice_core", "mean_dice_rim"}
    for config in (["inference.json"], ["inference.json", "tasks/mini.json"]):
        files = str([str(root / "configs" / name) for name in config])
        options: dict[str, Any] = {"bundle_root": root, "input_dir": task.new / "images", "output_dir": new}
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        run_here(
            ["python", "-m", "monai.bundle", "run", "inference", "--config_file", files, *given, "--device", "cpu"]
        )
        for name, file in files_by_case(new).items():
            wanted = read_raw(files_by_case(out / "postprocessed")[name], label=True).array
            assert np.array_equal(read_raw(file, label=True).array, wanted)
        shutil.rmtree(new)


def test_a_bundle_that_predicts_otherwise_is_not_kept(
    tasks: Callable[[int], Task], tmp_path: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_with_too_much(command: list[str], what: str) -> None:
        run_here([*command, "--postprocessing_rules", "none"])

    monkeypatch.setattr(packing, "run_program", run_with_too_much)
    words = tasks(2).words(tmp_path / "out", "--samples", "0", "--device", "cpu")
    with pytest.raises(UserError, match="--pack: the packed bundle predicts case_12 otherwise than"):
        main([*words, "--pack", str(tmp_path / "to/mine.zip")])
    assert list((tmp_path / "to").iterdir()) == []
    with pytest.raises(UserError, match=r"mine\.tar must end in \.zip"):
        main([*words, "--pack", str(tmp_path / "mine.tar")])
