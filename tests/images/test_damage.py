"""Damaged files, and headers that ask for more than their file holds: refused in one line that names the file."""

from __future__ import annotations

import bz2
import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from tiff_files import write_tiff

from scripts.common.errors import UserError
from scripts.data.prepared import source_files
from scripts.images.formats import read_raw

FLIPS = 300
SCAN = (np.cumsum(np.random.default_rng(0).integers(-3, 4, (12, 14, 10)), axis=0) + 500).astype(np.int16)
META = (
    "NDims = 3\nBinaryData = True\nCompressedData = {}\nDimSize = {}\nElementType = MET_SHORT\nElementDataFile = {}\n"
)
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nendian: little\nencoding: {}\n\n"


def nifti(folder: Path) -> tuple[Path, Path]:
    nib.save(nib.Nifti1Image(SCAN, np.diag([1, 2, 3, 1])), folder / "a.nii.gz")
    return folder / "a.nii.gz", folder / "a.nii.gz"


def itk(name: str, voxels: str | None = None) -> Callable[[Path], tuple[Path, Path]]:
    def write(folder: Path) -> tuple[Path, Path]:
        sitk.WriteImage(sitk.GetImageFromArray(SCAN), str(folder / name), useCompression=True)
        return folder / name, folder / (voxels or name)

    return write


def nrrd_bzip2(folder: Path) -> tuple[Path, Path]:
    path = folder / "a.nrrd"
    path.write_bytes(NRRD.format("10 14 12", "bzip2").encode() + bz2.compress(SCAN.tobytes()))
    return path, path


def png(folder: Path) -> tuple[Path, Path]:
    Image.fromarray(SCAN[0].astype(np.uint8)).save(folder / "a.png")
    return folder / "a.png", folder / "a.png"


def deflated_tiff(folder: Path) -> tuple[Path, Path]:
    path = write_tiff(folder / "a.tif", SCAN[0].astype(np.uint16), "deflate")
    return path, path


@pytest.mark.parametrize(
    "write",
    [
        nifti,
        itk("a.mha"),
        itk("a.nrrd"),
        nrrd_bzip2,
        itk("a.mhd", "a.zraw"),
        itk("a.nhdr", "a.raw.gz"),
        png,
        deflated_tiff,
    ],
)
def test_every_flip_that_changes_a_voxel_is_noticed(
    tmp_path: Path, write: Callable, capfd: pytest.CaptureFixture
) -> None:
    """Bits that change nothing, such as the time in a gzip header, may go unnoticed."""
    random = np.random.default_rng(1)
    image, voxels = write(tmp_path)
    whole, content = read_raw(image).array, voxels.read_bytes()
    # A TIFF's directory has no checksum, nor has the text of a NRRD or MetaImage: there, the compressed part.
    first, last = (8, content.index(struct.pack("<HHI", 256, 4, 1))) if image.suffix == ".tif" else (0, len(content))
    noticed = 0
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[random.integers(first, last)] ^= 1 << int(random.integers(8))
        voxels.write_bytes(damaged)
        try:
            array = read_raw(image).array
        except UserError as error:
            assert str(image) in str(error) and "\n" not in str(error)
            noticed += 1
        else:
            assert array.dtype == whole.dtype and np.array_equal(array, whole)
    assert noticed > 0.5 * FLIPS


@pytest.mark.parametrize("write", [nifti, itk("a.mha"), itk("a.nrrd"), nrrd_bzip2, itk("a.mhd", "a.zraw"), png])
def test_cut_files_are_refused(tmp_path: Path, write: Callable) -> None:
    image, voxels = write(tmp_path)
    content = voxels.read_bytes()
    for length in (0, 1, 20, len(content) // 2, len(content) - 1):
        voxels.write_bytes(content[:length])
        with pytest.raises(UserError, match="cannot be read as an image") as caught:
            read_raw(image)
        assert str(image) in str(caught.value) and "\n" not in str(caught.value)


def nifti_header(content: bytes, offset: int, *numbers: int) -> bytes:
    return content[:offset] + struct.pack(f"<{len(numbers)}h", *numbers) + content[offset + 2 * len(numbers) :]


@pytest.mark.parametrize("packed", [False, True])
def test_nifti_headers_that_do_not_fit_their_file(tmp_path: Path, packed: bool) -> None:
    good, path = nib.Nifti1Image(SCAN, np.eye(4)).to_bytes(), tmp_path / ("a.nii.gz" if packed else "a.nii")
    for content, reason in (
        (nifti_header(good, 42, 32000, 32000, 32000), "cannot hold"),
        (nifti_header(good, 42, 6), "more voxels than its header asks for"),
        (nifti_header(good, 46, 0), "no voxels"),
        (nifti_header(good, 46, -10), "no voxels"),
        (good + b"more", "more voxels than its header asks for"),
        (good[:-8], "cannot be read"),
        (good[:352], "cannot be read"),
    ):
        path.write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(UserError, match=reason) as caught:
            read_raw(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(gzip.compress(good) + bytes(512) if packed else good + bytes(512))  # padding does no harm
    assert np.array_equal(read_raw(path).array[0], SCAN)


SIZE, VOXELS = "10 14 12", SCAN.tobytes()
GREEDY = {
    "a.mha": [
        (META.format("False", "9000 9000 9000", "LOCAL"), VOXELS, "cannot hold"),
        (META.format("True", "9000 9000 9000", "LOCAL"), zlib.compress(VOXELS), "cannot hold"),
        (META.format("False", SIZE, "LOCAL"), VOXELS[:-1], "cannot hold"),
        (META.format("False", SIZE, "LOCAL"), VOXELS + b"more", "more voxels"),
        (META.format("False", SIZE, "LOCAL"), b"", "cannot hold"),
        (META.format("True", SIZE, "LOCAL"), zlib.compress(VOXELS[:-2]), "bytes of voxels"),
        (META.format("True", SIZE, "LOCAL"), zlib.compress(VOXELS * 2), "more voxels"),
        (META.format("False", "10 14 0", "LOCAL"), VOXELS, "no voxels"),
        (META.format("False", SIZE, "gone.raw"), b"", "gone.raw, which is missing"),
        (META.format("False", SIZE, "LOCAL\b"), VOXELS, "name of the file with its voxels is damaged"),
    ],
    "a.nrrd": [
        (NRRD.format("9000 9000 9000", "raw"), VOXELS, "cannot hold"),
        (NRRD.format("9000 9000 9000", "gzip"), gzip.compress(VOXELS), "cannot hold"),
        (NRRD.format(SIZE, "raw"), VOXELS[:-1], "cannot hold"),
        (NRRD.format(SIZE, "gzip"), gzip.compress(VOXELS[:-2]), "bytes of voxels"),
        (NRRD.format(SIZE, "bzip2"), bz2.compress(VOXELS * 2), "more voxels"),
        (NRRD.format("10 14 0", "raw"), VOXELS, "cannot be read"),
        (NRRD.format(SIZE, "raw").replace("encoding: raw\n", "data file: gone.raw\nencoding: raw\n"), b"", "gone.raw"),
    ],
}


@pytest.mark.parametrize("name", GREEDY)
def test_itk_headers_that_do_not_fit_their_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for header, voxels, reason in GREEDY[name]:
        path.write_bytes(header.encode() + voxels)
        with pytest.raises(UserError, match=reason) as caught:
            read_raw(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "header", "voxels"),
    [
        ("a.mha", META.format("True", SIZE, "LOCAL"), gzip.compress(VOXELS)),
        ("a.mha", META.format("False", SIZE, "LOCAL").replace("CompressedData = False\n", ""), VOXELS),
        ("a.mha", META.format("True", SIZE, "LOCAL").replace(" = ", "="), zlib.compress(VOXELS)),
        (
            "a.mha",
            META.format("False", SIZE, "LOCAL").replace("NDims", "HeaderSize = -1\nNDims"),
            b"some more" + VOXELS,
        ),
        ("a.mha", META.format("True", SIZE + " 1 1", "LOCAL").replace("NDims = 3", "NDims = 5"), zlib.compress(VOXELS)),
        ("a.nrrd", NRRD.format(SIZE, "GZ"), gzip.compress(VOXELS[:99]) + gzip.compress(VOXELS[99:])),
        ("a.nrrd", NRRD.format(SIZE, "gzip\nbyte skip: 3"), gzip.compress(b"abc" + VOXELS)),
        ("a.nrrd", NRRD.format(SIZE, "gzip\nbyte skip: -1"), gzip.compress(b"abc" + VOXELS)),
        ("a.nrrd", NRRD.format(SIZE, "gzip\nline skip: 2"), b"one\ntwo\n" + gzip.compress(VOXELS)),
        ("a.nrrd", NRRD.format(SIZE, "raw\nbyteskip: 3"), b"abc" + VOXELS),
        ("a.nrrd", NRRD.format(SIZE, "raw\nbyte skip: -1"), b"abc" + VOXELS),
        ("a.nrrd", NRRD.format(SIZE, "bz2"), bz2.compress(VOXELS)),
        ("a.nrrd", NRRD.format(SIZE, "gzip").replace("little", "big"), gzip.compress(SCAN.astype(">i2").tobytes())),
        ("a.nrrd", NRRD.format(SIZE, "ascii"), " ".join(map(str, SCAN.ravel())).encode()),
        (
            "a.nrrd",
            "# a remark\n".join(NRRD.format(SIZE, "raw\nsizes:=none").split("\n", 1)).replace("4#", "4\n#"),
            VOXELS,
        ),
    ],
)
def test_what_the_formats_allow_is_read(tmp_path: Path, name: str, header: str, voxels: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(header.encode() + voxels)
    assert np.array_equal(read_raw(path).array[0], SCAN.transpose())


@pytest.mark.parametrize(
    ("names", "header"),
    [(["s1.raw", "s2.raw"], "LIST 3\ns1.raw\ns2.raw\n"), (["p01.raw", "p02.raw"], "p%02d.raw 1 2 1 3\n")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_in_several_files(tmp_path: Path, names: list[str], header: str, packed: bool) -> None:
    for name, part in zip(names, np.split(SCAN, 2), strict=True):
        (tmp_path / name).write_bytes(gzip.compress(part.tobytes()) if packed else part.tobytes())
    encoding = "gzip" if packed else "raw"
    path = tmp_path / "a.nhdr"
    path.write_text(NRRD.format(SIZE, encoding).rstrip("\n") + f"\ndata file: {header}")
    assert np.array_equal(read_raw(path).array[0], SCAN.transpose())
    damaged = bytearray((tmp_path / names[1]).read_bytes())
    (tmp_path / names[1]).write_bytes(damaged[:-9])
    with pytest.raises(UserError, match=r"a\.nhdr cannot be read"):
        read_raw(path)


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_prepared_cases_depend_on_the_files_that_a_header_names(tmp_path: Path, name: str) -> None:
    voxels, path = tmp_path / "of_another_name.bin", tmp_path / name
    voxels.write_bytes(VOXELS)
    header = META.format("False", SIZE, voxels.name) if name == "a.mhd" else NRRD.format(SIZE, "raw")
    path.write_text(header.rstrip("\n") + (f"\ndata file: {voxels.name}\n" if name == "a.nhdr" else "\n"))
    assert np.array_equal(read_raw(path).array[0], SCAN.transpose())
    assert source_files({"image": str(path), "label": str(path)})[2:] == [voxels]
    path.write_text("broken")
    assert source_files({"image": str(path), "label": str(path)})[2:] == []


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float64"])
def test_compressed_vectors(tmp_path: Path, name: str, dims: int, kind: str) -> None:
    array = np.random.default_rng(0).integers(0, 99, (*(4, 5, 6)[-dims:], 3)).astype(kind)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / name), useCompression=True)
    read = read_raw(tmp_path / name).array
    assert read.dtype == array.dtype
    assert np.array_equal(read, np.moveaxis(array, -1, 0) if dims == 2 else array.transpose(3, 2, 1, 0))


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_channels_behind_the_space(tmp_path: Path, encoding: str) -> None:
    """As 3D Slicer writes sequences; SimpleITK puts them first."""
    array = np.random.default_rng(0).integers(0, 99, (3, 4, 5, 6)).astype(np.int16)  # channels, z, y, x
    header = NRRD.format("6 5 4 3", encoding).replace("dimension: 3", "dimension: 4\nspace: RAS\nspace origin: (0,0,0)")
    header = header.replace(
        "endian", "space directions: (1,0,0) (0,1,0) (0,0,1) none\nkinds: domain domain domain list\nendian"
    )
    voxels = array.tobytes()
    (tmp_path / "a.nrrd").write_bytes(header.encode() + (gzip.compress(voxels) if encoding == "gzip" else voxels))
    assert np.array_equal(read_raw(tmp_path / "a.nrrd").array, array.transpose(0, 3, 2, 1))
