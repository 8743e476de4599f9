"""Check a data set, measure it, and plan a training: one task overlay that training, evaluation and inference read.

``python -m scripts.planning --dataset_dir DIR`` takes a folder in the layout of the Medical Segmentation Decathlon or
of nnU-Net's raw data. It lists every problem of the data set in one go, writes its fingerprint (NAME.fingerprint.json),
prints the plan with the reason of every choice, and writes the overlay (configs/tasks/NAME.json): edit it as you like.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common import BUNDLE_ROOT
from ..common.command_line import number_from_zero, whole_number
from ..common.errors import UserError, show_user_errors_plainly
from ..common.free_memory import free_memory
from ..common.readable_json import write_json
from ..data.layouts import read_dataset
from ..images.outputs import check_output_file, open_folder, refuse_foreign
from .fingerprint import fingerprint
from .integrity import DatasetReport, Problem, check_dataset, problem_lines
from .machine import WORKERS
from .make_plan import make_plan
from .memory import load_memory_table
from .nnunet_plans import dataset_name
from .plan import Plan, Row, Wishes

__all__ = ["default_name", "format_table", "main", "next_commands"]

GPU_SHARE = 0.9  # of a GPU's memory; the rest is CUDA's own and what fragments
# Enough for two patches of 128^3 at 32 filters. More only makes a step slower: who wants it, asks for it.
LARGEST_DEFAULT_GIB = 12.0
FOUND_ERRORS = 1
NNUNET_RAW = "nnUNet_raw"  # environment variable of nnU-Net: the folder of its data sets
EXIT_STATUS = """exit status:
  0  the plan is written; with --check_only, the data set has no errors (warnings may remain)
  1  the data set has errors, or something else has to be put right; the message says what
  2  wrong usage of this command"""


def find_dataset_dir(options: argparse.Namespace) -> Path:
    """The folder that was given, or the one of the nnU-Net plan's data set under $nnUNet_raw.

    Raises:
        UserError: neither tells.
    """
    if options.dataset_dir is not None:
        return options.dataset_dir
    if options.from_nnunet is None:
        raise UserError("give the data set's folder with --dataset_dir")
    name, raw = dataset_name(options.from_nnunet), os.environ.get(NNUNET_RAW)
    if raw is None or not (Path(raw) / name).is_dir():
        where = "$nnUNet_raw is not set" if raw is None else f"{raw} has no such folder"
        raise UserError(f"{options.from_nnunet} is for {name}, but {where}: give its folder with --dataset_dir")
    return Path(raw) / name


def check_name(name: str) -> None:
    """Refuse a name that a file, a config or the list behind --config_file would not keep as it is.

    Raises:
        UserError: the name holds other characters than letters, digits, "_", "." and "-", or begins with "." or "-".
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f'--name {name!r}: files and configs take letters, digits and "_", after the first also "." and "-"; '
            f"try --name {default_name(name)} (--output says where the overlay goes)"
        )


def default_name(text: str) -> str:
    """A name for files, from the data set's own: "Lung X-ray" -> lung_x-ray."""
    return re.sub(r"[^a-z0-9.-]+", "_", text.lower())[:80].strip("_.-") or "task"


def gpu_memory_gib(asked: float | None) -> float | None:
    """Memory to plan for in GiB: as asked (0: none), else nine tenths of the first GPU's, at most
    LARGEST_DEFAULT_GIB; None where there is none.
    """
    if asked is not None:
        return asked or None
    import torch

    if not torch.cuda.is_available():
        return None
    return min(GPU_SHARE * torch.cuda.get_device_properties(0).total_memory / 2**30, LARGEST_DEFAULT_GIB)


def print_problems(title: str, problems: Sequence[Problem]) -> None:
    """A heading with the count, and one problem a line."""
    if problems:
        print(f"{len(problems)} {title}{'s' if len(problems) > 1 else ''}")
        print("\n".join(f"  {line}" for line in problem_lines(problems)) + "\n")


def format_table(rows: Iterable[Row], width: int | None = None) -> str:
    """Settings, values and reasons in aligned columns; long values and reasons go on in the next line."""
    width = width or max(100, shutil.get_terminal_size((120, 24)).columns)
    rows = [Row("setting", "value", "reason"), *rows]
    first = max(len(row.setting) for row in rows)
    second = min(32, max(len(row.value) for row in rows))
    lines = [line for row in rows for line in _wrapped(row, first, second, max(30, width - first - second - 4))]
    return "\n".join([lines[0], "-" * len(lines[0].ljust(first + second + 24)), *lines[1:]])


def _wrapped(row: Row, first: int, second: int, third: int) -> list[str]:
    values, reasons = textwrap.wrap(row.value, second) or [""], textwrap.wrap(row.reason, third) or [""]
    count = max(len(values), len(reasons))
    names = [row.setting]
    for column in (names, values, reasons):
        column += [""] * (count - len(column))
    cells = zip(names, values, reasons, strict=True)
    return [f"{name:<{first}}  {value:<{second}}  {reason}".rstrip() for name, value, reason in cells]


def next_commands(overlay_file: Path, plan: Plan) -> list[str]:
    """What to type next, from the bundle's folder: training, evaluating, inference."""
    path = overlay_file.resolve()
    path = path.relative_to(BUNDLE_ROOT) if path.is_relative_to(BUNDLE_ROOT) else path
    options = [] if plan.fold == 0 else ["--fold", str(plan.fold)]
    options += [] if plan.num_workers in (None, WORKERS) else ["--num_workers", str(plan.num_workers)]
    folders = ["--input_dir", "IN", "--output_dir", "OUT"]
    run = "python -m monai.bundle run"
    return [
        f"{run} training   --config_file {_files('train', path)} {shlex.join(options)}".rstrip(),
        f"{run} evaluating --config_file {_files('train', path, 'evaluate')} {shlex.join(options)}".rstrip(),
        f"{run} inference  --config_file {_files('inference', path)} {shlex.join(folders)}",
    ]


def _files(first: str, overlay: Path, *last: str) -> str:
    files = [f"configs/{first}.json", overlay.as_posix(), *(f"configs/{name}.json" for name in last)]
    return '"[' + ",".join(f"'{file}'" for file in files) + ']"'


def path_for_configs(folder: Path) -> str:
    """The whole path of a data set as an overlay can hold it: that of a link where the folder's own has a ``#``.

    Raises:
        UserError: both have one.
    """
    path = next((path for path in map(str, (folder.resolve(), folder.absolute())) if "#" not in path), None)
    if path is None:
        raise UserError(f"--dataset_dir {folder}: configs read # as ::, so rename it, or give a link to it without #")
    return path


def fingerprint_of(overlay_file: Path) -> Path:
    """Where the fingerprint goes: beside the overlay."""
    return overlay_file.with_name(f"{overlay_file.stem}.fingerprint.json")


def check_place(overlay_file: Path, options: argparse.Namespace) -> None:
    """Refuse a place where a file would be lost, before the check of the data set, which may take long.

    Raises:
        UserError: nothing may be written there (see images/outputs.py); an overlay is there; or a file that is no
            fingerprint has the fingerprint's name.
    """
    files, read = (overlay_file, fingerprint_of(overlay_file)), filter(None, [options.from_nnunet])
    for file, inputs in zip(files, ([*read], []), strict=True):
        check_output_file(file, "--output", inputs)
    if overlay_file.exists() and not options.overwrite:
        raise UserError(f"{overlay_file} exists: choose another --name or --output, or replace it with --overwrite")
    if not options.overwrite and not _is_fingerprint(files[1]):
        refuse_foreign(files[1:], "--output")


def _is_fingerprint(file: Path) -> bool:
    """Whether an earlier planning, maybe one that was killed before its overlay, wrote a file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"image_dims", "median_shape", "per_case"} <= content.keys()


def write_plan(report: DatasetReport, name: str, overlay_file: Path, options: argparse.Namespace) -> Plan:
    """Make the plan, print it, and write overlay and fingerprint."""
    gpu, free = gpu_memory_gib(options.gpu_memory_gb), free_memory()
    wishes = Wishes(gpu, options.init_filters, options.dimensions, options.from_nnunet, free)
    facts, dataset_dir = fingerprint(report), path_for_configs(report.description.folder)
    plan = make_plan(facts, name, dataset_dir, load_memory_table(), wishes, report.description.patients)
    fingerprint_file = fingerprint_of(overlay_file)
    open_folder(overlay_file.parent, "--output")
    write_json(fingerprint_file, facts)
    write_json(overlay_file, plan.overlay)
    print(format_table(plan.rows) + "\n")
    for warning in plan.warnings:
        print(f"WARNING  {warning}\n")
    print(f"fingerprint  {fingerprint_file}\nplan         {overlay_file}\n")
    return plan


def run(options: argparse.Namespace) -> int:
    """Check, fingerprint, plan; returns the exit status."""
    if options.name is not None:
        check_name(options.name)
    dataset_dir = find_dataset_dir(options)
    description = read_dataset(dataset_dir)
    name = options.name or default_name(description.name)
    overlay_file = options.output or BUNDLE_ROOT / "configs" / "tasks" / f"{name}.json"
    if not options.check_only:
        check_place(overlay_file, options)
        path_for_configs(dataset_dir)
    report = check_dataset(dataset_dir, options.workers)
    print_problems("warning", report.warnings)
    print_problems("error", report.errors)
    if report.errors:
        print(f"{dataset_dir} cannot be used as it is: put the errors right, or leave the cases out.")
        return FOUND_ERRORS
    print(f"{dataset_dir}: no errors in {len(description.cases)} cases.\n")
    if options.check_only:
        return 0
    plan = write_plan(report, name, overlay_file, options)
    print(f"Next, in {BUNDLE_ROOT}:")
    print("\n".join(next_commands(overlay_file, plan)))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.planning",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset_dir", type=Path, metavar="DIR", help="the data set; with --from_nnunet, default: in $nnUNet_raw")
    add("--name", help="of the task, its files and its output folder; default: the data set's")
    add("--output", type=Path, metavar="FILE", help="the overlay to write; default: configs/tasks/NAME.json")
    add("--gpu_memory_gb", type=_memory, metavar="G", help="GiB that training may take, 0: plan for a CPU; default: "
        f"nine tenths of this machine's GPU, at most {LARGEST_DEFAULT_GIB:g}")  # fmt: skip
    add("--init_filters", type=_filters, metavar="F", help="width of the network; default: 32, on a CPU 16")
    add("--dimensions", type=int, choices=(2, 3), help="of the network; default: those of the images")
    add("--from_nnunet", type=Path, metavar="FILE", help="take spacing, patch, batch and normalisation from an nnU-Net "
        "v2 plans.json")  # fmt: skip
    add("--check_only", action="store_true", help="only look for problems in the data set")
    add("--workers", type=_at_least_one, metavar="N", help="processes that read; default: one a CPU core, up to 8")
    add("--overwrite", action="store_true", help="replace an overlay of this name")
    return parser.parse_args(arguments)


def _memory(text: str) -> float:
    return number_from_zero(text, "a number of GiB, 0 for a CPU")


def _at_least_one(text: str) -> int:
    return whole_number(text, least=1)


def _filters(text: str) -> int:
    from ..networks.lightm_unet import GROUPS  # not above: its import takes seconds

    value = _at_least_one(text)
    if value % GROUPS:
        raise argparse.ArgumentTypeError(f"must be a multiple of {GROUPS}, the groups of GroupNorm, not {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status. Raises UserError, which the command line shows as one line."""
    return run(parse_arguments(arguments))


if __name__ == "__main__":
    show_user_errors_plainly()
    sys.exit(main())
