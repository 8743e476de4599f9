"""What a data set declares: dataset.json of the Medical Segmentation Decathlon (MSD) and of nnU-Net v2's raw data."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .files import case_name, check_case_name, image_suffix, split_channel
from .label_names import read_labels

__all__ = ["NUM_FOLDS", "DatasetDescription", "case_files", "read_dataset"]

NUM_FOLDS = 5  # of a cross-validation, nnU-Net's

Case = dict[str, Any]  # {"name": str, "image": path or [a path per channel], "label": path}


@dataclass(frozen=True)
class DatasetDescription:
    """A data set as its dataset.json and folders describe it; nothing has been read but names.

    Args:
        name: as dataset.json calls it, else the folder's name.
        folder: the data set folder.
        layout: "msd" or "nnunet".
        cases: [{"name", "image", "label"}, …], sorted by name, with whole paths, which may not exist.
        channel_names: one per channel; empty if dataset.json does not say.
        labels: name -> value of each foreground label.
        ignore_label: value of voxels that nobody labelled, or None.
        regions: name -> names of the labels that it joins.
        file_ending: of the images, such as ".nii.gz".
        patients: case name -> patient, for the cases that name one.
        declared_cases: dataset.json's numTraining, or None.
    """

    name: str
    folder: Path
    layout: str
    cases: list[Case]
    channel_names: list[str]
    labels: dict[str, int]
    ignore_label: int | None = None
    regions: dict[str, list[str]] = field(default_factory=dict)
    file_ending: str = ""
    patients: dict[str, str] = field(default_factory=dict)
    declared_cases: int | None = None

    @property
    def file(self) -> Path:
        """The dataset.json."""
        return self.folder / "dataset.json"


def case_files(case: Mapping[str, Any]) -> list[str]:
    """All files of a case: the image's, one or one per channel, then the label's if there is one."""
    image = [case["image"]] if isinstance(case["image"], str) else list(case["image"])
    return image + ([case["label"]] if "label" in case else [])


def read_dataset(dataset_dir: str | Path) -> DatasetDescription:
    """Read the dataset.json of either layout and find the training cases.

    MSD: "training": [{"image", "label"}, …], "modality" or "channel_names", "labels": {"1": "liver"}; an entry
    may name its "patient". nnU-Net: imagesTr/CASE_0000.ext and labelsTr/CASE.ext, or "dataset": {case:
    {"images", "label"}}; "channel_names", "labels": {"liver": 1}, "file_ending"; "patients": {case: patient} may
    be added.

    Raises:
        UserError: the folder or dataset.json is missing, is not valid, or declares what cannot be used; the
            message names the file and the key.
    """
    folder = Path(dataset_dir)
    file = folder / "dataset.json"
    content = _read_json(folder, file)
    layout = "msd" if "training" in content or not _looks_like_nnunet(folder, content) else "nnunet"
    cases = _msd_cases(folder, content) if layout == "msd" else _nnunet_cases(folder, content)
    labels, ignore_label, regions = read_labels(content.get("labels", {}), file)
    return DatasetDescription(
        name=str(content.get("name") or folder.resolve().name),
        folder=folder,
        layout=layout,
        cases=cases,
        channel_names=_channel_names(content, file),
        labels=labels,
        ignore_label=ignore_label,
        regions=regions,
        file_ending=image_suffix(_first_image(cases[0])) or "",
        patients=_patients(content, cases, file),
        declared_cases=content["numTraining"] if isinstance(content.get("numTraining"), int) else None,
    )


def _read_json(folder: Path, file: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"the data set folder {folder} does not exist: give it with --dataset_dir")
    if not file.is_file():
        raise UserError(
            f"{file} is missing: --dataset_dir must be a folder in the MSD layout or in nnU-Net's (dataset.json in it)"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold an object {{…}}, not a {type(content).__name__}")
    return content


def _looks_like_nnunet(folder: Path, content: Mapping[str, Any]) -> bool:
    keys = {"channel_names", "file_ending", "dataset"}
    return bool(keys & content.keys()) and ("dataset" in content or (folder / "imagesTr").is_dir())


# --- MSD


def _msd_cases(folder: Path, content: Mapping[str, Any]) -> list[Case]:
    file, training = folder / "dataset.json", content.get("training")
    if not isinstance(training, list) or not training or not all(_is_entry(entry) for entry in training):
        raise UserError(f'{file} needs a list "training" of {{"image": …, "label": …}}')
    cases = [_msd_case(folder, entry) for entry in training]
    counts = Counter(case["name"] for case in cases)
    for case, entry in zip(cases, training, strict=True):
        if counts[case["name"]] > 1:  # patient_1/image.nii.gz, patient_2/image.nii.gz: the folder tells them apart
            case["name"] = "_".join([*Path(_first_image(entry)).parent.parts[-1:], case["name"]])
    return _sorted(cases, file)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
        return False
    image = entry.get("image")
    return isinstance(image, str) or (
        isinstance(image, list) and bool(image) and all(isinstance(i, str) for i in image)
    )


def _msd_case(folder: Path, entry: Mapping[str, Any]) -> Case:
    image = entry["image"]
    if isinstance(image, list):
        files = [str(folder / path) for path in image]
        return {"name": split_channel(image[0])[0], "image": files, "label": str(folder / entry["label"])}
    name, files = case_name(image), str(folder / image)
    if not Path(files).is_file():  # nnU-Net v1's layout names CASE.nii.gz and means CASE_0000.nii.gz, …
        suffix = Path(image).name[len(name) :]
        pattern = f"{glob.escape(name)}_[0-9][0-9][0-9][0-9]{suffix}"
        found = sorted(map(str, (folder / image).parent.glob(pattern)))
        files = found[0] if len(found) == 1 else found or files
    return {"name": name, "image": files, "label": str(folder / entry["label"])}


# --- nnU-Net


def _nnunet_cases(folder: Path, content: Mapping[str, Any]) -> list[Case]:
    file = folder / "dataset.json"
    images, labels = _listed(folder, content, file) if "dataset" in content else _found(folder, content)
    if not images and not labels:
        raise UserError(f"{folder}/imagesTr holds no image named CASE_0000{content.get('file_ending', '.nii.gz')}")
    usual = _files_per_case(images, len(_channel_names(content, file)))
    ending = content.get("file_ending") or image_suffix(next(iter(labels.values()))) or ".nii.gz"
    cases = []
    for name in images.keys() | labels.keys():
        paths = [images.get(name, {}).get(i, folder / f"imagesTr/{name}_{i:04d}{ending}") for i in range(usual)]
        label = labels.get(name, folder / f"labelsTr/{name}{ending}")
        image = [str(path) for path in paths]
        cases.append({"name": name, "image": image if usual > 1 else image[0], "label": str(label)})
    return _sorted(cases, file)


def _files_per_case(images: Mapping[str, Mapping[int, Path]], declared: int) -> int:
    """Channels may have a file each, or be one RGB or 4D file: the cases themselves say which."""
    counts = Counter(map(len, images.values())) or Counter([1])
    return declared if declared and max(counts) > 1 else counts.most_common(1)[0][0]


def _found(folder: Path, content: Mapping[str, Any]) -> tuple[dict[str, dict[int, Path]], dict[str, Path]]:
    """Images (case -> channel -> file) and labels (case -> file) in imagesTr and labelsTr."""
    ending = content.get("file_ending")
    images: dict[str, dict[int, Path]] = {}
    for path in _image_files(folder / "imagesTr", ending):
        name, channel = split_channel(path)
        if channel is not None:
            images.setdefault(name, {})[channel] = path
    return images, {case_name(path): path for path in _image_files(folder / "labelsTr", ending)}


def _image_files(folder: Path, ending: str | None) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if image_suffix(path) and not path.name.startswith("."))
    return [path for path in files if not ending or path.name.lower().endswith(ending.lower())]


def _listed(folder: Path, content: Mapping[str, Any], file: Path) -> tuple[dict[str, dict[int, Path]], dict[str, Path]]:
    """The same from dataset.json's "dataset", whose paths start at the data set folder."""
    images, labels = {}, {}
    entries = content["dataset"]
    for name, entry in entries.items() if isinstance(entries, dict) else [("", None)]:
        if not (isinstance(entry, dict) and isinstance(entry.get("images"), list) and entry.get("label")):
            raise UserError(f'{file}: "dataset" must hold {{case: {{"images": […], "label": …}}}}; "{name}" does not')
        images[name] = {i: folder / path for i, path in enumerate(entry["images"])}
        labels[name] = folder / entry["label"]
    return images, labels


# --- both


def _sorted(cases: list[Case], file: Path) -> list[Case]:
    for case in cases:
        check_case_name(case["name"], file)
    twice = sorted(name for name, count in Counter(case["name"] for case in cases).items() if count > 1)
    if twice:
        raise UserError(f"{file} lists these cases more than once: {', '.join(twice[:10])}")
    return sorted(cases, key=lambda case: case["name"])


def _first_image(case: Mapping[str, Any]) -> str:
    return case["image"] if isinstance(case["image"], str) else case["image"][0]


def _channel_names(content: Mapping[str, Any], file: Path) -> list[str]:
    key = "channel_names" if "channel_names" in content else "modality"
    names = content.get(key) or {}
    if isinstance(names, dict):
        if not all(str(number).isdigit() for number in names):
            raise UserError(f'{file}: the keys of "{key}" must be numbers from 0, not {list(names)}')
        names = [names[number] for number in sorted(names, key=int)]
    if not isinstance(names, list):
        raise UserError(f'{file}: "{key}" must be {{"0": name, …}}, not {names!r}')
    if len(names) == 1 and str(names[0]).lower() == "rgb":  # one name for three channels, as people write it
        return ["R", "G", "B"]
    return [str(name) for name in names]


def _patients(content: Mapping[str, Any], cases: list[Case], file: Path) -> dict[str, str]:
    patients = content.get("patients") or {}
    if not isinstance(patients, dict):
        raise UserError(f'{file}: "patients" must be {{case: patient}}, not {patients!r}')
    unknown = sorted(patients.keys() - {case["name"] for case in cases})
    if unknown:
        raise UserError(f'{file}: "patients" names cases that do not exist: {", ".join(unknown[:10])}')
    of_label = {
        str(file.parent / entry["label"]): entry["patient"]
        for entry in content.get("training") or []
        if "patient" in entry
    }
    of_entries = {case["name"]: of_label[case["label"]] for case in cases if case["label"] in of_label}
    return {name: str(patient) for name, patient in (of_entries | patients).items()}
