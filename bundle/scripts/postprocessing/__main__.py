"""python -m scripts.postprocessing: learn postprocessing from held-out predictions, and apply it to a folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..common.command_line import whole_number
from ..common.errors import UserError, show_user_errors_plainly
from ..common.readable_json import write_json
from ..engines.provenance import check_held_out
from ..images.outputs import check_output_file, open_folder
from ..images.pairs import pair_files
from ..images.task import read_task
from .apply import describe, load_rules
from .determine import FEW_CASES, determine, format_evidence
from .folder import apply_to_folder

__all__ = ["main"]

DETERMINE = """Decides which of these help, and writes them with the evidence: keeping only the largest component of the
whole foreground or of a class, removing small components of a class, filling its holes. One is adopted only if the
mean Dice of its class (of all classes, for the first) strictly rises and that of no class or region falls. The
predictions must be of cases that the model was not trained on, as cross-validation makes them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line. Raises UserError, which the command line shows as one line."""
    options = _parser().parse_args(arguments)
    options.run(options)


def _determine(options: argparse.Namespace) -> None:
    task = read_task(*options.config_file)
    pairs = pair_files(options.predictions, options.labels, options.allow_missing)
    read = [*(file for pair in pairs for file in (pair.prediction, pair.label)), *options.config_file]
    check_output_file(options.output, "--output", [*read, *filter(None, [options.trained_on])])
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} is there already: add --overwrite or give another --output")
    trained_on = _names(options.trained_on) if options.trained_on else None
    check_held_out(options.predictions, [pair.name for pair in pairs], options.held_out, trained_on)
    if 1 < len(pairs) < FEW_CASES:
        print(f"warning: {len(pairs)} cases are few to learn from: what helps them by chance is adopted too")
    open_folder(options.output.parent, "--output")
    rules = determine(pairs, task, options.workers)
    try:
        write_json(options.output, rules)
    except OSError as error:
        raise UserError(f"cannot write {options.output}: {error.strerror}; give another --output") from error
    print(format_evidence(rules) + f"\nwritten: {options.output}")


def _apply(options: argparse.Namespace) -> None:
    rules = load_rules(options.rules)
    print(describe(rules))
    count = apply_to_folder(options.predictions, rules, options.output_dir, options.overwrite, options.workers)
    print(f"{count} label maps written to {options.output_dir}")


def _names(file: Path) -> list[str]:
    """Case names from a JSON list or from the cases.json beside a checkpoint."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--trained_on {file} cannot be read: {error}") from error
    names = content.get("training") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"--trained_on {file} must hold a list of case names, or be a run's cases.json")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.postprocessing", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(required=True, metavar="determine | apply")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="folder of predicted label maps")
    workers = "processes, each with a case in memory; 0: none besides this one"
    shared.add_argument("--workers", type=whole_number, metavar="N", help=workers)
    shared.add_argument("--overwrite", action="store_true", help="replace what is there")

    learn = commands.add_parser("determine", parents=[shared], help="learn rules", description=DETERMINE)
    learn.add_argument("--labels", type=Path, required=True, metavar="DIR", help="folder of labels, same case names")
    learn.add_argument(
        "--config_file", type=Path, nargs="+", required=True, metavar="TASK.json", help="labels and regions of the task"
    )
    learn.add_argument("--output", type=Path, required=True, metavar="FILE", help="such as models/postprocessing.json")
    learn.add_argument("--allow_missing", action="store_true", help="leave out labels that have no prediction")
    learn.add_argument("--held_out", action="store_true", help="I say that the model was trained on none of the cases")
    learn.add_argument(
        "--trained_on", type=Path, metavar="FILE", help="JSON list of the cases that the model was trained on"
    )
    learn.set_defaults(run=_determine)

    clean = commands.add_parser("apply", parents=[shared], help="apply rules to a folder")
    clean.add_argument("--rules", type=Path, required=True, metavar="FILE", help="what determine wrote")
    clean.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="another folder")
    clean.set_defaults(run=_apply)
    return parser


if __name__ == "__main__":
    show_user_errors_plainly()
    main()
