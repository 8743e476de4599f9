"""Small data sets, one for each thing that makes a data set hard, written in either layout and any format.

``hard_case(name)`` gives the cases in memory; ``write_msd`` and ``write_nnunet`` put them into a folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

__all__ = ["HARD_CASES", "Case", "DataSet", "hard_case", "oblique", "write_image", "write_msd", "write_nnunet"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Case:
    """image (channels, *spatial), label (*spatial) of integers, affine 4x4 (RAS) or None for pictures."""

    name: str
    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray | None = None


@dataclass
class DataSet:
    """Cases and what a dataset.json says of them; labels: name -> value (or values, for a region)."""

    name: str
    cases: list[Case]
    labels: dict[str, Any]
    channels: list[str] = field(default_factory=lambda: ["MRI"])
    ignore_label: int | None = None
    ending: str = ".nii.gz"


def oblique(spacing: Sequence[float], degrees: float = 25.0) -> np.ndarray:
    """Affine of a grid that is turned about two axes, with its first two axes to the left and back (LPS)."""
    a, b = np.radians([degrees, degrees / 2])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(np.multiply(spacing, (-1, -1, 1)))
    affine[:3, 3] = (30.0, -20.0, 45.0)
    return affine


def straight(spacing: Sequence[float]) -> np.ndarray:
    """Affine of a grid along the body axes, LPS as scanners write it."""
    return oblique(spacing, 0.0)


def objects(shape: Sequence[int], values: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """A label map with one ellipsoid for each value, side by side along the longest axis."""
    axis = int(np.argmax(shape))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij"))
    label = np.zeros(shape, np.uint8)
    for i, value in enumerate(values):
        centre = rng.uniform(-0.2, 0.2, len(shape))
        centre[axis] = -1 + (2 * i + 1) / len(values) + rng.uniform(-0.05, 0.05)
        radius = np.full(len(shape), 0.6)
        radius[axis] = 0.8 / len(values)
        distance = (((grid.T - centre) / radius) ** 2).sum(-1).T
        label[distance < 1] = value
    return label


def volume(
    name: str,
    shape: Sequence[int],
    values: Sequence[int],
    affine: np.ndarray | None,
    rng: np.random.Generator,
    channels: int = 1,
    dtype: type = np.float32,
    base: float = 100.0,
    step: float = 60.0,
) -> Case:
    """A case whose classes differ in brightness, in each channel in another way."""
    label = objects(shape, values, rng)
    rank = np.searchsorted([0, *values], label)
    signs = [(-1) ** channel / (1 + channel // 2) for channel in range(channels)]
    image = np.stack([base + step * sign * rank + rng.normal(0, step / 12, shape) for sign in signs])
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.finfo(dtype)
    return Case(name, np.clip(image, limits.min, limits.max).astype(dtype), label, affine)


def anisotropic_ct(count: int, rng: np.random.Generator) -> DataSet:
    """CT of 0.7 x 0.7 x 5 mm, Hounsfield units from -1024."""
    shapes = [(40 + i, 36, 9 + i % 3) for i in range(count)]
    make = {"dtype": np.int16, "base": -600, "step": 300}
    cases = [volume(f"ct_{i}", s, (1, 2), straight((0.7, 0.7, 5)), rng, **make) for i, s in enumerate(shapes)]
    return DataSet("AnisotropicCT", cases, {"liver": 1, "tumour": 2}, ["CT"])


def rgb_pictures(count: int, rng: np.random.Generator) -> DataSet:
    """Colour photographs of different sizes."""
    shapes = [(40 + 3 * i, 56 - 2 * i) for i in range(count)]
    make = {"channels": 3, "dtype": np.uint8, "step": 70.0}
    cases = [volume(f"photo_{i}", s, (1,), None, rng, **make) for i, s in enumerate(shapes)]
    return DataSet("Photos", cases, {"lesion": 1}, ["R", "G", "B"], ending=".png")


def four_channels(count: int, rng: np.random.Generator) -> DataSet:
    """MR with four channels, as of brain tumours."""
    cases = [
        volume(f"brain_{i}", (24, 26 + i, 20), (1, 2, 3), straight((1, 1, 1)), rng, channels=4) for i in range(count)
    ]
    return DataSet("FourChannels", cases, {"oedema": 1, "core": 2, "enhancing": 3}, ["FLAIR", "T1w", "T1gd", "T2w"])


def tiny(count: int, rng: np.random.Generator) -> DataSet:
    """Volumes smaller than any patch."""
    cases = [volume(f"tiny_{i}", (7 + i, 11, 5), (1,), straight((1, 1, 1.2)), rng) for i in range(count)]
    return DataSet("Tiny", cases, {"nodule": 1})


def rotated(count: int, rng: np.random.Generator) -> DataSet:
    """Volumes whose axes are oblique to the body's."""
    cases = [
        volume(f"oblique_{i}", (26, 22 + i, 18), (1, 2), oblique((1, 1.2, 1.5), 15 + 3 * i), rng) for i in range(count)
    ]
    return DataSet("Rotated", cases, {"atrium": 1, "ventricle": 2})


def one_slice(count: int, rng: np.random.Generator) -> DataSet:
    """Volumes among which one has a single slice."""
    cases = [volume(f"stack_{i}", (30, 32, 1 if i == 0 else 6), (1,), straight((1, 1, 8)), rng) for i in range(count)]
    return DataSet("OneSlice", cases, {"myocardium": 1})


def flat_volumes(count: int, rng: np.random.Generator) -> DataSet:
    """2D images stored as volumes of one slice."""
    cases = [volume(f"flat_{i}", (30, 34 + i, 1), (1,), straight((0.5, 0.5, 1)), rng) for i in range(count)]
    return DataSet("Flat", cases, {"plaque": 1}, ["US"])


def label_gap(count: int, rng: np.random.Generator) -> DataSet:
    """Labels 0, 1 and 5."""
    cases = [volume(f"gap_{i}", (20, 24, 18 + i), (1, 5), straight((1, 1, 1)), rng) for i in range(count)]
    return DataSet("LabelGap", cases, {"kidney": 1, "cyst": 5})


def partly_labelled(count: int, rng: np.random.Generator) -> DataSet:
    """Half of every volume was not labelled: ignore label 3."""
    cases = [volume(f"part_{i}", (24, 20, 18 + i), (1, 2), straight((1, 1, 1)), rng) for i in range(count)]
    for case in cases:
        case.label[:, :8] = 3
    return DataSet("PartlyLabelled", cases, {"a": 1, "b": 2}, ignore_label=3)


HARD_CASES: dict[str, Callable[[int, np.random.Generator], DataSet]] = {
    "anisotropic_ct": anisotropic_ct,
    "rgb_pictures": rgb_pictures,
    "four_channels": four_channels,
    "tiny": tiny,
    "rotated": rotated,
    "one_slice": one_slice,
    "flat_volumes": flat_volumes,
    "label_gap": label_gap,
    "partly_labelled": partly_labelled,
}


def hard_case(name: str, count: int = 5, seed: int = 0) -> DataSet:
    """One of HARD_CASES with ``count`` cases."""
    return HARD_CASES[name](count, np.random.default_rng(seed))


def write_image(path: Path, image: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write (channels, *spatial) in the format of the path's ending; a TIFF stack gets its spacing beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    name = path.name
    if name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1), affine), path)
    elif name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        sitk.WriteImage(_itk_image(image, affine), str(path))
    elif name.endswith((".tif", ".tiff")) and image.ndim == 4:
        tifffile.imwrite(path, image[0], photometric="minisblack", metadata={"axes": "ZYX"})
        spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        stem = path.name.rpartition(".")[0]
        is_channel = stem[-5:-4] == "_" and stem[-4:].isdigit()
        path.with_name((stem[:-5] if is_channel else stem) + ".json").write_text(json.dumps({"spacing": spacing}))
    else:
        Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(path)
    return path


def write_msd(root: Path, data: DataSet, ending: str | None = None, patients: Mapping[str, str] | None = None) -> Path:
    """Write a data set in the MSD layout: all channels in one file."""
    ending = ending or data.ending
    training = []
    for case in data.cases:
        entry = {"image": f"./imagesTr/{case.name}{ending}", "label": f"./labelsTr/{case.name}{ending}"}
        write_image(root / entry["image"], case.image, case.affine)
        write_image(root / entry["label"], case.label[None], case.affine)
        training.append(entry | ({"patient": patients[case.name]} if patients else {}))
    labels = {"0": "background"} | {str(value): name for name, value in data.labels.items()}
    labels |= {} if data.ignore_label is None else {str(data.ignore_label): "ignore"}
    _write_json(
        root,
        {
            "name": data.name,
            "modality": dict(enumerate(data.channels)),
            "labels": labels,
            "numTraining": len(training),
            "training": training,
        },
    )
    return root


def write_nnunet(
    root: Path, data: DataSet, ending: str | None = None, patients: Mapping[str, str] | None = None
) -> Path:
    """Write a data set in nnU-Net's raw layout: a file per channel, RGB pictures in one."""
    ending = ending or data.ending
    for case in data.cases:
        for channel, image in enumerate([case.image] if case.affine is None else case.image[:, None]):
            write_image(root / f"imagesTr/{case.name}_{channel:04d}{ending}", image, case.affine)
        write_image(root / f"labelsTr/{case.name}{ending}", case.label[None], case.affine)
    ignore = {} if data.ignore_label is None else {"ignore": data.ignore_label}
    _write_json(
        root,
        {
            "channel_names": dict(enumerate(data.channels)),
            "labels": {"background": 0, **data.labels, **ignore},
            "numTraining": len(data.cases),
            "file_ending": ending,
            **({"patients": dict(patients)} if patients else {}),
        },
    )
    return root


def _write_json(root: Path, content: Mapping[str, Any]) -> None:
    (root / "dataset.json").write_text(json.dumps(content))


def _itk_image(image: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """(channels, x, y[, z]) with a RAS affine as SimpleITK has it: (z, y, x[, channels]) and LPS."""
    dims = image.ndim - 1
    array = np.moveaxis(image, 0, -1).transpose(*range(dims - 1, -1, -1), dims)
    result = sitk.GetImageFromArray(array if len(image) > 1 else array[..., 0], isVector=len(image) > 1)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:dims, :dims], axis=0)
    result.SetSpacing(spacing.tolist())
    result.SetOrigin(lps[:dims, 3].tolist())
    result.SetDirection((lps[:dims, :dims] / spacing).ravel().tolist())
    return result
