"""Finish a task whose networks are trained: rules, predictions, a report.

``python -m scripts.finish --config_file "['configs/train.json','configs/tasks/NAME.json']" --input_dir IMAGES
--output_dir OUT`` evaluates the held-out cases of all trained folds that are not evaluated yet, learns postprocessing
rules from them, predicts the images with TTA and all folds together, cleans the predictions and writes a report and
summary.json. It never trains. Of several ``--config_file`` it takes the one with the best cross-validated Dice on the
same cases, or a smaller one within the standard error of that. What is there already of the same weights and settings
is taken, so that after an interruption the same command goes on. Settings of the training that were typed are to be
typed again, as ``--init_filters 16``; any id of the configs can be set but ``labels``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.command_line import as_config_files, check_separator, check_words, whole_number
from ..common.errors import UserError, first_few, show_user_errors_plainly
from ..common.run_folder import ScoresFolder
from ..common.workers import end_children_with_this_process
from ..cross_validation.folds import ALL
from ..images.pairs import files_by_case
from .comparison import check_comparable, compare, format_comparison
from .configuration import Configuration
from .output import Output, file_digests
from .packing import check_archive, pack
from .steps import Inputs, clean, determine_rules, draw, evaluate, predict, write_configuration
from .summary import format_end, write_summary

__all__ = ["main"]

EXIT_STATUS = """exit status:
  0  everything is in the output folder
  1  a step failed, or something has to be put right; the message says what
  2  wrong usage of this command"""
SAMPLES = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Raises UserError, which the command line shows as one line."""
    show_user_errors_plainly()
    for name in ("monai", "ignite"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options, overrides = _arguments(argv)
    inputs = Inputs(options.input_dir, options.labels, options.samples, options.workers)
    configurations = _configurations(options, overrides)
    if options.pack:
        check_archive(options.pack, options.overwrite)
    finish(configurations, inputs, options.output_dir, options.overwrite, options.pack)
    return 0


def finish(
    configurations: Sequence[Configuration],
    inputs: Inputs,
    output_dir: Path,
    overwrite: bool = False,
    archive: Path | None = None,
) -> None:
    """All steps, one after the other.

    Args:
        configurations: with their folds; of several the best is predicted with.
        overwrite: replace predictions that were made with other weights, settings or images.
        archive: a zip that the finished task is packed into.

    Raises:
        UserError: see each step.
    """
    check_comparable(configurations)
    _check_labels(inputs, inputs.cases(configurations[0].in_channels))
    output = Output(output_dir, filter(None, [inputs.path, inputs.labels]))
    chosen = configurations[0]
    made_of = _made_of(chosen, inputs)
    if len(configurations) == 1:  # before anything takes time
        output.check_predictions(made_of, overwrite)
    output.begin([configuration.name for configuration in configurations])
    _say(1, "held-out cases")
    held_out = {configuration.name: _evaluate(configuration, output) for configuration in configurations}
    comparison = None
    if len(configurations) > 1:
        comparison = compare(configurations, held_out)
        print(f"\n{format_comparison(comparison)}", flush=True)
        [chosen] = [configuration for configuration in configurations if configuration.name == comparison["chosen"]]
        made_of = _made_of(chosen, inputs)
        output.check_predictions(made_of, overwrite)
    output.begin_predictions(made_of)
    _say(2, "postprocessing rules")
    why_none = determine_rules(chosen, held_out[chosen.name], output, inputs)
    rules = write_configuration(chosen, output)
    _say(3, f"prediction of {len(made_of['images'])} case(s) with {chosen.name}, {chosen.numbers()}")
    predict(chosen, output, inputs)
    _say(4, "postprocessing")
    changed = clean(rules, chosen.task.labels, output, inputs)
    _say(5, "report")
    report = draw(chosen, output, inputs)
    summary = write_summary(chosen, held_out[chosen.name], rules, why_none, changed, report, comparison, output)
    if archive is not None:
        pack(chosen, summary, archive, output, inputs.cases(chosen.in_channels))
    print("\n" + format_end(summary, output), flush=True)


def _configurations(options: argparse.Namespace, overrides: Sequence[str]) -> list[Configuration]:
    folders = options.folds_dir or [None] * len(options.config_file)
    if len(folders) != len(options.config_file):
        raise UserError(
            f"{len(options.config_file)} --config_file and {len(folders)} --folds_dir: give one for each "
            "configuration, in the same order, or none"
        )
    found = []
    for files, folder in zip(options.config_file, folders, strict=True):
        found.append(Configuration(as_config_files(files), overrides, folder))
        found[-1].take_folds(options.fold)
    return found


def _evaluate(configuration: Configuration, output: Output) -> ScoresFolder | None:
    print(f"{configuration.name}: {configuration.numbers()} in {configuration.root}", flush=True)
    for fold in configuration.unfinished:
        print(f"note: the training of fold {fold.number} has not ended, and it is left out", flush=True)
    return evaluate(configuration, output)


def _made_of(configuration: Configuration, inputs: Inputs) -> dict[str, Any]:
    """What predictions are made with."""
    return {
        "weights": configuration.digests(),
        "settings": configuration.inference_settings(),
        "images": file_digests(inputs.cases(configuration.in_channels)),
    }


def _say(number: int, step: str) -> None:
    print(f"\n[{number}/5] {step}", flush=True)


def _check_labels(inputs: Inputs, images: dict) -> None:
    """Before anything takes time."""
    if inputs.labels is None:
        return
    missing = sorted(images.keys() - files_by_case(inputs.labels).keys())
    if missing:
        raise UserError(
            f"--labels {inputs.labels} has no label of {first_few(missing)}: leave --labels out, or predict labelled "
            "images only"
        )


def _arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.finish",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    files = "the training config and the task's overlay, as for training; given several times, the best is taken"
    add("--config_file", required=True, action="append", help=files)
    add("--input_dir", type=Path, required=True, metavar="DIR", help="the images to predict, or one image")
    add("--labels", type=Path, metavar="DIR", help="their labels, where there are any")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where everything goes")
    add(
        "--samples",
        type=whole_number,
        default=SAMPLES,
        metavar="N",
        help="cases that the report draws (default %(default)s)",
    )
    add("--fold", type=_fold, metavar="K", help="predict with this fold alone (default: all that are trained)")
    folds = "folder of fold_0, fold_1, … (default: where training puts them); one for each --config_file"
    add("--folds_dir", type=Path, action="append", metavar="DIR", help=folds)
    add(
        "--workers",
        type=whole_number,
        metavar="N",
        help="processes, each with a case in memory; 0: none besides this one",
    )
    add("--pack", type=Path, metavar="FILE.zip", help="also write the task as a bundle of its own, and try it")
    add("--overwrite", action="store_true", help="replace predictions of other weights, settings or images")
    options, overrides = parser.parse_known_args(argv)
    for files in options.config_file:
        check_words(["--config_file", files, *overrides])
    folders = {
        "input_dir": [options.input_dir],
        "output_dir": [options.output_dir],
        "folds_dir": options.folds_dir or [],
    }
    for name, paths in folders.items():
        for path in paths:
            check_separator(name, os.path.abspath(path))
    return options, overrides


def _fold(text: str) -> int | str:
    return text if text == ALL else whole_number(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run that it waits for is ended too
    end_children_with_this_process()
    sys.exit(main())
