"""Train every fold, predict each case with the network that has not seen it, and score them all together.

``python -m scripts.cross_validation --config_file "['configs/train.json','configs/tasks/NAME.json']"`` runs training
and evaluation for each fold, one after the other. What is finished is not done again, an interrupted training goes on
where it stopped, and with more ``--epochs`` than before every fold trains on. On a cluster, ``--fold K`` does one fold
(a job array's task), and the same command without it puts the finished folds together. Any id of the configs can be
set as for ``monai.bundle run``: ``--epochs 50``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from .command_line import as_config_files, differing, option_values, or_none
from .data.datalist import read_splits
from .data.files import case_name, replacing
from .data.layouts import NUM_FOLDS
from .errors import UserError, show_user_errors_plainly
from .metrics import format_summary, summarize, write_csv, write_json
from .provenance import CASES, read_provenance, write_provenance
from .reporting.curves import read_log
from .settings_check import check_settings

__all__ = ["Fold", "gather", "main"]

BUNDLE_ROOT = Path(__file__).parents[1]
EVALUATION = str(BUNDLE_ROOT / "configs/evaluate.json")
RAW = {"postprocessing_rules": "none"}
SET_BY_FOLD = ("fold", "resume", "checkpoint", "evaluation_dir", "predictions_dir")
EXIT_STATUS = """exit status:
  0  every fold asked for is finished and scored
  1  a training or evaluation failed, or something has to be put right; the message says what
  2  wrong usage of this command"""


class Fold(NamedTuple):
    """One fold's run.

    Args:
        folder: which training and evaluation fill.
        epochs: that it is to reach.
        scored_with: the settings that its scores are to be made with.
    """

    number: int
    folder: Path
    epochs: int
    scored_with: Mapping[str, Any] = {}

    @property
    def ended(self) -> bool:
        """Whether a training came to its end here, maybe one of fewer epochs."""
        return (self.folder / "model_final.pt").is_file()

    @property
    def trained(self) -> bool:
        """Whether training ended after the epochs asked for, or more; without a log nobody can tell, and it counts."""
        epochs, _ = read_log(self.folder)
        return self.ended and (not epochs or epochs[-1]["epoch"] >= self.epochs)

    @property
    def resumable(self) -> bool:
        """Whether training can go on from where it was interrupted, or ended with fewer epochs."""
        return not self.trained and (self.folder / "checkpoint.pt").is_file()

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def evaluated(self) -> bool:
        """Whether the scores of all held-out cases are there, newer than the weights, and made as they are to be."""
        scores, weights = self.evaluation / "metrics.json", self.folder / "model.pt"
        newer = scores.is_file() and weights.is_file() and scores.stat().st_mtime >= weights.stat().st_mtime
        if not newer or self.scored_otherwise:
            return False
        return self.held_out is None or self.held_out == {row["case"] for row in self.scores()}

    @property
    def scored_otherwise(self) -> list[str]:
        """The settings that the scores were made with where they are to be others, such as "tta False"."""
        file = self.evaluation / "metrics.json"
        settings = json.loads(file.read_text(encoding="utf-8")).get("settings", {}) if file.is_file() else {}
        return [f"{key} {settings[key]}" for key in differing(settings, self.scored_with)]

    @property
    def held_out(self) -> set[str] | None:
        """The cases that the training held out, None where it left no word of them."""
        file = self.folder / CASES
        return set(json.loads(file.read_text(encoding="utf-8"))["validation"]) if file.is_file() else None

    def scores(self) -> list[dict[str, Any]]:
        """A row a case and class, as evaluation wrote them."""
        return json.loads((self.evaluation / "metrics.json").read_text(encoding="utf-8"))["per_case"]


class Settings:
    """The config files and overrides of all folds, as the command line gives them."""

    def __init__(self, files: Sequence[str], overrides: Sequence[str]) -> None:
        self.files = [str(Path(file)) for file in files]
        self.overrides = list(overrides)
        values = option_values(overrides)
        for name in SET_BY_FOLD:
            if name in values:
                raise UserError(f"--{name}: cross-validation sets it itself, fold by fold; leave it out")
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

    def fold(self, number: int) -> Fold:
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
        file = fold.folder / "settings.json"
        trained = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        parser = self._parser(self.files, fold.number)
        now = {key: parser.get_parsed_content(key) for key in trained if key in parser}
        changed = [f"{key} {trained[key]}" for key in differing(trained, now)]
        if self.splits and fold.held_out not in (None, {*read_splits(self.splits)[fold.number]["val"]}):
            changed.append("another --splits")
        if changed:
            raise UserError(
                f"fold {fold.number} in {fold.folder} was trained with {', '.join(changed)}: give that again, or "
                "another --output_dir"
            )

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

    def _parser(self, files: Sequence[str], fold: int) -> ConfigParser:
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


def run_fold(settings: Settings, fold: Fold) -> None:
    """Train a fold, or go on with its training, and evaluate it, unless that is done.

    Raises:
        UserError: a run ended with an error, which it has printed; a fold cannot train on, or was trained otherwise.
    """
    settings.check(fold)
    if fold.trained:
        print(f"fold {fold.number}: trained already ({fold.folder})", flush=True)
    else:
        print(f"fold {fold.number}: {_kind_of_training(fold)} in {fold.folder}", flush=True)
        _run(settings.training(fold), fold)
    if fold.evaluated:
        print(f"fold {fold.number}: evaluated already", flush=True)
    else:
        otherwise = f" again, since it was evaluated with {', '.join(fold.scored_otherwise)}"
        print(f"fold {fold.number}: evaluating{otherwise if fold.scored_otherwise else ''}", flush=True)
        _run(settings.evaluation(fold), fold)


def gather(folds: Sequence[Fold], output_dir: Path) -> None:
    """Bring the held-out cases of all folds together: predictions/, metrics.csv and metrics.json in output_dir.

    predictions/ is made anew, so that it holds the cases of these folds and no others.

    Raises:
        UserError: a fold is not finished; a case was held out twice; the folder cannot be written.
    """
    missing = [str(fold.number) for fold in folds if not fold.evaluated]
    if missing:
        raise UserError(f"fold(s) {', '.join(missing)} are not finished: run them with --fold, then this command again")
    rows = []
    for fold in folds:
        rows += [{**_with_nan(row), "fold": fold.number} for row in fold.scores()]
    _check_each_case_once(rows)
    predictions = output_dir / "predictions"
    try:
        if predictions.exists():
            shutil.rmtree(predictions)
        predictions.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write to {output_dir}: {error.strerror}; give another --output_dir") from error
    for fold in folds:
        _copy_predictions(fold.evaluation / "predictions", predictions, {row["case"] for row in fold.scores()})
    rows.sort(key=lambda row: row["case"])  # its classes stay in the task's order
    summary, cases = summarize(rows), len({row["case"] for row in rows})
    write_csv(output_dir / "metrics.csv", rows)
    numbers = [fold.number for fold in folds]
    write_json(output_dir / "metrics.json", {"folds": numbers, "cases": cases, "classes": summary, "per_case": rows})
    print(f"\nfolds {', '.join(map(str, numbers))} together: {format_summary(cases, summary)}")
    print(f"written: {output_dir}/metrics.csv, metrics.json, predictions/")


def main(argv: Sequence[str] | None = None) -> int:
    show_user_errors_plainly()
    logging.getLogger("monai").setLevel(logging.ERROR)
    options, overrides = _arguments(argv)
    settings = Settings(as_config_files(options.config_file), overrides)
    count = settings.count()
    alone = options.fold is not None
    numbers = [options.fold] if alone else sorted(set(options.folds or range(count)))
    outside = [number for number in numbers if not 0 <= number < count]
    if outside:
        raise UserError(f"fold {outside[0]} does not exist: there are {count}, 0 to {count - 1}")
    folds = [settings.fold(number) for number in numbers]
    for fold in folds:
        run_fold(settings, fold)
    if alone:
        print(f"fold {options.fold} is finished; the command without --fold puts the folds together")
    else:
        gather(folds, Path(settings.root) / "cross_validation")
    return 0


def _arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.cross_validation",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config_file", required=True, help="the training config, or a list of it and overlays")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--folds", type=_number, nargs="+", metavar="K", help="which folds (default: all)")
    which.add_argument("--fold", type=_number, metavar="K", help="this fold alone, nothing put together")
    return parser.parse_known_args(argv)


def _number(word: str) -> int:
    if word == "all":
        raise argparse.ArgumentTypeError("'all' holds nothing out: for that run training itself")
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be the number of a fold, not {word}") from None


def _kind_of_training(fold: Fold) -> str:
    if fold.ended and not fold.resumable:  # training would start anew and replace its weights
        raise UserError(
            f"fold {fold.number} has fewer than {fold.epochs} epochs, and without {fold.folder / 'checkpoint.pt'} it "
            "cannot train on: give --epochs as before, or another --output_dir"
        )
    if fold.ended:
        return f"training on to {fold.epochs} epochs"
    return "resuming" if fold.resumable else "training"


def _run(command: Sequence[str], fold: Fold) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(BUNDLE_ROOT), os.getenv("PYTHONPATH")]))
    }
    if subprocess.run(command, env=environment).returncode:
        raise UserError(
            f"fold {fold.number} did not finish (its message stands above); once that is put right, the same command "
            "goes on from here"
        )


def _copy_predictions(source: Path, target: Path, cases: Container[str]) -> None:
    """Of an earlier evaluation, of other cases, predictions may be left."""
    for file in sorted(source.iterdir()):
        if case_name(file) in cases:
            with replacing(target / file.name) as temporary:
                shutil.copyfile(file, temporary)
    write_provenance(target, *(read_provenance(source) or []))


def _check_each_case_once(rows: Sequence[dict[str, Any]]) -> None:
    folds: dict[str, set[int]] = {}
    for row in rows:
        folds.setdefault(row["case"], set()).add(row["fold"])
    twice = sorted(case for case, numbers in folds.items() if len(numbers) > 1)
    if twice:
        raise UserError(
            f"{len(twice)} case(s) are held out by more than one fold ({', '.join(twice[:5])}): their scores cannot be "
            "put together; choose --folds that share no held-out case"
        )


def _with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """metrics.json writes an undefined score as null."""
    return {key: float("nan") if value is None else value for key, value in row.items()}


def _read_configs(files: Sequence[str]) -> ConfigParser:
    parser = ConfigParser()
    try:
        parser.read_config(files)
    except (OSError, ValueError) as error:
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


if __name__ == "__main__":
    sys.exit(main())
