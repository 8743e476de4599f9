"""The steps from trained folds to the report, each by the function that does it everywhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.readable_json import read_json, write_json
from ..common.run_folder import SUMMARY, ScoresFolder
from ..common.workers import default_workers
from ..cross_validation.folds import ALL
from ..cross_validation.gathering import gather
from ..cross_validation.running import evaluate_fold, run_program
from ..engines.prediction import group_channels, input_cases
from ..engines.provenance import check_held_out
from ..engines.weights import weights_digest
from ..images.files import list_images
from ..images.pairs import Pair, files_by_case
from ..postprocessing.apply import Rules, describe, load_rules, no_rules
from ..postprocessing.changes import changed_voxels
from ..postprocessing.determine import FEW_CASES, NothingToLearnError, determine, format_evidence
from ..postprocessing.folder import apply_to_folder
from ..report.pairing import pair_cases
from ..report.writing import PAGE, prepare_output, write_report
from .configuration import Configuration
from .output import Output, file_digests

__all__ = ["Inputs", "clean", "determine_rules", "draw", "evaluate", "predict", "write_configuration"]


@dataclass(frozen=True)
class Inputs:
    """What is predicted.

    Args:
        path: a folder of images, or one image.
        labels: the folder of their labels, if there is one.
        samples: how many cases the report draws.
        workers: processes of the steps that work case by case.
    """

    path: Path
    labels: Path | None
    samples: int
    workers: int | None

    @property
    def folder(self) -> Path:
        """Where the images lie."""
        return self.path if self.path.is_dir() else self.path.parent

    def cases(self, in_channels: int) -> dict[str, str | list[str]]:
        """Case -> its image, or the files of its channels.

        Raises:
            UserError: there is no image, or a channel is missing.
        """
        return {case["name"]: case["image"] for case in group_channels(list_images(self.path), in_channels)}


def evaluate(configuration: Configuration, output: Output) -> ScoresFolder | None:
    """Score the held-out cases of every fold that is not scored yet, and bring them together.

    Returns:
        Where they are; None where nothing was held out.

    Raises:
        UserError: an evaluation failed, or folds hold out the same case.
    """
    if not configuration.held_out:
        print(f"fold {ALL} holds no case out", flush=True)
        return None
    for fold in configuration.held_out:
        evaluate_fold(configuration.settings, fold)
    target = output.folder.held_out / configuration.name
    gather(configuration.held_out, target)
    return ScoresFolder(target)


def determine_rules(
    configuration: Configuration, held_out: ScoresFolder | None, output: Output, inputs: Inputs
) -> str | None:
    """Decide on the rules, from held-out predictions alone, and write them.

    Returns:
        Why there are none; None where there are.

    Raises:
        UserError: a case cannot be used, or the network was trained on it.
    """
    file = output.folder.rules
    pairs = _held_out_pairs(configuration, held_out) if held_out else []
    if len(pairs) < FEW_CASES:
        file.unlink(missing_ok=True)
        return f"{len(pairs)} held-out case(s) are too few to learn from; {FEW_CASES} are asked for"
    of = {
        "task": vars(configuration.task),
        "cases": {pair.name: list(map(weights_digest, (pair.prediction, pair.label))) for pair in pairs},
    }
    if output.done("rules", of):
        print(f"determined already: {describe(load_rules(file))}", flush=True)
        return None
    file.unlink(missing_ok=True)
    check_held_out(held_out.predictions, [pair.name for pair in pairs])
    try:
        rules = determine(pairs, configuration.task, inputs.workers)
    except NothingToLearnError as error:
        return str(error)
    write_json(file, rules)
    output.note("rules", of, [file])
    print(format_evidence(rules), flush=True)
    return None


def write_configuration(configuration: Configuration, output: Output) -> Rules | None:
    """Write what inference has to be told to predict the same; returns the rules, if there are any."""
    file = output.folder.rules
    rules = load_rules(file, configuration.task.labels) if file.is_file() else None
    write_json(output.folder.configuration, configuration.overlay(file if rules else None))
    return rules


def predict(configuration: Configuration, output: Output, inputs: Inputs) -> None:
    """Predict the images that have no whole prediction yet, without any rules.

    Raises:
        UserError: images could not be predicted, which the run has printed.
    """
    target = output.folder.predictions
    missing = input_cases(str(inputs.path), str(target), skip_existing=True, in_channels=configuration.in_channels)
    if not missing:
        print("all are there already, of these weights and settings", flush=True)
        return
    options = {"input_dir": os.path.abspath(inputs.path), "output_dir": os.path.abspath(target)}
    options |= {"skip_existing": "true", "postprocessing_rules": "none"}
    run_program(configuration.inference(output.folder.configuration, options), "the prediction")


def clean(rules: Rules | None, labels: Mapping[str, int], output: Output, inputs: Inputs) -> list[dict[str, Any]]:
    """Clean the predictions into their own folder; without rules they are what was predicted.

    Returns:
        What each rule changed, see changed_voxels.

    Raises:
        UserError: see apply_to_folder.
    """
    place, rules = output.folder, rules or no_rules(labels)
    files = files_by_case(place.predictions)
    of = {"rules": rules, "predictions": file_digests(files)}
    if note := output.done("postprocessed", of):
        print("all are cleaned already, by these rules", flush=True)
        return note["found"]
    apply_to_folder(place.predictions, rules, place.postprocessed, overwrite=True, workers=inputs.workers)
    changed = changed_voxels(list(files.values()), rules, inputs.workers)
    output.note("postprocessed", of, list(files_by_case(place.postprocessed).values()), changed)
    return changed


def draw(configuration: Configuration, output: Output, inputs: Inputs) -> dict[str, Any]:
    """Write the report, of raw and cleaned predictions: with labels the worst cases are drawn, without them some of
    each size. Returns its summary.

    Raises:
        UserError: images, predictions and labels do not fit together.
    """
    place = output.folder
    cases = pair_cases(place.predictions, inputs.folder, inputs.labels, place.postprocessed, subset=True)
    files = {
        case.name: list(map(str, filter(None, [case.prediction, case.label, case.postprocessed]))) for case in cases
    }
    of = {"files": file_digests(files), "samples": inputs.samples, "task": vars(configuration.task)}
    page, summary = place.report / PAGE, place.report / SUMMARY
    if output.done("report", of) and page.is_file() and summary.is_file():
        print(f"drawn already: {page}", flush=True)
        return read_json(summary)
    prepare_output(place.report, True, [inputs.folder, place.predictions, place.postprocessed])
    write_report(
        cases,
        place.report,
        configuration.task,
        run_dir=configuration.folds[0].folder if len(configuration.folds) == 1 else None,
        panels=inputs.samples,
        workers=max(1, default_workers() if inputs.workers is None else inputs.workers),
        spread=inputs.labels is None,
    )
    output.note("report", of, [])
    return read_json(summary)


def _held_out_pairs(configuration: Configuration, held_out: ScoresFolder) -> list[Pair]:
    """The gathered predictions with the labels of the data set, wherever these lie."""
    labels = {
        case["name"]: Path(case["label"])
        for fold in configuration.held_out
        for case in configuration.settings.held_out_cases(fold)
    }
    files = files_by_case(held_out.predictions)
    return [Pair(name, file, labels[name]) for name, file in files.items()]
