"""Compressed voxels read to the end of their stream, where its checksum stands, and sizes that headers claim."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["Unreadable", "check_claim", "check_rest", "open_stream", "read_exactly"]

BLOCK = 1 << 20
# Bytes that one byte can stand for at most: deflate's longest match is 258 bytes in two bits; LZW's codes of 12 bits
# grow to 4 KB; bzip2 packs runs twice. Of the others ("other") more than the emptiest real images have.
LARGEST_RATIO = {"raw": 1, "packbits": 64, "gzip": 1032, "zlib": 1032, "lzw": 2800, "other": 50_000, "bzip2": 1_100_000}


class Unreadable(ValueError):
    """What is wrong with a file, in words that go on from its name and "cannot be read as an image:"."""


class _ZlibStream(io.RawIOBase):
    """A zlib stream as a file; the standard library has one for gzip and bzip2 only."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.decoder = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.decoder.eof:
            packed = self.decoder.unconsumed_tail or self.file.read(BLOCK)
            block = self.decoder.decompress(packed, min(len(buffer), 4 * BLOCK))
            if block:
                buffer[: len(block)] = block
                return len(block)
            if not packed:
                raise EOFError("the compressed stream ends too early")
        return 0


def open_stream(file: BinaryIO, encoding: str) -> BinaryIO:
    """The decompressed content of what follows in ``file``.

    Args:
        encoding: "raw", "gzip", "zlib" or "bzip2".
    """
    if encoding == "raw":
        return file
    if encoding == "bzip2":
        return bz2.BZ2File(file)
    return gzip.GzipFile(fileobj=file) if encoding == "gzip" else _ZlibStream(file)


def read_exactly(stream: BinaryIO, size: int) -> np.ndarray:
    """``size`` bytes, with nothing but padding behind them; a damaged stream does not go unnoticed.

    Raises:
        Unreadable: the stream holds less or more.
        OSError, EOFError, zlib.error: it is damaged.
    """
    content = np.empty(size, np.uint8)
    view, filled = memoryview(content), 0
    while filled < size:
        count = stream.readinto(view[filled : filled + 16 * BLOCK])
        if not count:
            raise Unreadable(f"it holds {filled} bytes of voxels, its header asks for {size}")
        filled += count
    check_rest(stream)
    return content


def check_rest(stream: BinaryIO) -> None:
    """Read what follows the voxels, up to and with the checksum of a compressed stream.

    Raises:
        Unreadable: there is more than padding.
        OSError, EOFError, zlib.error: the stream is damaged.
    """
    while block := stream.read(BLOCK):
        if block.strip(b"\0\r\n"):
            raise Unreadable("it holds more voxels than its header asks for")


def check_claim(claimed: int, path: Path, encoding: str = "raw", start: int = 0) -> None:
    """Refuse a header that asks for more bytes than its file can hold, before any memory is taken.

    Args:
        claimed: bytes of voxels.
        path: the file that holds them.
        encoding: a key of LARGEST_RATIO.
        start: where they begin in the file.

    Raises:
        Unreadable: they cannot lie in the file.
    """
    stored = max(0, path.stat().st_size - start)
    if claimed > stored * LARGEST_RATIO[encoding]:
        raise Unreadable(f"its header asks for {claimed} bytes of voxels, which {stored} bytes of file cannot hold")
