"""Options with values of the wrong type or out of range, for each command."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import samples
from .ground import Ground
from .refusals import Scenario
from .samples import Words

WHOLE = ("0", "-1", "1.5", "many", "null", "[2]")
SHARE = ("-0.1", "1", "1.5", "half", "nan")
FLAG = ("maybe", "2", "[]")

# What a network and its input need, wherever they are.
NETWORK = {
    "init_filters": (*WHOLE, "12"),
    "scan_order": ("zigzag", "1"),
    "stem": ("some", "1"),
    "overlap": SHARE,
    "sw_batch_size": WHOLE,
    "device": ("gpu", "cuda:99", "3.5"),
    "num_workers": ("-1", "1.5", "many"),
    "spatial_dims": ("1", "4", "2.5", "three"),
    "in_channels": ("0", "-1", "two", "1.5"),
    "patch_size": ("16", "[16,16]", "[0,16,16]", "[16,16,-16]", "big", "[15.5,16,16]", "[]"),
    "strides": ("2", "['a']", "[0]"),
    "spacing": ("1", "[1,1]", "[0,1,1]", "[-1,1,1]", "wide", "['a','b','c']"),
    "normalization": ("zscore", "['magic']", "[]", "3"),
    "labels": ("[]", "{}", "3", "{'core':'x','rim':2}", "{'core':0,'rim':2}", "{'core':1,'rim':1}"),
    "slice_axis": ("3", "up", "0.5"),
    "crop_nonzero": ("maybe",),
}
TRAINING = NETWORK | {
    "batch_size": WHOLE,
    "epochs": WHOLE,
    "iterations_per_epoch": WHOLE,
    "learning_rate": ("0", "-0.1", "fast", "nan", "inf"),
    "warmup": SHARE,
    "gradient_norm": ("0", "-1", "big"),
    "weight_decay": ("-1", "strong", "nan"),
    "drop_path": SHARE,
    "norm_bias": ("-1", "much"),
    "val_interval": WHOLE,
    "limit_cases": ("0", "-1", "few", "1.5"),
    "seed": ("1.5", "luck"),
    "resume": FLAG,
    "amp": ("maybe",),
    "recompute_activations": ("maybe",),
    "cuda_graph": ("maybe",),
    "mirror_axes": ("3", "[3]", "['x']", "up"),
    "ignore_label": ("1", "none at all"),
    "regions": ("[]", "{'all':['nothing']}", "3"),
    "fold": ("-1", "5", "first", "1.5"),
    "splits": ("/nowhere/splits.json",),
    "pretrained": ("/nowhere/model.pt",),
    "dataset_dir": ("/nowhere", "$len('abc')", "@name", "%name"),
    "output_dir": ("$len('abc')", "@name", "%name", "2024.10", "out#2"),
    "cache_dir": ("$len('abc')", "@name", "%name", "/proc/nowhere"),
    "epoch": ("3",),
    "batchsize": ("3",),
}
INFERENCE = NETWORK | {
    "tta": FLAG,
    "keep_largest": FLAG,
    "save_probabilities": FLAG,
    "skip_existing": FLAG,
    "overwrite": FLAG,
    "mirror_axes": ("3", "[3]", "['x']"),
    "postprocessing_rules": ("/nowhere/rules.json",),
    "checkpoint": ("/nowhere/model.pt", "$len('abc')", "[]"),
    "input_dir": ("/nowhere", "$len('abc')", "@name"),
    "output_dir": ("$len('abc')", "@name", "%name", "/proc/nowhere"),
}
PLANNING = {
    "dataset_dir": ("/nowhere",),
    "gpu_memory_gb": ("-1", "much", "nan", "inf"),
    "init_filters": (*WHOLE[:4], "12"),
    "dimensions": ("1", "4", "flat"),
    "workers": WHOLE[:4],
    "name": ("../mini", "a/b", ""),
    "from_nnunet": ("/nowhere/plans.json",),
    "output": ("/proc/plan.json", "/proc/nowhere/plan.json"),
    "no_such_option": ("3",),
}
CROSS_VALIDATION = {
    "folds": ("9", "-1", "first", "all", "1.5"),
    "fold": ("9", "-1", "first"),
    "epochs": ("0", "-1", "many"),
    "evaluation_dir": ("/nowhere",),
    "resume": ("true",),
    "no_such_id": ("3",),
}
EXPORT = {
    "checkpoint": ("/nowhere/model.pt", "[]", "[a.pt,b.pt]"),
    "config_file": ("/nowhere/task.json",),
    "output": ("/proc/net.onnx", "/proc/nowhere/net.onnx", "net.pt", "net"),
    "patch_size": NETWORK["patch_size"],
    "conv_stages": ("4", "-1", "some"),
    "overlap": SHARE,
    "no_such_id": ("3",),
}
DETERMINE = {
    "predictions": ("/nowhere",),
    "labels": ("/nowhere",),
    "config_file": ("/nowhere/task.json",),
    "workers": ("-1", "many", "1.5"),
    "trained_on": ("/nowhere/cases.json",),
    "output": ("/proc/rules.json", "/proc/nowhere/rules.json"),
}
APPLY = {
    "predictions": ("/nowhere",),
    "rules": ("/nowhere/rules.json",),
    "workers": ("-1", "many", "1.5"),
    "output_dir": ("/proc/nowhere",),
}
REPORT = {
    "predictions": ("/nowhere",),
    "labels": ("/nowhere",),
    "images": ("/nowhere",),
    "postprocessed": ("/nowhere",),
    "config_file": ("/nowhere/task.json",),
    "run_dir": ("/nowhere",),
    "output_dir": ("/proc/nowhere",),
    "panels": WHOLE[1:4],
    "tolerance": ("-1", "much", "nan"),
    "workers": WHOLE[1:4],
}
FINISH = {
    "config_file": ("/nowhere/task.json",),
    "folds_dir": ("/nowhere", "out#2"),
    "fold": ("9", "-1", "first", "1.5"),
    "input_dir": ("/nowhere",),
    "labels": ("/nowhere",),
    "output_dir": ("/proc/nowhere", "out#2"),
    "pack": ("/proc/nowhere/mine.zip", "mine.tar"),
    "samples": WHOLE[1:4],
    "workers": WHOLE[1:4],
    "epochs": ("0", "-1", "many"),
    "overlap": SHARE,
    "init_filters": ("16",),
    "checkpoint": ("/nowhere/model.pt",),
    "postprocessing_rules": ("none",),
    "no_such_id": ("3",),
}


def scenarios(ground: Ground) -> Iterator[Scenario]:
    """A scenario for each option and value, and some that are no option's."""
    out, overlay, images = ground.out, ground.overlay, ground.images
    labels = ground.volumes / "labelsTr"
    evaluation = samples.evaluating(overlay, ground.run, ground.cache, out)
    yield from _each("training", samples.training(overlay, out, ground.cache), TRAINING)
    yield from _each("evaluation", evaluation, {key: INFERENCE[key] for key in ("tta", "overlap", "checkpoint")})
    yield from _each("inference", samples.inference(overlay, images, out, ground.weights), INFERENCE)
    yield from _each("planning", samples.planning(ground.volumes, out / "plan.json"), PLANNING)
    yield from _each("export", samples.export(overlay, ground.weights, out / "net.onnx"), EXPORT)
    yield from _each("determine", samples.determine(overlay, ground.predictions, labels, out), DETERMINE)
    yield from _each("apply", samples.apply(ground.predictions, ground.rules, out), APPLY)
    yield from _each("report", samples.report(overlay, ground.predictions, ground.volumes, out), REPORT)
    validation = samples.cross_validation(overlay, out, ground.cache)
    yield from _each("cross-validation", validation[:-3], CROSS_VALIDATION)
    finish = samples.finish(overlay, _folds(ground), ground.cache, images, out)
    yield from _each("finish", finish, FINISH)
    yield from _folders(ground)


def _folds(ground: Ground) -> Path:
    """The folder of folds in which the trained run is fold 0."""
    folds = ground.folder / "folds"
    if not folds.exists():
        shutil.copytree(ground.run, folds / "fold_0")
    return folds


def _each(name: str, command: Words, options: Mapping[str, tuple[str, ...]]) -> Iterator[Scenario]:
    for option, values in options.items():
        for value in values:
            # "fold 9" says enough of --folds, and /proc/plan.fingerprint.json of /proc/plan.json.
            named = (option.removesuffix("s"), *([value.removesuffix(".json")] if value.startswith("/") else []))
            yield Scenario(f"{name} --{option} {value}", _with(command, f"--{option}", value), named)


def _with(command: Words, option: str, value: str) -> Words:
    """The command with an option's value replaced, or the option added."""
    if option not in command:
        return [*command, option, value]
    place = command.index(option) + 1
    return [*command[:place], value, *command[place + 1 :]]


def _folders(ground: Ground) -> Iterator[Scenario]:
    """Folders that must not be written into, and files where folders are to be."""
    overlay, images, labels = ground.overlay, ground.images, ground.volumes / "labelsTr"
    file = ground.overlay
    run, cache = ground.run, ground.cache
    places = {"the images": images, "the labels": labels, "a file": file}
    for name, place in places.items():
        word = (str(place), "_dir", "output")
        yield Scenario(f"inference into {name}", samples.inference(overlay, images, place, ground.weights), word)
        yield Scenario(f"evaluation into {name}", samples.evaluating(overlay, run, cache, place), word)
        yield Scenario(f"apply into {name}", samples.apply(ground.predictions, ground.rules, place), word)
        yield Scenario(f"report into {name}", samples.report(overlay, ground.predictions, ground.volumes, place), word)
        finish = samples.finish(overlay, _folds(ground), cache, images, place)
        yield Scenario(f"finish into {name}", finish, word)
        yield Scenario(f"training in {name}", samples.training(overlay, place, cache), word)
    yield Scenario("training in a finished run", samples.training(overlay, run, cache), (str(run),))
    yield Scenario(
        "apply in place", samples.apply(ground.predictions, ground.rules, ground.predictions), ("output_dir",)
    )
    yield Scenario("a finished plan", samples.planning(ground.volumes, overlay), ("--overwrite", str(overlay)))
    for weights in (ground.rules, ground.volumes, ground.images / "c00_0000.nii.gz"):
        command = samples.inference(overlay, images, ground.out, weights)
        yield Scenario(f"inference with {weights.name} as weights", command, (str(weights), "checkpoint"))
