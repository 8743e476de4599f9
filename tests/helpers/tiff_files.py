"""TIFF files of every layout, written by hand: an independent truth for what is read from them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

COMPRESSIONS = {"raw": 1, "deflate": 8, "lzw": 5, "packbits": 32773, "group4": 4}


def pack_bits(numbers: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Rows of numbers as a TIFF holds them: whole bytes in the file's order, else the highest bit first."""
    if bits % 8 == 0:
        return numbers.astype(numbers.dtype.newbyteorder(order)).tobytes()
    single = (numbers[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(numbers), -1).astype(np.uint8), axis=1).tobytes()


def compress(content: bytes, rows: int, compression: str) -> bytes:
    """One strip as libtiff, zlib or nothing packs it."""
    if compression in ("raw", "deflate"):
        return zlib.compress(content) if compression == "deflate" else content
    width, file = len(content) // rows, io.BytesIO()
    if compression == "group4":
        image = Image.frombytes("1", (width * 8, rows), content)
    else:
        image = Image.frombytes("L", (width, rows), content)
    names = {"lzw": "tiff_lzw", "packbits": "packbits", "group4": "group4"}
    image.save(file, "TIFF", compression=names[compression], tiffinfo={278: rows})
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        assert len(page.dataoffsets) == 1
        return file.getvalue()[page.dataoffsets[0] :][: page.databytecounts[0]]


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    compression: str = "raw",
    bits: int | None = None,
    photometric: int | None = None,
    order: str = "<",
    tile: int | None = None,
    planar: bool = False,
    predictor: int = 1,
    rows_per_strip: int = 7,
    **tags: list[int],
) -> Path:
    """Write (rows, columns) or (rows, columns, samples); ``tags`` are further ones, tag_NUMBER=[values]."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    bits = bits or pixels.dtype.itemsize * 8
    planes = np.moveaxis(pixels, -1, 0)[..., None] if planar else [pixels]
    parts = []
    for plane in planes:
        for block in _tiles(plane, tile) if tile else _strips(plane, rows_per_strip):
            flat = _differences(block, predictor).reshape(len(block), -1)
            content = flat.tobytes() if predictor == 3 else pack_bits(flat, bits, order)
            parts.append(compress(content, len(block), compression))
    if tags.get("tag_266") == [2]:  # bits of a byte the other way round
        turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
        parts = [part.translate(turned) for part in parts]
    height, width, samples = pixels.shape
    photometric = (2 if samples > 2 else 1) if photometric is None else photometric
    fields = {256: [width], 257: [height], 258: [bits] * samples, 259: [COMPRESSIONS[compression]], 262: [photometric]}
    fields |= {277: [samples], 284: [2 if planar else 1], 317: [predictor]}
    fields |= {339: [3] * samples} if pixels.dtype.kind == "f" else {}
    fields |= {322: [tile], 323: [tile]} if tile else {278: [rows_per_strip]}
    fields |= {int(name.removeprefix("tag_")): values for name, values in tags.items()}
    path.write_bytes(_file(parts, fields, (324, 325) if tile else (273, 279), order))
    return path


def _strips(plane: np.ndarray, rows: int) -> list[np.ndarray]:
    return [plane[start : start + rows] for start in range(0, len(plane), rows)]


def _tiles(plane: np.ndarray, size: int) -> list[np.ndarray]:
    padding = [(0, -extent % size) for extent in plane.shape[:2]] + [(0, 0)]
    padded = np.pad(plane, padding)
    places = [(y, x) for y in range(0, padded.shape[0], size) for x in range(0, padded.shape[1], size)]
    return [padded[y : y + size, x : x + size] for y, x in places]


def _differences(block: np.ndarray, predictor: int) -> np.ndarray:
    if predictor == 2:
        return np.diff(block, axis=1, prepend=block[:, :1] * 0)
    if predictor == 3:
        size, samples = block.dtype.itemsize, block.shape[2]
        planes = block.astype(block.dtype.newbyteorder(">")).view(np.uint8).reshape(len(block), -1, size)
        row = planes.swapaxes(1, 2).reshape(len(block), -1, samples)
        return np.diff(row, axis=1, prepend=row[:, :1] * 0)
    return block


def _file(parts: list[bytes], fields: dict[int, list[int]], places: tuple[int, int], order: str) -> bytes:
    offsets = np.cumsum([8, *map(len, parts)]).tolist()
    fields |= {places[0]: offsets[:-1], places[1]: [len(part) for part in parts]}
    start = offsets[-1] + offsets[-1] % 2
    behind = start + 2 + 12 * len(fields) + 4
    directory, values = struct.pack(order + "H", len(fields)), b""
    for tag, numbers in sorted(fields.items()):
        kind, code = (3, "H") if tag in (258, 259, 262, 277, 284, 317, 320, 338, 339, 274, 266) else (4, "I")
        content = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(content) > 4:
            content, values = struct.pack(order + "I", behind + len(values)), values + content + bytes(len(content) % 2)
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + b"".join(parts) + bytes(start - offsets[-1]) + directory + bytes(4) + values
