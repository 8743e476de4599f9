"""Reading PNG, JPEG and BMP through Pillow, in full depth and with the checks that Pillow leaves out.

Pillow skips the checksums of a PNG's pixels and gives 8 of the 16 bits of a coloured one.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from .streams import BLOCK, LARGEST_RATIO, Unreadable

__all__ = ["is_unusual_png", "open_picture", "plain_mode", "read_picture"]

PNG, JPEG, BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"
# Their own classes: Image.open refuses large pictures by a limit that all users of Pillow in a process share.
_READERS = {PNG: PngImageFile, JPEG: JpegImageFile, BMP: BmpImageFile}
MOST_PIXELS = 512  # that a byte can stand for: a block of 64 takes a bit of a JPEG, a run of 255 two bytes of a BMP
GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6  # a PNG's kinds of pixels besides palettes, 3
_SAMPLES = {GREY: 1, COLOUR: 3, 3: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
# What Pillow's other modes become; L, RGB, I;16, I and F are read as they are.
_PLAIN_MODES = {"1": "L", "LA": "L", "La": "L"} | dict.fromkeys(
    ["P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"], "RGB"
)


class _PngHeader(NamedTuple):
    width: int
    height: int
    depth: int
    kind: int


def read_picture(path: Path, label: bool) -> np.ndarray:
    """Pixels (channels, rows, columns) as cameras and scanners mean them to lie, and viewers show them.

    An image has 16 bits where its file has, the colours of a palette, no alpha, and grey of fewer than 8 bits from 0 to
    255. A label has the numbers that are stored: indices of a palette, 0 and 1 of a single bit.
    """
    header = _checked_png(path) if _magic(path) == PNG else None
    if header and header.depth == 16 and header.kind != GREY:
        return _deep_colours(path, header.kind)
    with open_picture(path) as image:
        if header is None:
            _check_size(path, image.width * image.height, MOST_PIXELS)
        ImageOps.exif_transpose(image, in_place=True)
        if label and image.mode in ("P", "1"):
            return np.asarray(image).astype(np.uint8)[None]
        array = plain_mode(image)
    if label and header and header.kind == GREY and header.depth < 8:
        array = array // (255 // (2**header.depth - 1))
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def open_picture(path: Path) -> Image.Image:
    """The picture, of whatever size, with its pixels still in the file."""
    magic = _magic(path)
    try:
        return Image.open(path) if magic is None else _READERS[magic](path)
    except UnidentifiedImageError as error:
        raise Unreadable("it is no picture that Pillow knows") from error


def is_unusual_png(path: Path) -> bool:
    """Whether a file is a PNG of 2 or 4 bits of grey, or of 16 bits for each of several samples."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(PNG) + 18)
    if len(start) < len(PNG) + 18 or not start.startswith(PNG):
        return False
    depth, kind = start[-2:]
    return depth in (2, 4) if kind == GREY else depth == 16


def plain_mode(image: Image.Image) -> np.ndarray:
    """(rows, columns) or (rows, columns, 3) in the depth that Pillow has; colours of palettes, no alpha."""
    mode = _PLAIN_MODES.get(image.mode, image.mode)
    return np.asarray(image if mode == image.mode else image.convert(mode))


def _magic(path: Path) -> bytes | None:
    """How the file begins, if that is one of our three formats; another format may hide under their endings."""
    with path.open("rb") as file:
        start = file.read(len(PNG))
    return next((magic for magic in _READERS if start.startswith(magic)), None)


def _check_size(path: Path, pixels: int, ratio: float) -> None:
    stored = path.stat().st_size
    if pixels > stored * ratio:
        raise Unreadable(f"its header asks for {pixels} pixels, which {stored} bytes of file cannot hold")


def _checked_png(path: Path) -> _PngHeader:
    """The header of a PNG all of whose checksums are right.

    Raises:
        Unreadable: one is wrong, the file is not whole, or it cannot hold as many pixels as its header says.
    """
    with path.open("rb") as file:
        file.seek(len(PNG))
        chunks = _png_chunks(file)
        kind, content = next(chunks)
        if kind != b"IHDR":
            raise Unreadable("it is damaged (it does not begin with its header): copy or export it again")
        header = _PngHeader(*struct.unpack(">IIBB", content[:10]))
        bits = header.depth * _SAMPLES.get(header.kind, 1)
        _check_size(path, header.width * header.height, 8 / bits * LARGEST_RATIO["zlib"])
        for _ in chunks:
            pass
    return header


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Type and beginning of each chunk up to the last one, their checksums compared."""
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise Unreadable("it is damaged (its end is missing): copy or export it again")
        length, kind = struct.unpack(">I4s", head)
        checksum, start = zlib.crc32(kind), b""
        while length > 0 and (block := file.read(min(length, BLOCK))):
            checksum, length, start = zlib.crc32(block, checksum), length - len(block), start or block
        if length or file.read(4) != struct.pack(">I", checksum):
            raise Unreadable(f"it is damaged (the checksum of its part {kind!r} is wrong): copy or export it again")
        yield kind, start


def _deep_colours(path: Path, kind: int) -> np.ndarray:
    """(channels, rows, columns) of a PNG with 16 bits for each of several samples, without alpha."""
    if kind == GREY_ALPHA:
        return _deep_grey(path)
    # Pillow takes one byte of two: the first if it is told that the high byte stands first, else the second.
    mode = "RGB" if kind == COLOUR else "RGBA"
    high, low = (_unpacked(path, f"{mode};16{order}") for order in "BL")
    pixels = (high[..., :3].astype(np.uint16) << 8) | low[..., :3]
    return np.moveaxis(pixels, -1, 0)


def _unpacked(source: Path | BinaryIO, raw_mode: str | None = None) -> np.ndarray:
    with PngImageFile(source) as image:
        if raw_mode:
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image)


def _deep_grey(path: Path) -> np.ndarray:
    """Grey and alpha of 16 bits each lie in the file like four samples of 8 bits, which Pillow leaves as they are."""
    content = bytearray(path.read_bytes())
    depth = len(PNG) + 16  # behind length and type of the header, width and height
    content[depth : depth + 2] = 8, COLOUR_ALPHA
    content[depth + 5 : depth + 9] = struct.pack(">I", zlib.crc32(content[len(PNG) + 4 : depth + 5]))
    pixels = _unpacked(io.BytesIO(content))
    return (pixels[None, ..., 0].astype(np.uint16) << 8) | pixels[None, ..., 1]
