"""The folds of a cross-validation: what each has done, and the commands that do the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from ..common import BUNDLE_ROOT
from ..common.command_line import check_separator, differing, option_values, or_none
from ..common.errors import UserError, first_few
from ..common.run_folder import RunFolder, ScoresFolder
from ..data.datalist import read_splits
from ..data.layouts import NUM_FOLDS
from ..engines.provenance import read_held_out
from ..engines.settings_check import check_settings
from ..engines.weights import read_settings, weights_digest
from ..images.files import case_name, image_suffix
from ..report.curves import read_log

__all__ = ["ALL", "EVALUATION", "Fold", "Settings"]

ALL = "all"  # the fold that holds nothing out

EVALUATION = str(BUNDLE_ROOT / "configs/evaluate.json")
RAW = {"postprocessing_rules": "none"}
SET_BY_FOLD = ("fold", "resume", "checkpoint", "evaluation_dir", "predictions_dir")


class Fold(NamedTuple):
    """One fold's run.

    Args:
        folder: which training and evaluation fill.
        epochs: that it is to reach.
        scored_with: the settings that its scores are to be made with.
    """

    number: int | str
    folder: Path
    epochs: int
    scored_with: Mapping[str, Any] = {}

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def ended(self) -> bool:
        """Whether a training came to its end here, maybe one of fewer epochs."""
        return self.run.final.is_file()

    @property
    def trained(self) -> bool:
        """Whether training ended after the epochs asked for, or more; without a log nobody can tell, and it counts."""
        epochs, _ = read_log(self.folder)
        return self.ended and (not epochs or epochs[-1]["epoch"] >= self.epochs)

    @property
    def resumable(self) -> bool:
        """Whether training can go on from where it was interrupted, or ended with fewer epochs."""
        return not self.trained and self.run.checkpoint.is_file()

    @property
    def evaluation(self) -> ScoresFolder:
        return self.run.evaluation

    @property
    def evaluated(self) -> bool:
        """Whether the scores of all held-out cases are there, of these weights, and made as they are to be."""
        if not self._metrics or not self.run.best.is_file() or self.outdated:
            return False
        return self.held_out is None or self.held_out == {row["case"] for row in self.scores()}

    @property
    def outdated(self) -> str | None:
        """Why the scores that are there do not count; None where they do, or where there are none."""
        metrics, weights = self._metrics, self.run.best
        if not metrics:
            return None
        if otherwise := differing(metrics.get("settings", {}), self.scored_with):
            values = ", ".join(f"{key} {metrics['settings'][key]}" for key in otherwise)
            return f"it was evaluated with {values}"
        if not metrics.get("weights"):  # before version 0.7
            return "its scores do not say of which weights they are"
        if weights.is_file() and metrics["weights"] != [weights_digest(weights)]:
            return "its scores are of other weights"
        if gone := sorted({row["case"] for row in self.scores()} - self.predictions().keys()):
            return f"the predictions of {len(gone)} case(s) are gone ({first_few(gone)})"
        return None

    @property
    def _metrics(self) -> dict[str, Any]:
        """What evaluation wrote, {} where it wrote nothing that can be read."""
        try:
            metrics = json.loads(self.evaluation.metrics.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(metrics, dict) or not isinstance(metrics.get("settings", {}), dict):
            return {}
        rows = metrics.get("per_case")
        whole = isinstance(rows, list) and all(isinstance(row, dict) and "case" in row for row in rows)
        return metrics if whole else {}

    def predictions(self) -> dict[str, Path]:
        """Case -> its prediction, of those that are there and not empty."""
        folder = self.evaluation.predictions
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return {case_name(file): file for file in files if image_suffix(file) and file.stat().st_size}

    @property
    def held_out(self) -> set[str] | None:
        """The cases that the training held out, None where it left no word of them."""
        return read_held_out(self.folder)

    def scores(self) -> list[dict[str, Any]]:
        """A row a case and class, as evaluation wrote them."""
        return self._metrics["per_case"]


class Settings:
    """The config files and overrides of all folds, as the command line gives them.

    Args:
        folder_option: of the command, which names the folder of all folds, for messages.
    """

    def __init__(self, files: Sequence[str], overrides: Sequence[str], folder_option: str = "--output_dir") -> None:
        self.folder_option = folder_option
        self.files = [str(Path(file)) for file in files]
        self.overrides = list(overrides)
        values = option_values(overrides)
        for name in SET_BY_FOLD:
            if name in values:
                raise UserError(f"--{name}: cross-validation sets it itself, fold by fold; leave it out")
        for name, value in values.items():
            check_separator(name, value)
        self.root = values.pop("output_dir", None)
        parser = _read_configs(self.files)
        # as monai.bundle reads a command line's words
        own = {name: DefaultParseValue(value) for name, value in values.items() if "#" not in name and "::" not in name}
        self.own = {"bundle_root": str(BUNDLE_ROOT), **own}
        parser.update(self.own)
        self.bundle_root = str(parser.get_parsed_content("bundle_root"))
        if self.root is None:
            parser.update({"fold": 0})
            self.root = str(Path(parser.get_parsed_content("output_dir")).parent)
        self.splits = or_none(parser.get_parsed_content("splits"))
        self.epochs = parser.get_parsed_content("epochs")
        check_settings(epochs=self.epochs)

    def fold(self, number: int | str) -> Fold:
        """One fold; "all" is the training on all cases, which holds nothing out."""
        folder = Path(self.root) / f"fold_{number}"
        parser = self._parser([*self.files, EVALUATION], number)
        raw = {} if "postprocessing_rules" in self.own else RAW
        parser.update({"output_dir": str(folder), **raw})
        return Fold(number, folder, self.epochs, parser.get_parsed_content("scored_with"))

    def count(self) -> int:
        """Number of folds: the split file's, else nnU-Net's five."""
        return len(read_splits(self.splits)) if self.splits else NUM_FOLDS

    def check(self, fold: Fold) -> None:
        """Refuse a fold that was trained with other settings than the command line's, or on other cases.

        Raises:
            UserError: names what differs.
        """
        trained = read_settings(fold.run.best)
        parser = self._parser(self.files, fold.number)
        now = {key: parser.get_parsed_content(key) for key in trained if key in parser}
        changed = [f"{key} {trained[key]}" for key in differing(trained, now)]
        own = self.splits and fold.number != ALL
        if own and fold.held_out not in (None, {*read_splits(self.splits)[fold.number]["val"]}):
            changed.append("another --splits")
        if changed:
            raise UserError(
                f"fold {fold.number} in {fold.folder} was trained with {', '.join(changed)}: give that again, or "
                f"another {self.folder_option}"
            )

    def values(self, *names: str) -> dict[str, Any]:
        """What configs and command line say of these ids."""
        parser = self._parser(self.files, 0)
        return {name: parser.get_parsed_content(name) for name in names}

    def held_out_cases(self, fold: Fold) -> list[dict[str, Any]]:
        """What a fold holds out, [{"name", "image": path or paths, "label": path}, …].

        Raises:
            UserError: the data set, or the split file, cannot be used; see data/datalist.py.
        """
        return self._parser(self.files, fold.number).get_parsed_content("cases").validation

    def training(self, fold: Fold) -> list[str]:
        """The command that trains a fold or finishes its training; it knows no ids that only evaluation has."""
        evaluation_only = set(ConfigParser.load_config_file(EVALUATION)) - set(
            ConfigParser.load_config_files(self.files)
        )
        overrides = _without(self.overrides, evaluation_only)
        return self._command("training", fold, self.files, overrides, {"resume": "true"} if fold.resumable else {})

    def evaluation(self, fold: Fold) -> list[str]:
        """The command that predicts and scores a fold's held-out cases: raw, since rules are learned from them."""
        raw = {} if "postprocessing_rules" in self.own else RAW
        return self._command("evaluating", fold, [*self.files, EVALUATION], self.overrides, raw)

    def _parser(self, files: Sequence[str], fold: int | str) -> ConfigParser:
        parser = _read_configs(files)
        parser.update({**self.own, "fold": fold})
        return parser

    def _command(
        self, run_id: str, fold: Fold, files: Sequence[str], overrides: Sequence[str], more: Mapping[str, str]
    ) -> list[str]:
        options = {"bundle_root": self.bundle_root, "fold": fold.number, "output_dir": fold.folder, **more}
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        run = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
        return [*run, *_without(overrides, options), *given]


def _read_configs(files: Sequence[str]) -> ConfigParser:
    parser = ConfigParser()
    try:
        parser.read_config(files)
    except (OSError, ValueError, AttributeError, TypeError) as error:  # of a file that holds no object
        raise UserError(f"--config_file: {', '.join(files)} cannot be read: {error}") from error
    missing = [name for name in ("training", "output_dir", "splits", "epochs") if name not in parser]
    if missing:
        raise UserError(
            f"--config_file: {', '.join(files)} has no '{missing[0]}': give configs/train.json and the task's overlay, "
            "as for training"
        )
    return parser


def _without(words: Sequence[str], ids: Collection[str]) -> list[str]:
    """The command line without these ids (and what lies within them, ``--id#key``) and their values."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("--") and _top_level(word) in ids:
            skip = "=" not in word
        else:
            kept.append(word)
    return kept


def _top_level(option: str) -> str:
    return option[2:].partition("=")[0].replace("-", "_").replace("::", "#").partition("#")[0]
