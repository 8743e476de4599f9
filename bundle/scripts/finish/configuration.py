"""A configuration whose networks are trained: its folds, and what inference has to be told to predict with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..common import BUNDLE_ROOT
from ..common.command_line import check_ids, option_values
from ..common.errors import UserError
from ..cross_validation.folds import ALL, Fold, Settings
from ..engines.weights import weights_digest
from ..images.task import Task, task_of

__all__ = ["INFERENCE", "Configuration"]

INFERENCE = str(BUNDLE_ROOT / "configs/inference.json")
FOLDS_DIR = "--folds_dir"
OURS = {"input_dir", "postprocessing_rules", "save_probabilities", "skip_existing", "overwrite", "weights"}
NOT_TOLD = {"input_dir", "output_dir", "dataset_dir", "weights"}  # what inference is given otherwise
OF_MACHINE = {"bundle_root", "device", "amp", "num_workers", "sw_batch_size"}  # where it runs, not what comes of it


class Configuration:
    """Config files and settings, and the folds that were trained with them.

    Args:
        files: the training config and overlays, as for training.
        overrides: words of the command line that set ids of the configs.
        folds_dir: the folder that holds fold_0, fold_1, …; None: where training puts them.

    Raises:
        UserError: the files cannot be read, or a setting is unknown or not the user's to give.
    """

    def __init__(self, files: Sequence[str], overrides: Sequence[str], folds_dir: str | Path | None = None) -> None:
        for name in option_values(overrides):
            if name in OURS:
                raise UserError(f"--{name}: this command sets it itself; leave it out")
            if {"#", ":"} & set(name):
                raise UserError(f"--{name}: only whole settings can be given here; put that part into an overlay")
        folder = [] if folds_dir is None else ["--output_dir", str(folds_dir)]
        self.overrides = list(overrides)
        self.settings = Settings(files, [*overrides, *folder], FOLDS_DIR)
        self.root = Path(self.settings.root)
        check_ids(self.settings.evaluation(self.settings.fold(0))[3:])
        values = self.settings.values("name", "labels", "regions", "ignore_label", "spatial_dims", "slice_axis")
        self.name = str(values["name"])
        if Path(self.name).name != self.name:
            raise UserError(f"name {self.name!r} in {files[-1]} cannot be a folder's: give the task another")
        self.task: Task = task_of(values, ", ".join(self.settings.files))
        self.in_channels: int = self.settings.values("in_channels")["in_channels"]
        self.folds: list[Fold] = []
        self.unfinished: list[Fold] = []

    def take_folds(self, only: int | str | None = None) -> None:
        """Find the folds whose training has ended; of none, the training on all cases.

        Args:
            only: take this fold alone.

        Raises:
            UserError: none, or not that one, is trained; or one was trained with other settings.
        """
        numbers = range(self.settings.count()) if only is None else [only]
        folds = list(map(self.settings.fold, numbers))
        self.folds = [fold for fold in folds if _is_trained(fold)]
        self.unfinished = [fold for fold in folds if fold not in self.folds and fold.run.checkpoint.is_file()]
        if not self.folds and only is None:
            self.folds = [fold for fold in [self.settings.fold(ALL)] if _is_trained(fold)]
        if not self.folds:
            which = f"fold {only}" if only is not None else "no fold"
            verb = "is not trained" if only is not None else "is trained"
            raise UserError(
                f"{which} of {self.name} {verb}: {self.root} has no fold_{'K' if only is None else only}/"
                f"{folds[0].run.final.name}; train first, or name the folder of the trained folds with {FOLDS_DIR}"
            )
        for fold in self.folds:
            self.settings.check(fold)

    @property
    def held_out(self) -> list[Fold]:
        """The folds that hold cases out."""
        return [fold for fold in self.folds if fold.number != ALL]

    @property
    def weights(self) -> list[Path]:
        return [fold.run.best.resolve() for fold in self.folds]

    def digests(self) -> list[str]:
        """What tells these weights from others."""
        return list(map(weights_digest, self.weights))

    def numbers(self) -> str:
        """The folds in words."""
        names = [str(fold.number) for fold in self.folds]
        return f"fold{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def inference_settings(self) -> dict[str, Any]:
        """What overlays and command line say that matters to inference, without weights, rules and the machine."""
        contents = {file: ConfigParser.load_config_file(file) for file in self.settings.files}
        overlays = [file for file, content in contents.items() if "training" not in content]
        settings = ConfigParser.load_config_files(overlays) if overlays else {}
        known = {*ConfigParser.load_config_file(INFERENCE)}
        of_training = {name for content in contents.values() if "training" in content for name in content} - known
        left_out = of_training | NOT_TOLD | OF_MACHINE
        typed = {name: value for name, value in self.settings.own.items() if name in known or name in settings}
        return {name: value for name, value in (settings | typed).items() if name.lstrip("+") not in left_out}

    def overlay(self, rules: Path | None) -> dict[str, Any]:
        """The config that makes inference predict with these weights and rules, beside configs/inference.json."""
        weights = list(map(str, self.weights))
        return self.inference_settings() | {
            "checkpoint": weights if len(weights) > 1 else weights[0],
            "postprocessing_rules": "none" if rules is None else str(rules.resolve()),
        }

    def machine_settings(self) -> dict[str, str]:
        """What was typed about where to run, as --device."""
        typed = option_values(self.overrides)
        return {name: value for name, value in typed.items() if name in OF_MACHINE - {"bundle_root"}}

    def inference(self, overlay: Path, options: Mapping[str, Any]) -> list[str]:
        """The command that predicts with an overlay of this configuration on this machine."""
        given = {"bundle_root": self.settings.bundle_root} | self.machine_settings() | dict(options)
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        files = str([INFERENCE, os.path.abspath(overlay)])
        return [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", files, *words]


def _is_trained(fold: Fold) -> bool:
    return fold.ended and fold.run.best.is_file()
