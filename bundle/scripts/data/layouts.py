"""What a data set declares: dataset.json of the Medical Segmentation Decathlon (MSD) and of nnU-Net v2's raw data."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from ..common.errors import UserError, first_few
from ..images.files import case_name, check_case_name, first_file, image_files, image_suffix, split_channel
from ..images.foreign_names import composed, find_file
from ..images.label_names import read_labels

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
    return image_files(case["image"]) + ([case["label"]] if "label" in case else [])


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
        name=_name(content) or Path(os.path.realpath(folder)).name,
        folder=folder,
        layout=layout,
        cases=cases,
        channel_names=_channel_names(content, file),
        labels=labels,
        ignore_label=ignore_label,
        regions=regions,
        file_ending=image_suffix(first_file(cases[0]["image"])) or "",
        patients=_patients(content, cases, file),
        declared_cases=_declared_cases(content),
    )


def _name(content: Mapping[str, Any]) -> str:
    return str(content["name"]) if isinstance(content.get("name"), (str, int)) else ""


def _declared_cases(content: Mapping[str, Any]) -> int | None:
    """numTraining, which some programs write as a word; anything else tells nothing."""
    declared = content.get("numTraining")
    if isinstance(declared, str) and declared.isdecimal() and len(declared) < 10:
        return int(declared)
    return declared if isinstance(declared, int) and not isinstance(declared, bool) else None


def _read_json(folder: Path, file: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"the data set folder {folder} does not exist: give it with --dataset_dir")
    if not file.is_file():
        raise UserError(
            f"{file} is missing: --dataset_dir must be a folder in the MSD layout or in nnU-Net's (dataset.json in it)"
        )
    try:
        content = json.loads(file.read_bytes())  # finds out itself about byte order marks and UTF-16
        text = json.dumps(content, ensure_ascii=False)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if re.search(r"[\ud800-\udfff]", text):
        raise UserError(
            f"{file} holds half a character (\\ud800 to \\udfff), which no file can be named after: mend it"
        )
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold an object {{…}}, not a {type(content).__name__}")
    return content


def _looks_like_nnunet(folder: Path, content: Mapping[str, Any]) -> bool:
    keys = {"channel_names", "file_ending", "dataset"}
    return bool(keys & content.keys()) and ("dataset" in content or (folder / "imagesTr").is_dir())


# --- MSD


def _msd_cases(folder: Path, content: Mapping[str, Any]) -> list[Case]:
    file, training = folder / "dataset.json", content.get("training")
    if not isinstance(training, list) or not training:
        raise UserError(f'{file} needs a list "training" of {{"image": …, "label": …}}')
    if wrong := [entry for entry in training if not _is_entry(entry)]:
        shown = json.dumps(wrong[0], ensure_ascii=False)[:200]
        raise UserError(f'{file}: "training" must list {{"image": …, "label": …}}; one of its entries is {shown}')
    cases = [_msd_case(folder, entry) for entry in training]
    counts = Counter(case["name"] for case in cases)
    for case in cases:
        if counts[case["name"]] > 1:  # patient_1/image.nii.gz, patient_2/image.nii.gz: the folder tells them apart
            case["name"] = "_".join([*Path(first_file(case["image"])).parent.parts[-1:], case["name"]])
    return _sorted(cases, file)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("label"), str):
        return False
    image = entry.get("image")
    return isinstance(image, str) or (
        isinstance(image, list) and bool(image) and all(isinstance(i, str) for i in image)
    )


def _msd_case(folder: Path, entry: Mapping[str, Any]) -> Case:
    image, label = entry["image"], str(find_file(folder, entry["label"]))
    if isinstance(image, list):
        files = [find_file(folder, path) for path in image]
        return {"name": split_channel(files[0])[0], "image": [str(file) for file in files], "label": label}
    file = find_file(folder, image)
    name, found = case_name(file), [str(file)]
    if not file.is_file():  # nnU-Net v1's layout names CASE.nii.gz and means CASE_0000.nii.gz, …
        found = _channel_files(file) or found
    return {"name": name, "image": found[0] if len(found) == 1 else found, "label": label}


def _channel_files(file: Path) -> list[str]:
    name, ending = case_name(file), file.name[len(case_name(file)) :]
    pattern = re.compile(rf"{re.escape(composed(name))}_\d{{4}}{re.escape(ending)}")
    beside = file.parent.iterdir() if file.parent.is_dir() else ()
    return sorted(str(other) for other in beside if pattern.fullmatch(composed(other.name)))


# --- nnU-Net


def _nnunet_cases(folder: Path, content: Mapping[str, Any]) -> list[Case]:
    file, ending = folder / "dataset.json", content.get("file_ending")
    if ending is not None and not isinstance(ending, str):
        raise UserError(f'{file}: "file_ending" must be an ending such as ".nii.gz", not {ending!r}')
    images, labels = _listed(folder, content, file) if "dataset" in content else _found(folder, ending)
    if not images and not labels:
        raise UserError(
            f"{folder}/imagesTr holds no image named CASE_0000{ending or '.nii.gz'}{_other_endings(folder)}"
        )
    usual = _files_per_case(images, len(_channel_names(content, file)))
    ending = ending or image_suffix(next(iter(labels.values()))) or ".nii.gz"
    images_of, labels_of = ({composed(name): name for name in names} for names in (images, labels))
    cases = []
    for key in images_of.keys() | labels_of.keys():
        name = images_of.get(key) or labels_of[key]  # as the image's file has it: predictions are named after that
        paths = [images.get(name, {}).get(i, folder / f"imagesTr/{name}_{i:04d}{ending}") for i in range(usual)]
        label = labels.get(labels_of.get(key, ""), folder / f"labelsTr/{name}{ending}")
        image = [str(path) for path in paths]
        cases.append({"name": name, "image": image if usual > 1 else image[0], "label": str(label)})
    return _sorted(cases, file)


def _other_endings(folder: Path) -> str:
    found = sorted({image_suffix(path) or "" for path in _image_files(folder / "imagesTr", None)})
    return f' (but {", ".join(found)}: mend "file_ending" in dataset.json, or the names)' if found else ""


def _files_per_case(images: Mapping[str, Mapping[int, Path]], declared: int) -> int:
    """Channels may have a file each, or be one RGB or 4D file: the cases themselves say which."""
    counts = Counter(map(len, images.values())) or Counter([1])
    return declared if declared and max(counts) > 1 else counts.most_common(1)[0][0]


def _found(folder: Path, ending: str | None) -> tuple[dict[str, dict[int, Path]], dict[str, Path]]:
    """Images (case -> channel -> file) and labels (case -> file) in imagesTr and labelsTr."""
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
        if not (isinstance(entry, dict) and _is_entry({"image": entry.get("images"), "label": entry.get("label")})):
            raise UserError(f'{file}: "dataset" must hold {{case: {{"images": […], "label": …}}}}; "{name}" does not')
        paths = [entry["images"]] if isinstance(entry["images"], str) else entry["images"]
        images[name] = {i: find_file(folder, path) for i, path in enumerate(paths)}
        labels[name] = find_file(folder, entry["label"])
    return images, labels


# --- both


def _sorted(cases: list[Case], file: Path) -> list[Case]:
    for case in cases:
        check_case_name(case["name"], file)
    twice = sorted(name for name, count in Counter(case["name"] for case in cases).items() if count > 1)
    if twice:
        raise UserError(f"{file} lists these cases more than once: {first_few(twice, 10)}")
    return sorted(cases, key=lambda case: case["name"])


def _channel_names(content: Mapping[str, Any], file: Path) -> list[str]:
    key = "channel_names" if "channel_names" in content else "modality"
    names = content.get(key) or {}
    if isinstance(names, dict):
        if not all(number.isdecimal() for number in names):
            raise UserError(f'{file}: the keys of "{key}" must be numbers from 0, not {list(names)}')
        names = [names[number] for number in sorted(names, key=int)]
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        raise UserError(f'{file}: "{key}" must be {{"0": name, …}}, not {content[key]!r}')
    if len(names) == 1 and str(names[0]).lower() == "rgb":  # one name for three channels, as people write it
        return ["R", "G", "B"]
    return [str(name) for name in names]


def _patients(content: Mapping[str, Any], cases: list[Case], file: Path) -> dict[str, str]:
    patients = content.get("patients") or {}
    if not isinstance(patients, dict):
        raise UserError(f'{file}: "patients" must be {{case: patient}}, not {patients!r}')
    names = {composed(case["name"]): case["name"] for case in cases}
    patients = {composed(name): patient for name, patient in patients.items()}
    if unknown := sorted(patients.keys() - names.keys()):
        raise UserError(f'{file}: "patients" names cases that do not exist: {first_few(unknown, 10)}')
    of_label = {
        str(find_file(file.parent, entry["label"])): entry["patient"]
        for entry in content.get("training") or []
        if "patient" in entry
    }
    of_entries = {case["name"]: of_label[case["label"]] for case in cases if case["label"] in of_label}
    found = of_entries | {names[name]: patient for name, patient in patients.items()}
    if wrong := [patient for patient in found.values() if not isinstance(patient, (str, int, float, NoneType))]:
        raise UserError(f"{file}: a patient must be a name or a number, not {wrong[0]!r}")
    return {name: str(patient) for name, patient in found.items() if patient not in (None, "")}
