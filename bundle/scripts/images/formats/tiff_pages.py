"""Unpacking the pages of a TIFF that tifffile does not without further packages: LZW, PackBits, fax, odd depths.

Pillow brings libtiff, which unpacks bytes whatever they mean: it is handed each page as if it were grey of 8 bits, so
that no depth, tile, predictor or order of bytes gets lost.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .streams import Unreadable

__all__ = ["DEFLATE", "LZW", "PACKBITS", "RAW", "TiffPicture", "can_unpack", "unpacked_page"]

RAW, LZW, PACKBITS, LZMA, ZSTD = 1, 5, 32773, 34925, 50000  # compressions
DEFLATE, FAX = (8, 32946), (2, 3, 4)
PREDICTED = (LZW, *DEFLATE, LZMA, ZSTD)  # others have no predictor, whatever the tag says
T4_OPTIONS, T6_OPTIONS = 292, 293  # tags of fax
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class TiffPicture(TiffImageFile):
    """Pillow's TIFF without its limit to the number of pixels, which all users of Pillow in a process share."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, self._tile_size)
        ImageFile.ImageFile.load_prepare(self)


def can_unpack(page: tifffile.TiffPage) -> bool:
    """Whether the stored numbers of a page can be had, rather than the colours that Pillow makes of them."""
    known = (RAW, *DEFLATE, LZW, PACKBITS, LZMA, ZSTD, *FAX)
    return page.compression in known and isinstance(page.bitspersample, int) and page.dtype is not None


def unpacked_page(page: tifffile.TiffPage | tifffile.TiffFrame | None, path: Path) -> np.ndarray:
    """The stored numbers of one page, in the shape that tifffile gives it.

    Raises:
        Unreadable: a part of it is missing, or lies outside of the file.
    """
    if page is None:
        raise Unreadable("a page of it is missing")
    key = page.keyframe
    planes, depth, length, width, samples = key.shaped
    rows, columns = (key.tilelength, key.tilewidth) if key.is_tiled else (min(key.rowsperstrip, length), width)
    down, across = -(-length // rows), -(-width // columns)
    parts = _parts(page, path)
    if depth > 1 or len(parts) != planes * down * across:
        raise Unreadable(f"it has {len(parts)} strips or tiles, where its size asks for {planes * down * across}")
    result = []
    for plane in range(planes):
        own = parts[plane * down * across : (plane + 1) * down * across]
        height = rows * len(own) if key.is_tiled else length
        numbers = _numbers(own, key, rows, height, columns * samples, samples)
        if key.is_tiled:  # they lie below each other
            tiles = numbers.reshape(down, across, rows, columns, samples).swapaxes(1, 2)
            numbers = tiles.reshape(down * rows, across * columns, samples)[:length, :width]
        result.append(numbers)
    return np.stack(result).reshape(key.shape)


def _parts(page: tifffile.TiffPage | tifffile.TiffFrame, path: Path) -> list[bytes]:
    """The strips or tiles of a page as they lie in the file, bits turned as usual."""
    parts = []
    with path.open("rb") as file:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            part = file.read(count)
            if not count or len(part) < count:
                raise Unreadable("it is damaged or not whole (a strip or tile is missing): copy or export it again")
            parts.append(part.translate(REVERSED) if page.keyframe.fillorder == 2 else part)
    return parts


def _numbers(
    parts: Sequence[bytes], page: tifffile.TiffPage, rows: int, height: int, width: int, samples: int
) -> np.ndarray:
    """Stored numbers (height, columns, samples) of strips or tiles of ``rows`` rows, ``width`` numbers each."""
    bits, compression = page.bitspersample, page.compression
    if compression in FAX:
        options = {tag: int(page.tags.valueof(tag, 0)) for tag in (T4_OPTIONS, T6_OPTIONS)}
        numbers = _through_libtiff(parts, compression, rows, height, width, 1, options)
        return numbers.astype(np.uint8).reshape(height, -1, samples)
    row = -(-width * bits // 8)
    if compression == RAW or compression in DEFLATE:
        parts = [zlib.decompress(part) for part in parts] if compression in DEFLATE else parts
        packed = _rows(parts, rows, height, row)
    else:
        packed = _through_libtiff(parts, compression, rows, height, row, 8, {})
    if bits in (8, 16, 32, 64):
        return _unpredicted(packed, page, samples)
    return _from_bits(packed, bits)[:, :width].reshape(height, -1, samples)


def _rows(parts: Sequence[bytes], rows: int, height: int, row: int) -> np.ndarray:
    """Bytes (height, row) of strips that lie below each other, the last one of which may be shorter."""
    wanted = [min(rows, height - start) * row for start in range(0, height, rows)]
    if any(len(part) < size for part, size in zip(parts, wanted, strict=True)):
        raise Unreadable("it is damaged or not whole (a strip or tile is too short): copy or export it again")
    content = b"".join(part[:size] for part, size in zip(parts, wanted, strict=True))
    return np.frombuffer(content, np.uint8).reshape(height, row)


def _unpredicted(packed: np.ndarray, page: tifffile.TiffPage, samples: int) -> np.ndarray:
    """Numbers (height, columns, samples) from bytes (height, row), of which a predictor may have left differences."""
    height, order, size = len(packed), page.parent.byteorder, page.bitspersample // 8
    predictor = page.predictor if page.compression in PREDICTED else 1
    if predictor == 3:  # bytes of floats: differences, the highest byte of all numbers first
        summed = packed.reshape(height, -1, samples).cumsum(axis=1, dtype=np.uint8).reshape(height, size, -1)
        numbers = np.ascontiguousarray(summed.swapaxes(1, 2)).view(f">f{size}")
        return numbers.reshape(height, -1, samples).astype(page.dtype)
    if predictor == 2:
        whole = packed.view(f"{order}u{size}").reshape(height, -1, samples).astype(f"u{size}")
        return whole.cumsum(axis=1, dtype=whole.dtype).view(page.dtype)
    if predictor != 1:
        raise Unreadable(f"its predictor {predictor} is unknown")
    return packed.view(page.dtype.newbyteorder(order)).reshape(height, -1, samples).astype(page.dtype, copy=False)


def _from_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of ``bits`` bits each, the highest first, from bytes (height, row)."""
    single = np.unpackbits(packed, axis=1)
    count = single.shape[1] // bits
    single = single[:, : count * bits].reshape(len(packed), count, bits)
    numbers = np.zeros(single.shape[:2], np.min_scalar_type((1 << bits) - 1))
    for bit in range(bits):
        numbers = (numbers << 1) | single[..., bit]
    return numbers


def _through_libtiff(
    parts: Sequence[bytes], compression: int, rows: int, height: int, width: int, bits: int, options: Mapping[int, int]
) -> np.ndarray:
    """Strips of ``rows`` rows below each other as grey (height, width) of ``bits`` bits, 1 or 8."""
    offsets = np.cumsum([8, *map(len, parts)]).tolist()
    tags = {256: [width], 257: [height], 258: [bits], 259: [compression], 262: [1], 273: offsets[:-1], 277: [1]}
    tags |= {278: [rows], 279: [len(part) for part in parts]} | {tag: [value] for tag, value in options.items()}
    end = offsets[-1] + offsets[-1] % 2
    directory, values = struct.pack("<H", len(tags)), b""
    for tag, numbers in sorted(tags.items()):
        content = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:  # they lie behind the directory
            place = end + 2 + 12 * len(tags) + 4 + len(values)
            content, values = struct.pack("<I", place), values + content
        directory += struct.pack("<HHI", tag, 4, len(numbers)) + content
    content = [b"II*\0", struct.pack("<I", end), *parts, bytes(end - offsets[-1]), directory, bytes(4), values]
    with TiffPicture(io.BytesIO(b"".join(content))) as image:
        return np.asarray(image)
