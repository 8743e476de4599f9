"""PNG, JPEG and BMP in full depth, of any size, and not larger than their file can hold."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import ExifTags, Image

from scripts.common.errors import UserError
from scripts.data.prepared import PreparedDataset
from scripts.data.transforms import Preparation
from scripts.images.formats import read_raw
from scripts.images.headers import read_header

RNG = np.random.default_rng(0)
GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6
SAMPLES = {GREY: 1, COLOUR: 3, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]

VOLUMES = Preparation(3, 1, {"a": 1})


def write_png(
    path: Path, pixels: np.ndarray, kind: int, interlaced: bool = False, extra: tuple = (), size: tuple | None = None
) -> Path:
    """(rows, columns, samples) with 16 bits each; ``size`` is what the header claims."""
    blocks = [pixels[y::down, x::across] for y, x, down, across in PASSES] if interlaced else [pixels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for block in blocks if block.size for row in block)
    header = struct.pack(">IIBBBBB", *(size or pixels.shape[1::-1]), 16, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("interlaced", [False, True])
def test_all_16_bits_of_a_png(tmp_path: Path, kind: int, interlaced: bool) -> None:
    pixels = RNG.integers(0, 2**16, (13, 17, SAMPLES[kind])).astype(np.uint16)
    kept = np.moveaxis(pixels[..., : 1 if kind in (GREY, GREY_ALPHA) else 3], -1, 0)
    significant = (b"sBIT", bytes([12] * SAMPLES[kind]))  # a camera's 12 bits: no reason to shift what is stored
    for extra in ((), (significant,)):
        array = read_raw(write_png(tmp_path / "a.png", pixels, kind, interlaced, extra)).array
        assert array.dtype == np.uint16 and np.array_equal(array, kept)


def test_16_bits_of_a_png_with_filters(tmp_path: Path) -> None:
    """libpng filters the rows of smooth pictures in all of its ways."""
    y, x = np.mgrid[:60, :80]
    noise = RNG.integers(0, 300, (60, 80, 3))
    pixels = (noise + 400 * np.stack([y, x, x + y], -1)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"), useCompression=True)
    assert np.array_equal(read_raw(tmp_path / "a.png").array, np.moveaxis(pixels, -1, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pictures_lie_as_viewers_show_them(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    shallow = RNG.integers(0, 256, (13, 17, 3)).astype(np.uint8)
    Image.fromarray(shallow).save(tmp_path / "shallow.png", exif=exif)
    turned = (b"eXIf", exif.tobytes()[6:])
    write_png(tmp_path / "deep.png", shallow.astype(np.uint16) * 256, COLOUR, extra=(turned,))
    assert np.array_equal(
        read_raw(tmp_path / "deep.png").array, read_raw(tmp_path / "shallow.png").array * np.uint16(256)
    )


def test_what_was_prepared_with_8_bits_is_not_taken(tmp_path: Path) -> None:
    """The settings of prepared cases tell; those of 8 bits, which are the same, are as they were."""

    def folder(image: str) -> Path:
        return PreparedDataset([{"image": image, "label": "a.png"}], None, None, tmp_path, VOLUMES).folder

    pixels = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shallow.png")
    write_png(tmp_path / "deep.png", pixels.astype(np.uint16), COLOUR)
    assert folder(str(tmp_path / "shallow.png")) == folder("a.nii.gz")
    assert folder(str(tmp_path / "deep.png")) == folder("a.tif") != folder("a.nii.gz")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits(tmp_path: Path, bits: int) -> None:
    stored = RNG.integers(0, 2**bits, (6, 16)).astype(np.uint8)
    packed = np.packbits(((stored[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(6, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 6, bits, GREY, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(read_raw(tmp_path / "a.png", label=True).array, stored[None])
    assert np.array_equal(read_raw(tmp_path / "a.png").array, stored[None] * (255 // (2**bits - 1)))


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_pictures_above_pillows_limit(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of this process; we neither ask nor change it
    pixels = RNG.integers(0, 256, (40, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{ending}", **({"compression": "tiff_lzw"} if ending == ".tif" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_raw(tmp_path / f"a{ending}").array[0], pixels)
        assert read_header(tmp_path / f"a{ending}") == ([40, 50], None, 1)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_small_file_that_claims_gigabytes(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint16)
    greedy = [write_png(tmp_path / "a.png", pixels, COLOUR, size=(60000, 60000))]
    for ending, offset, order in ((".jpg", None, ">HH"), (".bmp", 18, "<ii")):
        path = tmp_path / f"a{ending}"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        content = bytearray(path.read_bytes())
        offset = content.index(b"\xff\xc0") + 5 if offset is None else offset
        struct.pack_into(order, content, offset, 60000, 60000)
        path.write_bytes(content)
        greedy.append(path)
    for path in greedy:
        with pytest.raises(UserError, match="cannot hold") as caught:
            read_raw(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
