"""Prediction of a folder: which files, case by case past broken ones, and how a prediction is saved."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset, list_data_collate
from monai.engines import Evaluator
from monai.transforms import MapTransform
from tqdm import tqdm

from ..command_line import as_flag
from ..data.datalist import case_name
from ..data.images import NIFTI_SUFFIXES, image_suffix, list_images, save_label_map, save_probabilities
from ..distributed import is_main_process, shard
from ..errors import UserError, find_user_error

__all__ = ["BrokenCase", "CaseDataset", "SavePredictiond", "collate", "input_cases", "predict"]

logger = logging.getLogger("lightm_unet")


def input_cases(
    input_dir: str | None, output_dir: str, skip_existing: bool | str = False, overwrite: bool | str = False
) -> list[dict[str, str]]:
    """The images this process is to predict: [{"image": path}, …].

    Args:
        input_dir: a folder, or one image file.
        output_dir: where the predictions will go.
        skip_existing: leave out images whose prediction is there.
        overwrite: allow predictions that are there to be replaced.

    Raises:
        UserError: no input; two inputs or an input and an output would be one file; predictions are there
            and neither switch is set; the output folder cannot be written.
    """
    if not input_dir:
        raise UserError("give the image or the folder of images to predict with --input_dir")
    images, folder = list_images(input_dir), Path(output_dir)
    _check_names(images, folder)
    existing = {image for image in images if output_path(image, folder).exists()}
    if as_flag(skip_existing, "skip_existing"):
        logger.info(f"skipping {len(existing)} of {len(images)} images, whose predictions exist")
        images = [image for image in images if image not in existing]
    elif existing and not as_flag(overwrite, "overwrite"):
        raise UserError(
            f"{folder} already holds predictions of {len(existing)} of these {len(images)} images: add "
            "--skip_existing true, --overwrite true, or another --output_dir"
        )
    _make_folder(folder)
    return shard([{"image": str(image)} for image in images])


def output_path(image: str | Path, folder: str | Path) -> Path:
    """Where an image's prediction goes: its own name, .nii.gz or .nii as it has, .png for every picture."""
    suffix = image_suffix(image)
    return Path(folder) / (case_name(image) + (suffix if suffix in NIFTI_SUFFIXES else ".png"))


class BrokenCase(dict):
    """Stands in a batch for a case that could not be loaded: {"file", "error"}."""


class CaseDataset(Dataset):
    """A dataset that hands out a BrokenCase, and does not raise, where a case cannot be loaded."""

    def __getitem__(self, index: int) -> Any:
        try:
            return super().__getitem__(index)
        except Exception as error:  # whatever it is, the other cases still want their prediction
            return BrokenCase(file=self.data[index]["image"], error=str(find_user_error(error) or error))


def collate(batch: Sequence[Any]) -> Any:
    """A batch of one case, which may be broken."""
    return batch[0] if isinstance(batch[0], BrokenCase) else list_data_collate(batch)


def predict(evaluator: Evaluator, dataloader: DataLoader, output_dir: str) -> None:
    """Run the evaluator case by case, go on past cases that fail, and exit with status 1 if there were any.

    Args:
        evaluator: does the inference and, in its postprocessing, the saving.
        dataloader: loads a CaseDataset one case at a time.
        output_dir: named in the closing line.
    """
    failures: list[BrokenCase] = []
    hidden = None if is_main_process() else True
    for batch in tqdm(dataloader, "predicting", unit="case", disable=hidden):
        failure = batch if isinstance(batch, BrokenCase) else _predict_one(evaluator, batch)
        if failure:
            failures.append(failure)
            logger.error(f"{failure['file']}: {failure['error']}")
    done = len(dataloader) - len(failures)
    logger.info(f"{done} of {len(dataloader)} predictions written to {output_dir}")
    if failures:
        lines = (f"  {failure['file']}: {failure['error']}" for failure in failures)
        logger.error("\n".join([f"{len(failures)} image(s) could not be predicted:", *lines]))
        sys.exit(1)


def _predict_one(evaluator: Evaluator, batch: Mapping[str, Any]) -> BrokenCase | None:
    file = batch["image"].meta["filename_or_obj"][0]
    evaluator.data_loader, evaluator.state.epoch_length = [batch], 1
    try:
        evaluator.run()
    except Exception as error:  # out of memory, a full disk: the next case may still work
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        reason = find_user_error(error) or f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return BrokenCase(file=file, error=str(reason))
    return None


class SavePredictiond(MapTransform):
    """Save the predicted label map and, if asked, the class probabilities, under the image's name.

    Args:
        keys: the label map (1, *spatial), on the grid of the image file.
        output_dir: where to write.
        probabilities_key: class probabilities (classes, *spatial), saved beside the label map as
            NAME_probabilities.nii.gz (4D) for volumes and NAME_probabilities.npz for pictures; None: not.
    """

    def __init__(self, keys: Sequence[Hashable], output_dir: str, probabilities_key: str | None = None) -> None:
        super().__init__(keys)
        self.output_dir = output_dir
        self.probabilities_key = probabilities_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data["image"].meta["filename_or_obj"]
        target = output_path(image, self.output_dir)
        for key in self.keys:
            save_label_map(target, data[key][0].cpu().numpy(), like=image)
        if self.probabilities_key:
            ending = ".nii.gz" if image_suffix(image) in NIFTI_SUFFIXES else ".npz"
            path = target.with_name(f"{case_name(image)}_probabilities{ending}")
            save_probabilities(path, data[self.probabilities_key].cpu().numpy(), like=image)
        return dict(data)


def _check_names(images: Sequence[Path], folder: Path) -> None:
    outputs = {image: output_path(image, folder) for image in images}
    twice = [path for path, count in Counter(outputs.values()).items() if count > 1]
    if twice:
        clash = ", ".join(str(image) for image, path in outputs.items() if path == twice[0])
        raise UserError(f"{clash} would all be predicted into {twice[0]}: rename them or predict them apart")
    inputs = {image.resolve() for image in images}
    if any(path.resolve() in inputs for path in outputs.values()):
        raise UserError(f"the predictions would overwrite the images in {folder}: give another --output_dir")


def _make_folder(folder: Path) -> None:
    probe = folder / ".write_test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; give another --output_dir") from error
