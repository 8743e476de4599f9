"""Names of image files, and what their endings mean."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import UserError

__all__ = [
    "IMAGE_SUFFIXES",
    "ITK_SUFFIXES",
    "NIFTI_SUFFIXES",
    "PICTURE_SUFFIXES",
    "TIFF_SUFFIXES",
    "case_name",
    "check_case_name",
    "file_of_case",
    "first_file",
    "folders_with_images",
    "image_files",
    "image_suffix",
    "list_images",
    "prediction_suffix",
    "split_channel",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
TIFF_SUFFIXES = (".tif", ".tiff")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
IMAGE_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES + TIFF_SUFFIXES + PICTURE_SUFFIXES

LONGEST_NAME = 220  # bytes: file systems take 255, and endings and digests are added

# Label maps need a format without loss, and one file (.nhdr and .mhd name a second one that holds the voxels).
_PREDICTION_SUFFIXES = {".jpg": ".png", ".jpeg": ".png", ".bmp": ".png", ".nhdr": ".nrrd", ".mhd": ".mha"}


def image_files(image: str | Path | Sequence[str | Path]) -> list[str]:
    """The files of an image: its one, or one per channel."""
    return [str(file) for file in ([image] if isinstance(image, (str, Path)) else image)]


def first_file(image: str | Path | Sequence[str | Path]) -> str:
    """The file of an image, the first one where every channel has its own."""
    return image_files(image)[0]


def image_suffix(path: str | Path) -> str | None:
    """The ending of a readable image file, lower case (".nii.gz", ".png", …), or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), None)


def prediction_suffix(path: str | Path) -> str:
    """The ending of a label map made from an image: the image's own, .png for JPEG and BMP, .nrrd for .nhdr,
    .mha for .mhd."""
    suffix = image_suffix(path) or ".png"
    return _PREDICTION_SUFFIXES.get(suffix, suffix)


def case_name(path: str | Path) -> str:
    """File name without its ending: /a/case_1.nii.gz -> case_1."""
    name = Path(path).name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else Path(name).stem


def check_case_name(name: str, source: str | Path = "") -> None:
    """Refuse a case's name that is no plain file name: files named after it would lie elsewhere, hidden or nowhere.

    Args:
        source: the file that gives the name, for the message.

    Raises:
        UserError: says what is wrong with the name.
    """
    if problem := _name_problem(name):
        where = f"{source}: " if source else ""
        raise UserError(f"{where}the case name {name[:100]!r} {problem}; files are named after it, so rename the case")


def file_of_case(folder: str | Path, name: str, ending: str = "") -> Path:
    """folder/NAME + ending, for a name that someone else chose: a data set, or another program.

    Raises:
        UserError: see check_case_name.
    """
    check_case_name(name)
    return Path(folder) / f"{name}{ending}"


def _name_problem(name: str) -> str | None:
    if name.strip() and (Path(name).name != name or "\0" in name):  # by this system's rules: also a drive of Windows
        return "leads to another folder"
    if not name.strip() or name.startswith("."):
        return "is empty or begins with a dot"
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return "cannot be a file's on this system"
    return f"is longer than {LONGEST_NAME} bytes" if length > LONGEST_NAME else None


def split_channel(path: str | Path) -> tuple[str, int | None]:
    """Case and nnU-Net's channel number in a file name: CASE_0002.nii.gz -> (CASE, 2), CASE.png -> (CASE, None)."""
    name = case_name(path)
    match = re.fullmatch(r"(.+)_(\d{4})", name)
    return (match[1], int(match[2])) if match else (name, None)


def list_images(path: str | Path) -> list[Path]:
    """The image files of a folder, sorted, or the one file that ``path`` is; hidden files are left out.

    Raises:
        UserError: there is no such file or folder, or no readable image in it.
    """
    path = Path(path)
    readable = ", ".join(IMAGE_SUFFIXES)
    if path.is_file():
        if image_suffix(path) is None:
            raise UserError(f"{path} is not an image that can be read ({readable})")
        return [path]
    if not path.is_dir():
        raise UserError(f"the input {path} does not exist: give a file or a folder with --input_dir")
    images = sorted(file for file in path.iterdir() if _is_image(file))
    if not images:
        deeper = "".join(f"; its sub-folder {name} does" for name in folders_with_images(path)[:1])
        raise UserError(f"the input folder {path} holds no image ({readable}){deeper}")
    return images


def folders_with_images(path: str | Path) -> list[str]:
    """Names of the folders in a folder that hold images themselves, sorted; none of a file."""
    folders = sorted(folder for folder in Path(path).glob("[!.]*") if folder.is_dir())
    return [folder.name for folder in folders if _holds_images(folder)]


def _holds_images(folder: Path) -> bool:
    try:
        return any(map(_is_image, folder.iterdir()))
    except OSError:  # nobody may look into it, and nobody asked to
        return False


def _is_image(file: Path) -> bool:
    # macOS leaves files such as ._case.nii.gz beside the real ones
    # A link that leads nowhere counts: that its image is missing must be said.
    return not file.is_dir() and not file.name.startswith(".") and image_suffix(file) is not None
