"""Prediction of a folder: which files, case by case past broken ones, and how a prediction is saved."""

from __future__ import annotations

import logging
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import Evaluator
from monai.transforms import MapTransform, SaveImaged
from tqdm import tqdm

from ..common.command_line import from_words
from ..common.distributed import is_main_process, shard
from ..common.errors import UserError, first_few, in_one_line
from ..data.layouts import case_files
from ..images.cases import save_label_map, save_probabilities
from ..images.files import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    TIFF_SUFFIXES,
    case_name,
    file_of_case,
    first_file,
    folders_with_images,
    image_suffix,
    list_images,
    prediction_suffix,
    split_channel,
)
from ..images.formats import read_raw
from ..images.formats.tiff import tiff_spacing_file
from ..images.headers import read_header
from ..images.outputs import check_names, check_output_folder, open_folder, refuse_foreign
from .case_loading import BrokenCase, CaseDataset, collate, load_past_deaths, printable
from .clean_start import start_clean
from .finished import prediction_problem, probabilities_problem
from .provenance import PREDICTIONS, forget_predictions, predicted_cases

__all__ = [
    "BrokenCase",
    "CaseDataset",
    "SavePredictiond",
    "check_outputs",
    "collate",
    "input_cases",
    "outputs_of",
    "predict",
]

logger = logging.getLogger("lightm_unet")


@from_words
def input_cases(
    input_dir: str | None,
    output_dir: str,
    skip_existing: bool = False,
    overwrite: bool = False,
    in_channels: int = 1,
    save_probabilities: bool = False,
) -> list[dict[str, Any]]:
    """The cases this process is to predict: [{"name", "image": path or [a path per channel]}, …].

    Files named CASE_0000.ext, CASE_0001.ext, … are the channels of one case (nnU-Net's imagesTs), if all files
    are named so; else every file is a case, and so is a file that holds all channels itself.

    Args:
        input_dir: a folder, or one image file; without one there is no case yet.
        output_dir: where the predictions will go.
        skip_existing: leave out cases whose prediction is there, whole and of the image's size.
        overwrite: allow predictions that are there to be replaced.
        in_channels: channels that the network takes.
        save_probabilities: whether the class probabilities will be saved too.

    Raises:
        UserError: the input is not there; a case lacks channels, or the input is one of its files; two outputs would be
            one file; predictions are there and neither switch is set; nothing may be written there (images/outputs.py).
    """
    if not input_dir:
        return []
    _check_whole_case(Path(str(input_dir)), in_channels)
    # A command line hands on a number where a folder is called 2024.
    cases = group_channels(list_images(str(input_dir)), in_channels)
    folder = check_output_folder(output_dir, "--output_dir", [path for case in cases for path in case_files(case)])
    if deeper := folders_with_images(str(input_dir)):
        logger.warning(printable(f"the images in sub-folders of {input_dir} are not predicted: {', '.join(deeper)}"))
    check_outputs(cases, folder, save_probabilities)
    cases = shard(cases)  # before looking at what exists: other processes may have written some by now
    existing = [case for case in cases if output_path(case, folder).exists()]
    touched = [case for case in cases if any(file.exists() for file in outputs_of(case, folder))]
    if skip_existing:
        done = _done(existing, folder, save_probabilities)
        logger.info(f"skipping {len(done)} of {len(cases)} images, whose predictions exist")
        cases = [case for case in cases if case["name"] not in done]
        _keep_foreign(cases, folder)
    elif touched and not overwrite:
        raise UserError(
            f"{folder} already holds predictions of {len(touched)} of these {len(cases)} images: add "
            "--skip_existing true, --overwrite true, or another --output_dir"
        )
    open_folder(folder, "--output_dir")
    return cases


def group_channels(images: Sequence[Path], in_channels: int) -> list[dict[str, Any]]:
    """Cases from image files: [{"name", "image": path or [a path per channel]}, …].

    Raises:
        UserError: the files are channels (see input_cases) and cases lack some: names each missing file.
    """
    groups: dict[str, dict[int | None, Path]] = {}
    for image in images:
        name, channel = split_channel(image)
        groups.setdefault(name, {})[channel] = image
    numbers = {number for files in groups.values() for number in files}
    if numbers == {0}:  # one file a case, which may hold several channels
        return [{"name": name, "image": str(files[0])} for name, files in groups.items()]
    if None in numbers or max(numbers) >= in_channels:
        return [_alone(image) for image in images]
    whole = {name for name, files in groups.items() if any(_holds_all(file, in_channels) for file in files.values())}
    channels = {name: files for name, files in groups.items() if name not in whole}
    _check_complete(channels, in_channels)
    cases = [_alone(image) for name in whole for image in groups[name].values()]
    cases += [
        {"name": name, "image": [str(files[number]) for number in range(in_channels)]}
        for name, files in channels.items()
    ]
    return sorted(cases, key=lambda case: first_file(case["image"]))


def _alone(image: Path) -> dict[str, Any]:
    return {"name": case_name(image), "image": str(image)}


def _holds_all(file: Path, in_channels: int) -> bool:
    """Whether a file holds all channels of a case, as a colour picture does for a network of three."""
    if image_suffix(file) not in PICTURE_SUFFIXES:
        header = read_header(file)
        return header is not None and header[2] == in_channels
    try:
        return len(read_raw(file).array) == in_channels  # how many a palette gives, no header tells
    except UserError:  # it will be said when the case is loaded
        return False


def _check_complete(cases: Mapping[str, Mapping[int | None, Path]], in_channels: int) -> None:
    missing = [
        str(min(files.values()).with_name(f"{name}_{number:04d}{image_suffix(min(files.values()))}"))
        for name, files in cases.items()
        for number in range(in_channels)
        if number not in files
    ]
    if missing:
        raise UserError(f"the network takes {in_channels} channels, these are missing:\n  " + "\n  ".join(missing))


def _keep_foreign(cases: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Refuse to lose files beside the label maps that no run said it would write, as skip_existing does not ask for."""
    known = predicted_cases(folder)
    beside = [file for case in cases if case["name"] not in known for file in outputs_of(case, folder)[1:]]
    refuse_foreign(beside, "--output_dir")


def output_path(case: Mapping[str, Any], folder: str | Path) -> Path:
    """Where a case's prediction goes: its own name, in its image's format (see prediction_suffix)."""
    return file_of_case(folder, case["name"], prediction_suffix(first_file(case["image"])))


def outputs_of(case: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Every file that predicting a case writes or takes away: the label map, its probabilities, a TIFF's spacing."""
    target = output_path(case, folder)
    files = [target, probabilities_path(target)]
    if image_suffix(target) in TIFF_SUFFIXES and tiff_spacing_file(first_file(case["image"])).is_file():
        files.append(target.with_name(f"{case['name']}.json"))
    return files


def check_outputs(cases: Sequence[Mapping[str, Any]], folder: Path, save_probabilities: bool = False) -> None:
    """Refuse cases of which two, or one and the folder's record of predictions, would write one file, or of which one
    would take another's away: the probabilities of an earlier prediction go.

    Raises:
        UserError: names the images and the file.
    """
    names = [("the record of the predictions", folder / PREDICTIONS)]
    for case in cases:
        image, earlier = first_file(case["image"]), probabilities_path(output_path(case, folder))
        files = [file for file in outputs_of(case, folder) if save_probabilities or file != earlier]
        names += [(image, file) for file in files]
        names += [] if save_probabilities else [("probabilities of an earlier prediction", earlier)]
    check_names(names)


def predict(evaluator: Evaluator, dataloader: DataLoader, output_dir: str) -> None:
    """Run the evaluator case by case, go on past cases that fail, and exit with status 1 if there were any.

    A case counts as written if its file is there afterwards and is not the one that was there before; one that is
    left from an earlier run is no longer said to be of this one (see provenance).

    Args:
        evaluator: does the inference and, in its postprocessing, the saving.
        dataloader: loads a CaseDataset one case at a time, in order.
        output_dir: where the postprocessing saves.
    """
    failures: list[BrokenCase] = []
    left: list[str] = []
    hidden = None if is_main_process() else True
    cases: Sequence[Mapping[str, Any]] = dataloader.dataset.data
    batches = zip(cases, load_past_deaths(dataloader), strict=True)
    for case, batch in tqdm(batches, "predicting", len(cases), unit="case", disable=hidden):
        name = case.get("name") or case_name(first_file(case["image"]))
        target = output_path({"name": name, "image": case["image"]}, output_dir)
        before = _stamp(target)
        failure = batch if isinstance(batch, BrokenCase) else _predict_one(evaluator, batch)
        if _stamp(target) in (None, before):
            left += [name] if before else []
            failure = failure or BrokenCase(file=first_file(case["image"]), error=f"{target} was not written")
        if failure:
            failures.append(failure)
            logger.error(str(failure))
    forget_predictions(output_dir, left)
    logger.info(f"{len(cases) - len(failures)} of {len(cases)} predictions written to {output_dir}")
    if failures:
        lines = (f"  {failure}" for failure in failures)
        logger.error("\n".join([f"{len(failures)} image(s) could not be predicted:", *lines]))
        sys.exit(1)


def _predict_one(evaluator: Evaluator, batch: Mapping[str, Any]) -> BrokenCase | None:
    file = batch["image"].meta["filename_or_obj"][0]
    start_clean(evaluator)
    evaluator.data_loader, evaluator.state.epoch_length = [batch], 1
    try:
        evaluator.run()
    except Exception as error:  # out of memory, a full disk: the next case may still work
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return BrokenCase(file=file, error=in_one_line(error))
    return None


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that replaces it; None where there is none."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


class SavePredictiond(SaveImaged):
    """Save the predicted label map and, if asked, the class probabilities, under the image's name.

    A SaveImaged by class only: programs that save by themselves, as MONAI Label, know by it what to leave out.

    Args:
        keys: the label map (1, *spatial), on the grid of the image file.
        output_dir: where to write.
        probabilities_key: class probabilities (classes, *spatial), saved beside the label map as
            NAME_probabilities in the image's format for NIfTI (4D), NRRD and MetaImage (a vector per voxel), as
            .npz for others; None: not, and those of an earlier prediction go.
    """

    def __init__(self, keys: Sequence[Hashable], output_dir: str, probabilities_key: str | None = None) -> None:
        MapTransform.__init__(self, keys)  # SaveImaged's own makes a writer
        self.output_dir = output_dir
        self.probabilities_key = probabilities_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data["image"].meta["filename_or_obj"]
        target = output_path({"name": data.get("name") or case_name(image), "image": image}, self.output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)  # for an evaluator that is run on its own
        path = probabilities_path(target)
        if self.probabilities_key:  # before the label map, which tells skip_existing that a case is done
            save_probabilities(path, data[self.probabilities_key].cpu().numpy(), like=image)
        else:  # those of a prediction that is replaced
            path.unlink(missing_ok=True)
        for key in self.keys:
            save_label_map(target, data[key][0].cpu().numpy(), like=image)
        return dict(data)


def probabilities_path(prediction: Path) -> Path:
    """Where a prediction's class probabilities go: CASE.nii.gz -> CASE_probabilities.nii.gz, CASE.png -> ….npz."""
    suffix = image_suffix(prediction)
    ending = {".nii": ".nii.gz"}.get(suffix, suffix) if suffix in NIFTI_SUFFIXES + ITK_SUFFIXES else ".npz"
    return prediction.with_name(f"{case_name(prediction)}_probabilities{ending}")


def _check_whole_case(path: Path, in_channels: int) -> None:
    name, channel = split_channel(path)
    others = [path.with_name(f"{name}_{number:04d}{image_suffix(path)}") for number in range(in_channels)]
    is_channel = path.is_file() and channel is not None and any(o != path and o.is_file() for o in others)
    if is_channel and not (in_channels > 1 and _holds_all(path, in_channels)):
        raise UserError(f"{path} is one of {in_channels} channels of {name}: give their folder with --input_dir")


def _done(cases: Sequence[Mapping[str, Any]], folder: Path, with_probabilities: bool) -> set[str]:
    """The names of the cases whose prediction is whole. The others are said to be predicted again."""
    problems: dict[str, str] = {}
    for case in cases:
        target = output_path(case, folder)
        problem = prediction_problem(target, first_file(case["image"]))
        if problem is None and with_probabilities:
            problem = probabilities_problem(probabilities_path(target))
        if problem:
            problems[case["name"]] = f"{target} {problem}"
    if problems:
        shown = first_few(problems.values(), between="; ")
        logger.warning(printable(f"{len(problems)} predictions that are there are made again: {shown}"))
    return {case["name"] for case in cases} - problems.keys()
