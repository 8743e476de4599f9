"""A finished task as a bundle of its own, in one zip that ``monai.bundle download`` takes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from ..common import BUNDLE_ROOT
from ..common.atomic_writing import replacing
from ..common.errors import UserError
from ..common.readable_json import read_json, readable_json
from ..common.run_folder import RunFolder
from ..cross_validation.running import run_program
from ..images.formats import read_raw
from ..images.outputs import check_output_folder, open_folder
from ..images.pairs import files_by_case
from .configuration import Configuration
from .output import Output

__all__ = ["check_archive", "pack"]

OPTION = "--pack"
CONFIGS, TRAIN, INFER = "configs", "train.json", "inference.json"
METADATA = f"{CONFIGS}/metadata.json"
PLACES = {"dataset_dir", "cache_dir", "output_dir", "splits", "pretrained", "task_file", "weights"}  # of this machine


def check_archive(archive: Path, overwrite: bool) -> None:
    """Refuse a zip that cannot be written, before anything takes time.

    Raises:
        UserError: it is not called .zip, is there already, or lies where nothing may be written.
    """
    if archive.suffix != ".zip":
        raise UserError(f"{OPTION} {archive} must end in .zip")
    if archive.is_dir() or (archive.exists() and not overwrite):
        raise UserError(f"{OPTION} {archive} is there already: add --overwrite, or give another")
    check_output_folder(archive.parent, OPTION)


def pack(
    configuration: Configuration, summary: Mapping[str, Any], archive: Path, output: Output, images: Mapping[str, Any]
) -> None:
    """Write the zip: the bundle with this task's overlay, weights, rules and card, and no path of this machine.

    Before it gets its name it is unpacked, and one image is predicted with what came out, which has to give the cleaned
    prediction that is there.

    Args:
        summary: see summary.write_summary.
        images: case -> its file or files.

    Raises:
        UserError: the prediction failed, or gave something else.
    """
    open_folder(archive.parent, OPTION)
    with replacing(archive) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
            for name, content in _entries(configuration, summary, output):
                entry = f"{configuration.name}/{name}"
                if isinstance(content, Path):
                    target.write(content, entry)
                else:
                    target.writestr(entry, content)
        _try(temporary, configuration, output, images)
    print(f"packed and tried: {archive} ({archive.stat().st_size / 2**20:.1f} MiB)", flush=True)


def _entries(configuration: Configuration, summary: Mapping[str, Any], output: Output) -> list[tuple[str, Path | str]]:
    """(name in the bundle, its file or text)."""
    weights = f"models/{configuration.name}"
    entries: list[tuple[str, Path | str]] = [("LICENSE", BUNDLE_ROOT / "LICENSE")]
    for folder in ("scripts", "docs", CONFIGS):
        files = sorted(path for path in (BUNDLE_ROOT / folder).rglob("*") if path.is_file())
        names = [(path.relative_to(BUNDLE_ROOT).as_posix(), path) for path in files]
        entries += [(name, path) for name, path in names if _belongs(name)]
    checkpoints = []
    for fold in configuration.folds:
        place = f"{weights}/fold_{fold.number}"
        checkpoints.append(f"$@bundle_root + '/{place}/{fold.run.best.name}'")
        files = (fold.run.best, fold.run.settings, fold.run.cases)
        entries += [(f"{place}/{file.name}", file) for file in files if file.is_file()]
    if summary["rules"]:  # beside the first weights, where inference looks for them
        first = RunFolder(f"{weights}/fold_{configuration.folds[0].number}")
        entries.append((first.rules.as_posix(), output.folder.rules))
    checkpoint = {"checkpoint": checkpoints if len(checkpoints) > 1 else checkpoints[0]}
    task = {"task_file": f"$@bundle_root + '/{CONFIGS}/tasks/{configuration.name}.json'"}
    train, inference = (ConfigParser.load_config_file(BUNDLE_ROOT / CONFIGS / file) for file in (TRAIN, INFER))
    overlay = _overlay(configuration)
    texts = {
        f"{CONFIGS}/{INFER}": readable_json(inference | configuration.inference_settings() | task | checkpoint),
        f"{CONFIGS}/{TRAIN}": readable_json(train | task),
        f"{CONFIGS}/tasks/{configuration.name}.json": readable_json(overlay | checkpoint),
        METADATA: readable_json(_metadata(configuration, summary)),
        "docs/README.md": _card(configuration, summary),
    }
    return [entry for entry in entries if entry[0] not in texts] + list(texts.items())


def _belongs(name: str) -> bool:
    """Whether a file of the bundle belongs into one of another task."""
    of_others = name.startswith(f"{CONFIGS}/tasks/") or (
        name.startswith("docs/") and not name.endswith((".md", ".png"))
    )
    return "__pycache__" not in name and not of_others and not Path(name).name.startswith(".")


def _overlay(configuration: Configuration) -> dict[str, Any]:
    """All that the overlays say, of training too, with what was typed and what the default task gave."""
    files = [file for file in configuration.settings.files if "training" not in ConfigParser.load_config_file(file)]
    content = ConfigParser.load_config_files(files) if files else {}
    train = ConfigParser.load_config_file(BUNDLE_ROOT / CONFIGS / TRAIN)
    of_task = [name for name, value in train.items() if str(value).startswith("$@task") and name not in PLACES]
    everything = content | configuration.settings.values(*of_task) | configuration.inference_settings()
    return {name: value for name, value in everything.items() if name not in PLACES}


def _scores(summary: Mapping[str, Any]) -> dict[str, float]:
    """Class or region -> mean Dice of held-out cases as they are delivered: cleaned, if there are rules."""
    if summary["rules"]:
        return summary["rules"]["evidence"]["dice_after"]
    classes = summary["held_out"]["classes"] if summary["held_out"] else {}
    return {name: own["dice"]["mean"] for name, own in classes.items()}


def _metadata(configuration: Configuration, summary: Mapping[str, Any]) -> dict[str, Any]:
    content = read_json(BUNDLE_ROOT / METADATA)
    dims, labels = configuration.settings.values("spatial_dims")["spatial_dims"], configuration.task.labels or {}
    channels = {"0": "background"} | {str(i): name for i, name in enumerate(labels, 1)}
    classes = ", ".join(f"{number} {name}" for number, name in channels.items())
    scores = {name: value for name, value in _scores(summary).items() if value is not None}
    image, pred = content["network_data_format"]["inputs"]["image"], content["network_data_format"]["outputs"]["pred"]
    count = configuration.in_channels
    image |= {"modality": "n/a", "num_channels": count, "channel_def": {str(i): f"channel {i}" for i in range(count)}}
    pred |= {"num_channels": len(channels), "channel_def": channels}
    for data in (image, pred):
        data["spatial_shape"] = ["8*n"] * dims
    return content | {
        "name": configuration.name,
        "task": f"Segmentation of {', '.join(labels)}",
        "description": f"LightM-UNet with the weights of {configuration.numbers()} of the task {configuration.name}.",
        "data_source": "the user's own data set",
        "image_classes": f"{count} channel(s)",
        "label_classes": f"one channel: {classes}",
        "pred_classes": f"{len(channels)} channels of logits: {classes}",
        "eval_metrics": {f"mean_dice_{name}": round(value, 4) for name, value in scores.items()},
    }


def _card(configuration: Configuration, summary: Mapping[str, Any]) -> str:
    """What the weights are for, what they were trained on and how good they are."""
    held_out, rules = summary["held_out"], summary["rules"]
    labels = ", ".join(f"{name} = {value}" for name, value in (configuration.task.labels or {}).items())
    trained = sum(1 for _ in {case for fold in configuration.folds for case in _trained_on(fold.run)})
    cleaned = " after postprocessing, which was learned from the same cases" if rules else ""
    scores = [
        f"| {name} | {'undefined' if value is None else f'{value:.4f}'} |" for name, value in _scores(summary).items()
    ]
    table = [f"Mean Dice of {held_out['cases']} held-out cases{cleaned}:", "", "| class | Dice |", "|---|---|", *scores]
    dims = configuration.settings.values("spatial_dims")["spatial_dims"]
    lines = [
        f"# {configuration.name}",
        "",
        f"LightM-UNet in {dims}D, {configuration.in_channels} channel(s), labels {labels}. Trained on {trained} cases "
        f"({configuration.numbers()}, which predict together).",
        "",
        *(table if held_out else ["No case was held out, so there are no scores."]),
        "",
        "From this bundle's folder:",
        "",
        "```",
        "python -m monai.bundle run inference --config_file configs/inference.json --input_dir IN --output_dir OUT",
        "```",
        "",
        "Research only. Not a medical device: do not use it for diagnosis, treatment or any other clinical decision.",
        "",
    ]
    return "\n".join(lines)


def _trained_on(run: RunFolder) -> list[str]:
    return (read_json(run.cases)["training"] or []) if run.cases.is_file() else []


def _try(archive: Path, configuration: Configuration, output: Output, images: Mapping[str, Any]) -> None:
    """Unpack, predict the first image and compare."""
    name, image = next(iter(images.items()))
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f"{archive.name}.") as folder:
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        root, inputs, target = (Path(folder, part) for part in (configuration.name, "in", "out"))
        inputs.mkdir()
        for file in [image] if isinstance(image, str) else image:
            shutil.copy(file, inputs)
            spacing = Path(file).with_name(f"{name}.json")
            if spacing.is_file():  # a TIFF stack's
                shutil.copy(spacing, inputs)
        words = {"bundle_root": root, "input_dir": inputs, "output_dir": target} | configuration.machine_settings()
        options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        config = os.fspath(root / CONFIGS / INFER)
        run = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", config, *options]
        run_program(run, f"the trial of {archive.name}")
        found, wanted = (files_by_case(place)[name] for place in (target, output.folder.postprocessed))
        if not np.array_equal(read_raw(found, label=True).array, read_raw(wanted, label=True).array):
            raise UserError(f"{OPTION}: the packed bundle predicts {name} otherwise than {wanted}; nothing was packed")
