"""Show what a model did: scores, charts and pictures of all cases in one page that opens from disk.

``python -m scripts.report --predictions DIR [--labels DIR] [--images DIR] [--postprocessed DIR] --output_dir DIR``
pairs the folders' files by name, scores every case, draws the worst ones and writes report.html, summary.json (every
number) and figures/ (the PNGs). Without --labels it shows predictions and their sizes only.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..common.command_line import number_from_zero, whole_number
from ..common.errors import UserError, show_user_errors_plainly
from ..common.run_folder import SUMMARY
from ..common.workers import default_workers
from ..images.task import read_task
from ..metrics import DEFAULT_TOLERANCE
from .pairing import pair_cases
from .writing import FIGURES, PAGE, PANELS, prepare_output, write_report

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--predictions", type=Path, required=True, help="folder of predicted label maps")
    add("--labels", type=Path, help="folder of references with the same names")
    add("--images", type=Path, help="folder of images with the same names (or NAME_0000, NAME_0001, … per channel)")
    add("--postprocessed", type=Path, help="folder of postprocessed predictions with the same names")
    overlay = "task overlay (configs/tasks/NAME.json): names of the label values; of several, later ones override"
    add("--config_file", type=Path, nargs="+", default=[], metavar="TASK.json", help=overlay)
    add("--run_dir", type=Path, help="folder of a training run, whose log.jsonl gives the training curves")
    add("--output_dir", type=Path, required=True, help="where report.html, summary.json and figures/ go")
    add("--overwrite", action="store_true", help="replace a report that is there")
    add("--subset", action="store_true", help="leave out references without a prediction")
    add("--panels", type=whole_number, default=PANELS, help=f"cases to draw, worst first (default {PANELS})")
    tolerance = "of the surface Dice, in mm (default %(default)s)"
    add("--tolerance", type=number_from_zero, default=DEFAULT_TOLERANCE, help=tolerance)
    add("--workers", type=whole_number, default=default_workers(), help="processes (default %(default)s)")
    add("--title", help="heading of the report")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line. Raises UserError, which the command line shows as one line."""
    options = _parser().parse_args(arguments)
    task = read_task(*options.config_file)
    if options.run_dir is not None and not options.run_dir.is_dir():
        raise UserError(f"--run_dir {options.run_dir} is no folder: give that of a training run, or leave it out")
    cases = pair_cases(options.predictions, options.images, options.labels, options.postprocessed, options.subset)
    folders = (options.predictions, options.images, options.labels, options.postprocessed)
    prepare_output(options.output_dir, options.overwrite, list(filter(None, folders)))
    summary = write_report(
        cases,
        options.output_dir,
        task,
        run_dir=options.run_dir,
        panels=options.panels,
        workers=max(1, options.workers),
        tolerance=options.tolerance,
        title=options.title,
    )
    size = os.path.getsize(options.output_dir / PAGE) / 2**20
    print(f"{summary['cases']} cases: {options.output_dir / PAGE} ({size:.1f} MiB), {SUMMARY}, {FIGURES}/")


if __name__ == "__main__":
    show_user_errors_plainly()
    main()
