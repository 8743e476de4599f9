"""Faults of files: broken, of the wrong type, links in a circle, names that are no text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import samples
from .ground import Ground
from .refusals import Scenario

BROKEN = {
    "empty": b"",
    "of text": b"what is this",
    "cut short": b'{"epoch": 1, "lab',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
}


def scenarios(ground: Ground) -> Iterator[Scenario]:
    """All of them."""
    yield from _broken_runs(ground)
    yield from _broken_settings(ground)
    yield from _broken_scores(ground)
    yield from _broken_task_files(ground)
    yield from _cyclic_plans(ground)
    yield from _links(ground)
    yield from _odd_names(ground)


def _broken_runs(ground: Ground) -> Iterator[Scenario]:
    """Files of a run that is to go on, or whose weights are used."""
    run = ground.out / "run"
    resume = samples.training(ground.overlay, run, ground.cache, resume="true", epochs=3)
    predict = samples.inference(ground.overlay, ground.images, ground.out / "out", run / "model.pt")
    report = samples.report(
        ground.overlay, ground.predictions, ground.volumes, ground.out / "report", "--run_dir", str(run)
    )
    for kind, content in BROKEN.items():
        for file, command in (
            ("settings.json", resume),
            ("settings.json", predict),
            ("checkpoint.pt", resume),
            ("model.pt", predict),
            ("log.jsonl", report),
            ("log.jsonl", resume),
            ("cases.json", predict),
        ):
            name = f"{'resuming' if command is resume else command[2]} with {file} {kind}"
            prepare = _copy_of_run(ground, run, file, content)
            # Of a log and of the list of cases a command may do without.
            spared = file in ("log.jsonl", "cases.json")
            yield Scenario(name, command, (file,), prepare=prepare, may_succeed=spared, broken=(f"run/{file}",))


def _copy_of_run(ground: Ground, run: Path, file: str, content: bytes) -> Callable[[], None]:
    def prepare() -> None:
        shutil.copytree(ground.run, run)
        (run / file).write_bytes(content)

    return prepare


def _broken_settings(ground: Ground) -> Iterator[Scenario]:
    """Values of the wrong type in files that open."""
    run = ground.out / "run"
    resume = samples.training(ground.overlay, run, ground.cache, resume="true", epochs=3)
    checkpoints: dict[str, Callable[[dict[str, Any]], Any]] = {
        "without an optimizer": lambda saved: saved.pop("optimizer"),
        "without an epoch": lambda saved: saved.pop("epoch"),
        "with a word as epoch": lambda saved: saved.update(epoch="two"),
        "with a negative epoch": lambda saved: saved.update(epoch=-1),
        "with a list as optimizer": lambda saved: saved.update(optimizer=[]),
        "with an empty optimizer": lambda saved: saved.update(optimizer={}),
        "with a number as network": lambda saved: saved.update(network=3),
        "with NaN in a weight": lambda saved: next(iter(saved["network"].values())).fill_(float("nan")),
        "with NaN in a moment": lambda saved: saved["optimizer"]["state"][0]["exp_avg"].fill_(float("nan")),
        "with a word as best_scores": lambda saved: saved.update(best_scores="good"),
        "with a word as ema_pseudo_dice": lambda saved: saved.update(ema_pseudo_dice="good"),
    }
    for name, change in checkpoints.items():

        def prepare(change: Callable[[dict[str, Any]], Any] = change) -> None:
            shutil.copytree(ground.run, run)
            saved = torch.load(run / "checkpoint.pt", weights_only=True)
            change(saved)
            torch.save(saved, run / "checkpoint.pt")

        yield Scenario(f"resuming a checkpoint.pt {name}", resume, ("checkpoint.pt",), prepare=prepare)
    for key, value in (("labels", 3), ("spatial_dims", "three"), ("patch_size", None), ("scan_order", ["axes"])):

        def prepare_settings(key: str = key, value: Any = value) -> None:
            shutil.copytree(ground.run, run)
            file = run / "settings.json"
            file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")

        yield Scenario(f"resuming with {key} {value} in settings.json", resume, (key,), prepare=prepare_settings)


def _broken_scores(ground: Ground) -> Iterator[Scenario]:
    """What cross-validation and postprocessing read of earlier commands."""
    root = ground.folder / "validated"
    again = samples.cross_validation(ground.overlay, ground.out / "cv", ground.cache)
    for kind, content in BROKEN.items():
        for file in ("evaluation/metrics.json", "settings.json", "log.jsonl", "cases.json"):

            def prepare(file: str = file, content: bytes = content) -> None:
                if not root.exists():
                    ground.must(samples.cross_validation(ground.overlay, root, ground.cache))
                shutil.copytree(root, ground.out / "cv")
                (ground.out / "cv/fold_0" / file).write_bytes(content)

            named = (Path(file).name,)
            broken = (f"cv/fold_0/{file}",)
            name = f"cross-validation with {file} {kind}"
            yield Scenario(name, again, named, prepare=prepare, may_succeed=True, broken=broken)


def _broken_task_files(ground: Ground) -> Iterator[Scenario]:
    folder = ground.empty("broken_task_files")
    out, images = ground.out / "out", ground.images
    for number, (kind, content) in enumerate(BROKEN.items()):
        file = folder / f"file_{number}.json"
        file.write_bytes(content)
        rules = samples.apply(ground.predictions, file, out)
        splits = samples.training(ground.overlay, out, ground.cache, splits=file)
        learn = samples.determine(file, ground.predictions, ground.volumes / "labelsTr", out)
        trained_on = samples.determine(
            ground.overlay, ground.predictions, ground.volumes / "labelsTr", out, "--trained_on", str(file)
        )
        plans = samples.planning(ground.volumes, out / "mini.json", "--from_nnunet", str(file))
        jobs = {
            # Not for training or inference: there MONAI reads the overlay, before it runs a line of ours.
            "an overlay for a report": samples.report(file, ground.predictions, ground.volumes, out),
            "an overlay for rules": learn,
            "an overlay for cross-validation": samples.cross_validation(file, out, ground.cache),
            "rules": rules,
            "rules for inference": samples.inference(
                ground.overlay, images, out, ground.weights, postprocessing_rules=file
            ),
            "splits": splits,
            "a list of cases": trained_on,
            "plans.json": plans,
        }
        for name, command in jobs.items():
            listed = kind == "a list" and name == "a list of cases"
            yield Scenario(f"{name} {kind}", command, (file.name,), may_succeed=listed)


def _cyclic_plans(ground: Ground) -> Iterator[Scenario]:
    file = ground.empty("cyclic") / "plans.json"
    configuration = {"inherits_from": "3d_fullres"}
    file.write_text(json.dumps({"configurations": {"3d_fullres": configuration}}), encoding="utf-8")
    command = samples.planning(ground.volumes, ground.out / "mini.json", "--from_nnunet", str(file))
    yield Scenario("plans.json that inherits from itself", command, ("plans.json",))


def _links(ground: Ground) -> Iterator[Scenario]:
    """Folders and files that are links to themselves, and files that never end or never begin."""
    folder = ground.empty("links")
    loop, pipe = folder / "loop", folder / "pipe.nii.gz"
    loop.symlink_to("loop")
    os.mkfifo(pipe)
    overlay, out, weights = ground.overlay, ground.out / "out", ground.weights
    jobs = {
        "input": samples.inference(overlay, loop, out, weights),
        "output": samples.inference(overlay, ground.images, loop, weights),
        "weights": samples.inference(overlay, ground.images, out, loop),
        "run": samples.training(overlay, loop, ground.cache),
        "cache": samples.training(overlay, out, loop),
        "data set": samples.training(overlay, out, ground.cache, dataset_dir=loop),
        "data set of a plan": samples.planning(loop, out / "mini.json"),
        "evaluation": samples.evaluating(overlay, ground.run, ground.cache, loop),
        "predictions": samples.apply(loop, ground.rules, out),
        "rules": samples.apply(ground.predictions, loop, out),
        "report": samples.report(overlay, ground.predictions, ground.volumes, loop),
    }
    for name, command in jobs.items():
        yield Scenario(f"a link to itself as {name}", command, (str(loop),))
    yield Scenario("a pipe as an image", samples.inference(overlay, pipe, out, weights), ("pipe.nii.gz",))
    for weights in (Path("/dev/null"), folder):
        yield Scenario(
            f"{weights.name} as weights", samples.inference(overlay, ground.images, out, weights), (str(weights),)
        )


def _odd_names(ground: Ground) -> Iterator[Scenario]:
    """A name that is no UTF-8, among others."""
    name = os.fsdecode(b"\xff\xfe_0000.nii.gz")
    images = shutil.copytree(ground.images, ground.empty("odd_names") / "images")
    shutil.copy(ground.images / "c00_0000.nii.gz", images / name)
    out = ground.out / "out"

    def then() -> str | None:
        written = len([file for file in out.glob("c*.nii.gz")])
        return None if written == 6 else f"{written} of the 6 others predicted"

    named = ("fffe", "xff", "udcff", "UTF-8")
    for workers in (0, 1):
        command = samples.inference(ground.overlay, images, out, ground.weights, num_workers=workers)
        title = f"inference of a name that is not UTF-8, {workers} workers"
        yield Scenario(title, command, named, may_succeed=True, then=then)
    dataset = shutil.copytree(ground.volumes, ground.empty("odd_data") / "data")
    shutil.copy(ground.images / "c00_0000.nii.gz", dataset / "imagesTr" / name)
    shutil.copy(ground.volumes / "labelsTr/c00.nii.gz", dataset / "labelsTr" / name.replace("_0000", ""))
    train = samples.training(ground.overlay, out, ground.out / "cache", dataset_dir=dataset)
    yield Scenario("planning with such a name", samples.planning(dataset, out / "mini.json"), named, may_succeed=True)
    yield Scenario("training with such a name", train, named, may_succeed=True)
