"""Images and dataset.json files that cannot be used."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from . import samples
from .ground import Ground
from .refusals import Scenario

Write = Callable[[Path], Any]


def image_scenarios(ground: Ground) -> Iterator[Scenario]:
    """Inference on a folder in which one image is bad: it is named, and those after it are predicted."""
    for number, (name, (file_name, write)) in enumerate(_bad_images(ground).items()):
        folder = ground.empty(f"bad_images/{number}")
        images, out = folder / "images", folder / "out"
        images.mkdir()
        for good in ("a_good", "z_good"):
            shutil.copy(ground.images / "c00_0000.nii.gz", images / f"{good}.nii.gz")
        write(images / file_name)
        command = samples.inference(ground.overlay, images, out, ground.weights)
        yield Scenario(f"inference on {name}", command, (file_name,), then=lambda out=out: _others_written(out))


def description_scenarios(ground: Ground) -> Iterator[Scenario]:
    """Planning and training on data sets whose dataset.json, or whose files, are wrong."""
    for number, (name, change) in enumerate(_bad_descriptions().items()):
        folder = ground.empty(f"bad_descriptions/{number}")
        dataset = shutil.copytree(ground.volumes, folder / "data")
        named = change(dataset)
        plan, out = folder / "plan.json", folder / "run"
        yield Scenario(f"planning, {name}", samples.planning(dataset, plan), named, may_succeed=name in _GUESSED)
        command = samples.training(ground.overlay, out, folder / "cache", dataset_dir=dataset)
        yield Scenario(f"training, {name}", command, named, may_succeed=name in _ONLY_PLANNING)


def _others_written(out: Path) -> str | None:
    missing = [name for name in ("a_good.nii.gz", "z_good.nii.gz") if not (out / name).is_file()]
    return f"not predicted: {', '.join(missing)}" if missing else None


def _bad_images(ground: Ground) -> dict[str, tuple[str, Write]]:
    good = (ground.images / "c00_0000.nii.gz").read_bytes()
    plain = gzip.decompress(good)
    array = np.zeros((18, 20, 16), np.float32)

    def volume(content: np.ndarray) -> Write:
        return lambda file: nib.save(nib.Nifti1Image(content, np.eye(4)), file)

    def text(content: bytes) -> Write:
        return lambda file: file.write_bytes(content)

    def itk(content: np.ndarray) -> Write:
        return lambda file: sitk.WriteImage(sitk.GetImageFromArray(content), str(file))

    def picture(file: Path) -> None:
        Image.fromarray(array[..., 0].astype(np.uint8)).save(file)

    return {
        "an empty file": ("m.nii.gz", text(b"")),
        "half a file": ("m.nii.gz", text(good[: len(good) // 2])),
        "a file without its last bytes": ("m.nii.gz", text(good[:-6])),
        "text": ("m.nii.gz", text(b"this is no image")),
        "gzip of text": ("m.nii.gz", text(gzip.compress(b"this is no image"))),
        "a header alone": ("m.nii.gz", text(gzip.compress(plain[:352]))),
        "an empty plain file": ("m.nii", text(b"")),
        "a plain file cut short": ("m.nii", text(plain[:3000])),
        "a header that claims gigabytes": ("m.nii", text(_huge_nifti(plain))),
        "a compressed header that claims gigabytes": (
            "m.nii.gz",
            text(gzip.compress(_huge_nifti(gzip.decompress(good)))),
        ),
        "a picture for a network of volumes": ("m.png", picture),
        "a picture named as a volume": ("m.nii.gz", lambda file: Image.new("L", (9, 9)).save(file, "PNG")),
        "two channels": ("m.nii.gz", volume(np.zeros((9, 9, 9, 2), np.float32))),
        "five dimensions": ("m.nii.gz", volume(np.zeros((5, 5, 5, 2, 3), np.float32))),
        "complex numbers": ("m.nii.gz", volume(array.astype(np.complex64))),
        "no voxels": ("m.nii.gz", text(_without_voxels(plain))),
        "nothing but NaN": ("m.nii.gz", volume(array * np.nan)),
        "infinite voxels": ("m.nii.gz", volume(np.where(array == 0, np.inf, array).astype(np.float32))),
        "a singular affine": ("m.nii.gz", text(_with_affine(plain, 0.0))),
        "an affine of NaN": ("m.nii.gz", text(_with_affine(plain, float("nan")))),
        "an empty .mha": ("m.mha", text(b"")),
        "an .mha cut short": ("m.mha", _cut(itk(array))),
        "a tiny .mha that claims gigabytes": ("m.mha", text(_huge_meta())),
        "an .mhd without its voxels": ("m.mhd", text(_meta("missing.raw"))),
        "an empty .nrrd": ("m.nrrd", text(b"")),
        "an .nrrd cut short": ("m.nrrd", _cut(itk(array))),
        "a tiny .nrrd that claims gigabytes": ("m.nrrd", text(_huge_nrrd())),
        "an .nhdr without its voxels": ("m.nhdr", text(_huge_nrrd("missing.raw"))),
        "an empty .tif": ("m.tif", text(b"")),
        "text as .tif": ("m.tif", text(b"II*\0 this is no image")),
        "a link to nowhere": ("m.nii.gz", lambda file: file.symlink_to("nowhere.nii.gz")),
        "a link to itself": ("m.nii.gz", lambda file: file.symlink_to(file.name)),
        "an empty .png": ("m.png", text(b"")),
        "half a .jpg": ("m.jpg", _cut(lambda file: Image.new("L", (40, 40)).save(file))),
    }


def _cut(write: Write) -> Write:
    def cut(file: Path) -> None:
        write(file)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])

    return cut


def _huge_nifti(plain: bytes) -> bytes:
    """A header of 20,000 x 20,000 x 200 voxels, and the voxels of the small image."""
    return plain[:40] + struct.pack("<8h", 3, 20000, 20000, 200, 1, 1, 1, 1) + plain[56:]


def _without_voxels(plain: bytes) -> bytes:
    return gzip.compress(plain[:40] + struct.pack("<8h", 3, 0, 20, 16, 1, 1, 1, 1) + plain[56:352])


def _with_affine(plain: bytes, value: float) -> bytes:
    """The image with an affine of nothing but this value."""
    return gzip.compress(
        plain[:252] + struct.pack("<2h", 0, 1) + plain[256:280] + struct.pack("<12f", *[value] * 12) + plain[328:]
    )


def _meta(data: str, size: str = "18 20 16") -> bytes:
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = {size}\n"
        f"ElementSpacing = 1 1 1\nElementType = MET_FLOAT\nElementDataFile = {data}\n"
    ).encode()


def _huge_meta() -> bytes:
    return _meta("LOCAL", "20000 20000 200") + bytes(100)


def _huge_nrrd(data: str | None = None) -> bytes:
    size = "18 20 16" if data else "20000 20000 200"
    where = f"data file: {data}\n" if data else ""
    return (
        f"NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: {size}\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        f"space origin: (0,0,0)\n{where}\n"
    ).encode() + bytes(0 if data else 100)


Change = Callable[[Path], tuple[str, ...]]
# Planning counts the channels' files, and a background needs no name.
_GUESSED = {"channel_names missing", "labels without background"}
# Training takes labels and channels from its overlay.
_ONLY_PLANNING = {
    "channel_names missing",
    "channel_names a number",
    "labels missing",
    "labels a list",
    "labels a number",
    "labels without background",
    "a label's value a word",
    "two labels with one value",
    "a negative label",
    "a label of 2^31",
    "no labels at all",
}


def _bad_descriptions() -> dict[str, Change]:
    def edit(key: str, value: Any) -> Change:
        def change(dataset: Path) -> tuple[str, ...]:
            _edit(dataset, key, value)
            return "dataset.json", key, "imagesTr"

        return change

    def write(content: bytes) -> Change:
        def change(dataset: Path) -> tuple[str, ...]:
            (dataset / "dataset.json").write_bytes(content)
            return ("dataset.json",)

        return change

    def pairs(*entries: Any) -> Change:
        """The layout of the Medical Segmentation Decathlon with these entries."""

        def change(dataset: Path) -> tuple[str, ...]:
            names = [f"c{number:02d}" for number in range(6)]
            good = [{"image": f"./imagesTr/{n}_0000.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
            labels = {"0": "background", "1": "core", "2": "rim"}
            content = {"modality": {"0": "MRI"}, "labels": labels, "training": [*good, *entries]}
            (dataset / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
            return "dataset.json", "training", "odd"

        return change

    first = {"background": 0, "core": 1}
    return {
        "no dataset.json": _remove("dataset.json"),
        "an empty dataset.json": write(b""),
        "dataset.json of text": write(b"hello"),
        "dataset.json cut short": write(b'{"labels": {"backgr'),
        "dataset.json a list": write(b"[]"),
        "dataset.json a word": write(b'"labels"'),
        "dataset.json null": write(b"null"),
        "dataset.json not UTF-8": write(b'{"name": "\xff\xfe"'),
        "channel_names missing": edit("channel_names", None),
        "channel_names a number": edit("channel_names", 3),
        "labels missing": edit("labels", None),
        "labels a list": edit("labels", ["background", "core"]),
        "labels a number": edit("labels", 3),
        "labels without background": edit("labels", {"core": 1, "rim": 2}),
        "a label's value a word": edit("labels", first | {"rim": "two"}),
        "two labels with one value": edit("labels", first | {"rim": 1}),
        "a negative label": edit("labels", first | {"rim": -2}),
        "a label of 2^31": edit("labels", first | {"rim": 2**31}),
        "no labels at all": edit("labels", {"background": 0}),
        "file_ending of no image": edit("file_ending", ".docx"),
        "file_ending a number": edit("file_ending", 3),
        "no such ending": edit("file_ending", ".mha"),
        "an entry that is a word": pairs("odd"),
        "an entry that is null": pairs(None),
        "an entry without label": pairs({"image": "./imagesTr/odd.nii.gz"}),
        "an entry without image": pairs({"label": "./labelsTr/odd.nii.gz"}),
        "an entry of numbers": pairs({"image": 3, "label": 4}),
        "an entry of no file": pairs({"image": "./imagesTr/odd.nii.gz", "label": "./labelsTr/odd.nii.gz"}),
        "an entry out of the folder": pairs({"image": "../../odd.nii.gz", "label": "../../odd.nii.gz"}),
        "an image twice": pairs({"image": "./imagesTr/c00_0000.nii.gz", "label": "./labelsTr/c00.nii.gz"}),
        "training of words": _training("all of them"),
        "training empty": _training([]),
        "a label missing": _remove("labelsTr/c03.nii.gz"),
        "an image missing": _remove("imagesTr/c03_0000.nii.gz"),
        "no labels' folder": _remove("labelsTr"),
        "no images' folder": _remove("imagesTr"),
        "a label empty": _label(lambda file: file.write_bytes(b"")),
        "a label of another shape": _label(_of(np.zeros((9, 9, 9), np.uint8))),
        "a label with an unknown value": _label(_of(np.full((18, 20, 16), 7, np.uint8))),
        "a label with fractions": _label(_of(np.full((18, 20, 16), 0.5, np.float32))),
        "a label of NaN": _label(_of(np.full((18, 20, 16), np.nan, np.float32))),
        "a negative label value": _label(_of(np.full((18, 20, 16), -1, np.int16))),
        "a label value of 2^31": _label(_of(np.full((18, 20, 16), 2.0**31, np.float64))),
        "a label on another grid": _label(_of(np.zeros((18, 20, 16), np.uint8), np.diag([3.0, 3, 3, 1]))),
    }


def _edit(dataset: Path, key: str, value: Any) -> None:
    file = dataset / "dataset.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {key: value}
    if value is None:
        del content[key]
    file.write_text(json.dumps(content), encoding="utf-8")


def _training(value: Any) -> Change:
    def change(dataset: Path) -> tuple[str, ...]:
        content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "core", "2": "rim"}, "training": value}
        (dataset / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        return "dataset.json", "training"

    return change


def _remove(name: str) -> Change:
    def change(dataset: Path) -> tuple[str, ...]:
        path = dataset / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return (Path(name).name.split(".")[0], "dataset.json")

    return change


def _label(write: Write) -> Change:
    def change(dataset: Path) -> tuple[str, ...]:
        write(dataset / "labelsTr/c03.nii.gz")
        return ("c03",)

    return change


def _of(array: np.ndarray, affine: np.ndarray | None = None) -> Write:
    return lambda file: nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), file)
