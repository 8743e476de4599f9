"""Dice of LightM-UNet and of other networks, trained by the bundle's own workflow under one budget.

    python benchmarks/accuracy.py --task bundle/configs/tasks/hippocampus.json --dataset_dir DIR \
        --networks lightm_unet plain_conv_unet --folds 0 1 --iterations 4000
    python benchmarks/accuracy.py --summary

Each run (network, variant, fold, seed, budget) is recorded in its row's file in benchmarks/results/accuracy
(accuracy_records.py); one that is there is not repeated, so that the tables grow run by run and nothing is lost when
one is cut off. A network may carry options, `lightm_unet:init_filters=16,scan_order="axes"`; `--set
learning_rate=0.0003` changes any id of the config, and `--variant NAME` says in the tables what was changed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy_networks import build, count_parameters, parse_spec
from accuracy_records import RESULTS, Record, find_run, load_records, row_name, save_run
from harness import environment, json_or_text, markdown_table

BENCHMARKS = Path(__file__).resolve().parent
BUNDLE = BENCHMARKS.parent / "bundle"
sys.path[:0] = [str(BUNDLE), str(BENCHMARKS)]
METRICS = ("dice", "hd95")
# Parts of a data set that the tables also show apart, by how their cases' names start.
PARTS = {"lung_xray": {"Montgomery": "MCUCXR", "Shenzhen": "CHNCXR"}}
# Settings that say where things are and change no figure; the network has its own entry.
OF_THIS_MACHINE = ("network_def", "scan_order", "dataset_dir", "bundle_root", "cache_dir", "num_workers")
# Of train.json, whose defaults may change: a record holds them as they were.
RECIPE = ("learning_rate", "warmup", "gradient_norm", "weight_decay", "optimizer", "loss")
TIMING_ITERATIONS = 60  # of the trial that turns a budget in seconds into one in iterations


def main() -> None:
    args = arguments()
    if args.summary:
        chosen = [r for r in load_records(args.results) if args.folds is None or r["fold"] in args.folds]
        print(summary(chosen))
        return
    for fold in args.folds or ["0"]:
        for seed in args.seeds:
            for spec in args.networks:
                measure(args, spec, fold, seed)
    print(summary(load_records(args.results)))


def measure(args: argparse.Namespace, spec: str, fold: str, seed: int) -> None:
    """Train and evaluate once, and record the run, unless it is recorded."""
    task = json.loads(args.task.read_text(encoding="utf-8"))
    budget = f"{args.seconds:g}s" if args.seconds else f"{args.iterations}it"
    record: Record = {"task": task["name"], "network": spec, "variant": args.variant, "budget": budget}
    record |= {"fold": fold, "seed": seed}
    if path := find_run(args.results, record):
        print(f"{path}: fold {fold}, seed {seed} is there", flush=True)
        return
    name = "_".join([task["name"], row_name(record), f"fold{fold}", f"seed{seed}", budget])
    run_dir = args.run_dir / name.translate(str.maketrans(' :=,"/', "------"))
    settings = config_settings(args, task, spec, fold, seed)
    iterations = args.iterations
    if args.seconds:
        iterations = iterations_in(args, settings, args.seconds, run_dir.with_name(f"{run_dir.name}-timing"))
    settings |= epochs(iterations, args.validations)
    count = parameters(spec, task | settings)
    log = train(args, settings, run_dir)
    record |= {
        "iterations": iterations,
        "batch_size": settings.get("batch_size", task["batch_size"]),
        "settings": recorded(args, settings),
        "train_seconds": round(sum(epoch["seconds"] for epoch in log), 1),
        "losses": [round(epoch["loss"], 4) for epoch in log],
        "environment": environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "weights": args.weights,
        "scores": {"tta" if tta else "no_tta": evaluate(args, settings, run_dir, tta) for tta in (False, True)},
        "parameters": count,
    }
    path = save_run(args.results, record)
    print(f"{path}\n{summary([record])}", flush=True)


def parameters(spec: str, task: Record) -> int:
    """How many the network has.

    Args:
        spec: the network and its options, as in a record.
        task: the overlay, with what the run's settings change in it (the patch decides on nnU-Net's stages).
    """
    name, options = parse_spec(spec)
    sizes = task["spatial_dims"], task["in_channels"], len(task["labels"]) + 1, task["patch_size"]
    return count_parameters(lambda: build(name, *sizes, **options))


def load_task(name: str) -> Record:
    """The overlay of a task, by the name that records give it."""
    return json.loads((BUNDLE / "configs" / "tasks" / f"{name}.json").read_text(encoding="utf-8"))


def config_settings(args: argparse.Namespace, task: Record, spec: str, fold: str, seed: int) -> dict[str, Any]:
    """What the run changes in train.json."""
    name, options = parse_spec(spec)
    network = {
        "_target_": "accuracy_networks.build",
        "name": name,
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "$len(@labels) + 1",
        "patch_size": "@patch_size",
    }
    network |= options
    network_order = network.get("scan_order", "raster")  # the constructor's default; weights carry the config's
    shared = {"dataset_dir": str(args.dataset_dir), "fold": fold, "seed": seed, "bundle_root": str(BUNDLE)}
    shared |= {"scan_order": network_order} if name == "lightm_unet" else {}
    shared |= {"network_def": network, "num_workers": args.num_workers, "cache_dir": str(args.run_dir / "preprocessed")}
    if args.splits:
        shared["splits"] = str(args.splits)
    return shared | pairs(args.set)


def recorded(args: argparse.Namespace, settings: Record) -> Record:
    """What the run's figures depend on, besides the network and the task's overlay."""
    defaults = json.loads(Path(configs(args, "train.json")[0]).read_text(encoding="utf-8"))
    recipe = {key: defaults[key] for key in RECIPE}
    return recipe | {key: value for key, value in settings.items() if key not in OF_THIS_MACHINE}


def pairs(items: Iterable[str]) -> dict[str, Any]:
    """["a=1", "b=x"] -> {"a": 1, "b": "x"}."""
    return {key: json_or_text(value) for key, _, value in (item.partition("=") for item in items)}


def epochs(iterations: int, validations: int) -> dict[str, int]:
    """Epochs of 50 iterations or more, and so many validations, the last one after the last epoch."""
    validations = min(validations, max(1, iterations // 50))
    count = max(1, min(iterations // 50, 100) // validations) * validations
    return {"epochs": count, "iterations_per_epoch": iterations // count, "val_interval": count // validations}


def train(args: argparse.Namespace, settings: dict[str, Any], run_dir: Path) -> list[Record]:
    """The bundle's training workflow, or the rest of it; returns the log of its epochs."""
    import monai.bundle

    resume = (run_dir / "checkpoint.pt").exists()
    if not (run_dir / "model_final.pt").exists():
        files = configs(args, "train.json")
        monai.bundle.run("training", config_file=files, output_dir=str(run_dir), resume=resume, **settings)
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def iterations_in(args: argparse.Namespace, settings: dict[str, Any], seconds: float, run_dir: Path) -> int:
    """How many iterations fit in so many seconds: of a trial's three epochs the first warms up, the last validates."""
    trial = settings | {"epochs": 3, "iterations_per_epoch": TIMING_ITERATIONS, "val_interval": 3}
    second = train(args, trial, run_dir)[1]
    return max(100, round(seconds / second["seconds"] * TIMING_ITERATIONS / 100) * 100)


def evaluate(args: argparse.Namespace, settings: dict[str, Any], run_dir: Path, tta: bool) -> Record:
    """The bundle's evaluation of the run's held-out cases: case -> class -> Dice and HD95."""
    import monai.bundle

    folder = run_dir / ("evaluation_tta" if tta else "evaluation")
    settings = settings | ({"fold": args.evaluate_fold} if args.evaluate_fold is not None else {})
    monai.bundle.run(
        "evaluating",
        config_file=configs(args, "train.json", "evaluate.json"),
        output_dir=str(run_dir),
        evaluation_dir=str(folder),
        checkpoint=str(run_dir / args.weights),
        tta=tta,
        **settings,
    )
    scores: Record = defaultdict(dict)
    for row in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["per_case"]:
        scores[row["case"]][row["class"]] = {metric: row[metric] for metric in METRICS}
    return dict(scores)


def configs(args: argparse.Namespace, first: str, *rest: str) -> list[str]:
    """The workflow's files with the task's overlay after train.json."""
    return [str(BUNDLE / "configs" / first), str(args.task), *(str(BUNDLE / "configs" / name) for name in rest)]


def summary(records: Sequence[Record]) -> str:
    """A table a task and budget: mean ± SD over all held-out cases, Dice with TTA unless the heading says otherwise.

    "loss rise" is the highest of any epoch: its loss over the lowest before it. "no longer there" is what the trainings
    had and the bundle has no more (`gone` in the records): they cannot be repeated as they were.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["budget"]].append(record)
    parts = []
    for (task, budget), members in sorted(groups.items()):
        parts.append(f"{task}, {budget} of training\n\n{_table(members)}")
    return "\n\n".join(parts) or "no results yet"


def _table(records: Sequence[Record]) -> str:
    rows: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        rows[row_name(record)].append(record)
    columns = score_columns(records[0])
    header = ["network", "parameters", "iterations", "folds x seeds", "cases", "train s", "loss rise", *columns]
    header.append("no longer there")
    body = []
    for name, runs in sorted(rows.items()):
        cells = [name, f"{runs[0]['parameters']:,}", iterations(runs)]
        cells.append(f"{len({run['fold'] for run in runs})} x {len({run['seed'] for run in runs})}")
        cells.append(f"{len({case for run in runs for case in run['scores']['tta']})}")
        cells.append(f"{statistics.mean(run['train_seconds'] for run in runs):.0f}")
        cells.append(_highest_rise(runs))
        cells += [mean_sd(runs, *column) for column in columns.values()]
        body.append([*cells, gone(runs)])
    return markdown_table(header, body)


def iterations(runs: Sequence[Record]) -> str:
    return f"{statistics.mean(run['iterations'] for run in runs):,.0f}"


def gone(runs: Sequence[Record]) -> str:
    """What the trainings had and the bundle has no more."""
    return ", ".join(dict.fromkeys(what for run in runs for what in run.get("gone", ())))


def _highest_rise(runs: Sequence[Record]) -> str:
    """Of all epochs; "-" where a record, an early one, holds no losses, or only one."""
    from scripts.engines.handlers import loss_rise

    if not all("losses" in run for run in runs):
        return "-"
    lowest = [itertools.accumulate(run["losses"], min) for run in runs]
    rises = [loss_rise(*pair) for run, low in zip(runs, lowest) for pair in zip(run["losses"][1:], low)]
    return f"{max(rises):.2f}" if rises else "-"


def score_columns(record: Record) -> dict[str, tuple[str, str, str, str]]:
    """Heading -> what stands under it: with TTA or not, class, metric, how the cases' names start."""
    classes = next(iter(record["scores"]["tta"].values()))
    columns = {f"{name}, no TTA": ("no_tta", name, "dice", "") for name in classes}
    columns |= {name: ("tta", name, "dice", "") for name in classes}
    parts = PARTS.get(record["task"], {})
    columns |= {f"{name}, {part}": ("tta", name, "dice", start) for name in classes for part, start in parts.items()}
    return columns | {f"{name}, HD95": ("tta", name, "hd95", "") for name in classes}


def mean_sd(runs: Sequence[Record], kind: str, name: str, metric: str, start: str) -> str:
    """Over the held-out cases of all runs, those left out where the metric is undefined."""
    cases = (item for run in runs for item in run["scores"][kind].items())
    values = [scores[name][metric] for case, scores in cases if case.startswith(start)]
    values = [value for value in values if value is not None]
    digits = 4 if metric == "dice" else 2
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}" if values else "-"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--summary", action="store_true", help="print the tables of the records, train nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--task", type=Path, default=BUNDLE / "configs" / "tasks" / "hippocampus.json")
    parser.add_argument("--dataset_dir", type=Path, help="the task's data")
    parser.add_argument("--networks", nargs="+", default=["lightm_unet"], help="see accuracy_networks.py")
    parser.add_argument("--folds", nargs="+", help="default: 0; with --summary: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--splits", type=Path, help="split file, such as the lung task's")
    parser.add_argument("--evaluate_fold", help="score the cases that this fold of the split file holds out instead")
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--seconds", type=float, help="train for so long instead: as many iterations as fit")
    parser.add_argument("--validations", type=int, default=10, help="validations during a training")
    parser.add_argument("--weights", default="model.pt", help="which of a run's files is scored")
    parser.add_argument("--set", nargs="*", default=[], metavar="ID=VALUE", help="ids of the config to change")
    parser.add_argument("--variant", default="", help="what --set changes, in a word for the tables")
    parser.add_argument("--run_dir", type=Path, default=Path("output/accuracy"), help="where runs are kept")
    parser.add_argument("--num_workers", type=int, default=4)
    args = parser.parse_args()
    if not args.summary and args.dataset_dir is None:
        parser.error("give the data set with --dataset_dir (or --summary for the tables)")
    return args


if __name__ == "__main__":
    main()
