"""Train every fold, predict each case with the network that has not seen it, and score them all together.

``python -m scripts.cross_validation --config_file "['configs/train.json','configs/tasks/NAME.json']"`` runs training
and evaluation for each fold, one after the other. What is finished is not done again, an interrupted training goes on
where it stopped, and with more ``--epochs`` than before every fold trains on. On a cluster, ``--fold K`` does one fold
(a job array's task), and the same command without it puts the finished folds together. Any id of the configs can be
set as for ``monai.bundle run``: ``--epochs 50``.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.command_line import as_config_files, check_words
from ..common.errors import UserError, show_user_errors_plainly
from ..common.workers import end_children_with_this_process
from ..images.outputs import check_output_folder
from .folds import Settings
from .gathering import gather
from .running import run_fold

__all__ = ["main"]

EXIT_STATUS = """exit status:
  0  every fold asked for is finished and scored
  1  a training or evaluation failed, or something has to be put right; the message says what
  2  wrong usage of this command"""


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
    check_output_folder(settings.root, "--output_dir")
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
    options, overrides = parser.parse_known_args(argv)
    check_words(["--config_file", options.config_file, *overrides])
    return options, overrides


def _number(word: str) -> int:
    if word == "all":
        raise argparse.ArgumentTypeError("'all' holds nothing out: for that run training itself")
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be the number of a fold, not {word}") from None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run that it waits for is ended too
    end_children_with_this_process()
    sys.exit(main())
