"""Reading NRRD and MetaImage through SimpleITK, compressed files to the checksum at their end.

SimpleITK hands on whatever a damaged stream still gives, so compressed voxels are unpacked here; what there is to know
of the image still comes from SimpleITK.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from ..files import image_suffix
from .nifti import channels_first
from .streams import BLOCK, Unreadable, check_claim, check_rest, open_stream, read_exactly

__all__ = ["Geometry", "itk_affine", "itk_geometry", "itk_header", "read_itk", "voxel_files"]

NRRD_ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}
LONGEST_HEADER = 1 << 20  # bytes


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie (LPS), of its first three axes: spacing in mm, origin, directions as columns."""

    spacing: np.ndarray
    origin: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class _Stored:
    """How the voxels are stored.

    Args:
        sizes: of the axes in the file, the fastest first, that of the channels with them.
        files: in which they lie, each an equal part.
        encoding: "raw", "gzip", "zlib", "bzip2" or "text".
        start: where they begin in each file; -1: they are its end.
        big_endian: how their bytes stand.
        skip: bytes in front of them in the decompressed stream.
        lines: lines in front of them in each file.
    """

    sizes: list[int]
    files: list[Path]
    encoding: str
    start: int
    big_endian: bool
    skip: int = 0
    lines: int = 0


def itk_header(path: str | Path) -> sitk.ImageFileReader:
    """What SimpleITK knows of a NRRD or MetaImage file without its voxels."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_itk_format(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "MetaImageIO" in str(error):  # it does not say why
            raise Unreadable("SimpleITK cannot make sense of its header") from error
        raise
    return reader


def itk_geometry(image: sitk.Image | sitk.ImageFileReader) -> Geometry:
    """Where voxels lie; a negative spacing, as in old MetaImage files, turns its axis round."""
    whole = image.GetDimension()
    dims = min(whole, 3)
    spacing, origin = (np.asarray(values)[:dims] for values in (image.GetSpacing(), image.GetOrigin()))
    directions = np.reshape(image.GetDirection(), (whole, whole))[:dims, :dims]
    return Geometry(np.abs(spacing), origin, directions * np.where(spacing < 0, -1.0, 1.0))


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Affine in nibabel's convention (RAS) of an image of SimpleITK (LPS)."""
    geometry, affine = itk_geometry(image), np.eye(4)
    dims = len(geometry.spacing)
    affine[:dims, :dims] = geometry.directions * geometry.spacing
    affine[:dims, 3] = geometry.origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (channels, x, y, z) and the affine."""
    stored = _stored(path)  # first: of what a header lacks it tells more than SimpleITK
    header = itk_header(path)
    array = _unpacked(stored, header)
    if array is None:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO=_itk_format(path)))
    dims, components = header.GetDimension(), header.GetNumberOfComponents()
    axes = range(dims - 1, -1, -1)  # SimpleITK's arrays are (z, y, x) or (z, y, x, components)
    if components == 1 or dims > 3:
        array = channels_first(array.transpose(*axes, *range(dims, array.ndim)))
    else:
        array = array.transpose(dims, *axes)
    return array, itk_affine(header)


def voxel_files(path: str | Path) -> list[Path]:
    """The files that hold the voxels of a NRRD or MetaImage file: itself, or those that its header names."""
    return _stored(Path(path)).files


def _itk_format(path: str | Path) -> str:
    """SimpleITK's name of the format; by itself it does not know .MHA and .MHD in upper case."""
    return "NrrdImageIO" if image_suffix(path) in (".nrrd", ".nhdr") else "MetaImageIO"


def _unpacked(stored: _Stored, header: sitk.ImageFileReader) -> np.ndarray | None:
    """The voxels as SimpleITK's array of the image; None where SimpleITK has to read them, which are then checked: by
    their size, and where they are compressed by their checksum."""
    size, components = header.GetSize(), header.GetNumberOfComponents()
    dtype = sitk.GetArrayViewFromImage(sitk.Image([1] * len(size), header.GetPixelIDValue(), components)).dtype
    if min(stored.sizes, default=0) < 1:
        raise Unreadable(f"an axis has no voxels: its size is {stored.sizes}")
    part = math.prod(stored.sizes) * dtype.itemsize // len(stored.files)
    for path in stored.files:
        voxels = _read_part(path, stored, part, dtype.itemsize)
    as_array = stored.sizes == [*([components] if components > 1 else []), *size]
    if voxels is None or not as_array or len(stored.files) > 1:
        return None
    order = ">" if stored.big_endian else "<"
    return voxels.view(dtype.newbyteorder(order)).reshape(stored.sizes[::-1]).astype(dtype, copy=False)


def _read_part(path: Path, stored: _Stored, size: int, itemsize: int) -> np.ndarray | None:
    """``size`` bytes that one file holds of the voxels, of which each takes ``itemsize``; None where they are not
    compressed, but all there."""
    if not path.is_file():
        raise Unreadable(f"its voxels should be in {path}, which is missing")
    start = _line_end(path, stored) if stored.lines else stored.start
    if stored.encoding == "text":
        check_claim(2 * (size // itemsize) - 1, path, start=start)  # a digit each, and what parts them
        return None
    check_claim(size, path, stored.encoding, max(0, start))
    if start < 0:
        return None
    with path.open("rb") as file:
        if stored.encoding == "raw":
            file.seek(start + size)
            check_rest(file)
            return None
        file.seek(start)
        stream = open_stream(file, stored.encoding)
        if stored.skip < 0:  # the voxels are the last bytes of the stream, however long it is
            while stream.read(BLOCK):
                pass
            return None
        if stored.skip and len(stream.read(stored.skip)) < stored.skip:
            raise Unreadable("its compressed stream ends before the voxels begin")
        return read_exactly(stream, size)


def _line_end(path: Path, stored: _Stored) -> int:
    """Where the voxels begin in a file with lines in front of them."""
    with path.open("rb") as file:
        file.seek(stored.start)
        for _ in range(stored.lines):
            file.readline(LONGEST_HEADER)
        return file.tell()


def _stored(path: Path) -> _Stored:
    is_nrrd = image_suffix(path) in (".nrrd", ".nhdr")
    with path.open("rb") as file:
        return (_stored_nrrd if is_nrrd else _stored_meta)(path, file)


def _stored_meta(path: Path, file: BinaryIO) -> _Stored:
    """By the header of a MetaImage, "Key = value", whose last line names the file of the voxels, or LOCAL."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields and (line := file.readline(LONGEST_HEADER)):
        key, value = (*re.split("[=:]", line.decode("latin-1"), maxsplit=1), "")[:2]
        fields[key.strip()] = value.strip()
    where = _field(fields, "ElementDataFile")
    inside = where.upper() == "LOCAL"
    files = [path] if inside else _named_files(path, where, file)
    start = int(fields.get("HeaderSize", 0)) or (file.tell() if inside else 0)
    channels, sizes = (
        int(fields.get("ElementNumberOfChannels", 1)),
        [int(size) for size in _field(fields, "DimSize").split()],
    )
    return _Stored(
        sizes=[*([channels] if channels > 1 else []), *sizes],
        files=files,
        encoding=_meta_encoding(fields, files[0], start),
        start=start,
        big_endian=_is_true(fields.get("BinaryDataByteOrderMSB") or fields.get("ElementByteOrderMSB", "")),
    )


def _meta_encoding(fields: Mapping[str, str], file: Path, start: int) -> str:
    if not _is_true(fields.get("CompressedData", "")):
        return "raw" if _is_true(fields.get("BinaryData", "True")) else "text"
    if not file.is_file():
        return "zlib"
    with file.open("rb") as stream:
        stream.seek(max(0, start))
        return "gzip" if stream.read(2) == b"\x1f\x8b" else "zlib"  # MetaIO takes both


def _stored_nrrd(path: Path, file: BinaryIO) -> _Stored:
    """By the header of a NRRD, "field: value", which ends with an empty line, a list of files, or the file."""
    fields: dict[str, str] = {}
    while not fields.get("datafile", "").startswith("LIST") and (line := file.readline(LONGEST_HEADER).strip()):
        field, _, value = line.decode("latin-1").partition(":")
        if not value.startswith("="):  # that is a remark
            fields[field.lower().replace(" ", "")] = value.strip()
    where, skip = fields.get("datafile"), int(fields.get("byteskip", 0))
    encoding = NRRD_ENCODINGS.get(_field(fields, "encoding").lower(), "text")
    start = file.tell() if where is None else 0
    if encoding == "raw":
        start, skip = (start + skip if skip >= 0 else -1), 0
    return _Stored(
        sizes=[int(size) for size in _field(fields, "sizes").split()],
        files=[path] if where is None else _named_files(path, where, file),
        encoding=encoding,
        start=start,
        skip=skip,
        lines=int(fields.get("lineskip", 0)),
        big_endian=fields.get("endian", "").lower() == "big",
    )


def _named_files(path: Path, where: str, file: BinaryIO) -> list[Path]:
    """The files of voxels that a header names: one, a pattern ("part%03d.raw 1 9 1"), or a list in the next lines."""
    if not where.isprintable():
        raise Unreadable("the name of the file with its voxels is damaged")
    words = where.split()
    if words[0] == "LIST":
        names = [line.decode().strip() for line in file.read(LONGEST_HEADER).splitlines()]
    elif "%" in where and len(words) > 3:
        first, last, step = map(int, words[1:4])
        names = [words[0] % number for number in range(first, last + 1, step)]
    else:
        names = [where]
    return [path.parent / name for name in names if name]


def _field(fields: Mapping[str, str], name: str) -> str:
    if not fields.get(name):
        raise Unreadable(f"its header has no {name}")
    return fields[name]


def _is_true(value: str) -> bool:
    return value[:1] in ("T", "t", "1")  # as MetaIO has it
