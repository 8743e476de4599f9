"""Small tasks with two trained folds, and monai.bundle's runs in this process instead of in others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
from generators import DataSet, volume, write_image, write_nnunet

from scripts.common import BUNDLE_ROOT
from scripts.common.command_line import as_config_files, option_values

TRAIN = str(BUNDLE_ROOT / "configs/train.json")
HELD_OUT = 12  # enough to learn rules from
TINY = {
    "init_filters": 8,
    "conv_stages": 3,
    "strides": None,
    "iterations_per_epoch": 12,
    "epochs": 1,
    "warmup": 0,
    "learning_rate": 0.01,
    "batch_size": 2,
    "num_workers": 0,
    "device": "cpu",
    "recompute_activations": False,
    "overlap": 0.25,
    "spacing": None,
    "crop_nonzero": False,
    "slice_axis": None,
    "ignore_label": None,
    "regions": {},
    "normalization": ["zscore"],
    "in_channels": 1,
    "mirror_axes": [],
}
SHAPES = {2: (40, 32), 3: (16, 20, 18)}


class Task:
    """A data set, its overlay, and where its folds lie; ``new`` holds images that no fold knows, with their labels."""

    def __init__(self, root: Path, dims: int, name: str = "mini", **settings: Any) -> None:
        self.root, self.dims, self.name = root, dims, name
        self.data, self.new, self.folds = root / "data", root / "new", root / f"runs_{name}"
        self.overlay, self.splits = root / f"{name}.json", root / "splits.json"
        content = TINY | {"name": name, "spatial_dims": dims, "rows_first": True, "labels": {"core": 1, "rim": 3}}
        content |= {"patch_size": [16] * dims, "dataset_dir": str(self.data), "splits": str(self.splits)}
        content |= {"cache_dir": str(root / f"cache_{name}"), "weights": "none"} | settings
        self.overlay.write_text(json.dumps(content))

    def write_data(self) -> None:
        rng = np.random.default_rng(0)
        affine = np.eye(4) if self.dims == 3 else None
        kind = {"dtype": np.float32} if self.dims == 3 else {"dtype": np.uint8, "base": 40.0, "step": 60.0}
        cases = [volume(f"case_{i:02d}", SHAPES[self.dims], (1, 3), affine, rng, **kind) for i in range(HELD_OUT + 4)]
        for case in cases:  # a speck of the rim's brightness, which no label has: what rules are to take away
            case.image[(0, *[slice(0, 3)] * self.dims)] = case.image[0][case.label == 3].mean()
        ending = ".nii.gz" if self.dims == 3 else ".png"
        write_nnunet(self.data, DataSet("Mini", cases[:HELD_OUT], {"core": 1, "rim": 3}, ["any"], ending=ending))
        for case in cases[HELD_OUT:]:
            write_image(self.new / f"images/{case.name}_0000{ending}", case.image, case.affine)
            write_image(self.new / f"labels/{case.name}{ending}", case.label[None], case.affine)
        names = [case.name for case in cases[:HELD_OUT]]
        halves = names[::2], names[1::2]
        splits = [{"train": halves[1 - fold], "val": halves[fold]} for fold in (0, 1)]
        self.splits.write_text(json.dumps(splits))

    def train(self, *folds: int | str) -> None:
        for fold in folds:
            folder = str(self.folds / f"fold_{fold}")
            files = [TRAIN, str(self.overlay)]
            monai.bundle.run("training", config_file=files, bundle_root=str(BUNDLE_ROOT), output_dir=folder, fold=fold)

    def words(self, out: Path, *more: str) -> list[str]:
        """The command, without --labels."""
        words = ["--config_file", str([TRAIN, str(self.overlay)]), "--folds_dir", str(self.folds)]
        return [*words, "--input_dir", str(self.new / "images"), "--output_dir", str(out), "--workers", "0", *more]

    def copy_to(self, folder: Path) -> Path:
        """The trained folds where a test may change them."""
        return shutil.copytree(self.folds, folder)


def run_here(command: Sequence[str], what: str = "") -> None:
    """What running.run_program does, in this process."""
    assert list(command[1:4]) == ["-m", "monai.bundle", "run"]
    options = option_values(command[5:])
    files = as_config_files(options.pop("config_file"))
    monai.bundle.run(command[4], config_file=files, **{name: monai_value(word) for name, word in options.items()})


def monai_value(word: str) -> Any:
    """A word as Fire reads it."""
    from fire.parser import DefaultParseValue

    return DefaultParseValue(word)
