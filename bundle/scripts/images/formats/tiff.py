"""Reading TIFF: what a pixel is worth does not depend on how its file is compressed.

tifffile reads raw and deflated pages of whole bytes, ``tiff_pages`` unpacks the others, Pillow reads what is no plain
grey, colour or palette: JPEG, YCbCr, CMYK.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import tifffile
from PIL import ImageSequence

from ..files import split_channel
from .pictures import plain_mode
from .streams import Unreadable, check_claim
from .tiff_pages import DEFLATE, LZW, PACKBITS, RAW, TiffPicture, can_unpack, unpacked_page

__all__ = ["read_tiff", "tiff_spacing_file"]

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
ALPHA = {1, 2}  # what an extra sample says that it is
ORIENTATION = 274  # tag
_ENCODINGS = {RAW: "raw", PACKBITS: "packbits", LZW: "lzw"} | dict.fromkeys(DEFLATE, "zlib")


def read_tiff(path: Path, label: bool) -> tuple[np.ndarray, np.ndarray | None, str | None]:
    """Pixels (channels, rows, columns) or (channels, slices, rows, columns), the affine of a stack, and a warning.

    An image has the colours of a palette, no alpha, 0 for black, and grey of fewer than 8 bits from 0 to 255. A label
    has the numbers that are stored; of a single bit 1 is white.
    """
    spacing = _spacing(path)
    if not _is_tiff(path):
        raise Unreadable("it is no TIFF")
    with tifffile.TiffFile(path) as file:
        page = file.series[0].keyframe
        array, axes = _samples(path, file.series[0])
        stack = spacing is not None and array.ndim == 3  # even one of 3 slices, which looks like RGB
        if not _is_pillows(page):
            array, axes = _meant(array, axes, page, label, keep_alpha=spacing is not None)
        orientation = 1 if _is_pillows(page) else page.tags.valueof(ORIENTATION, 1)
    channel = None if stack and array.ndim == 3 else next((axes.index(axis) for axis in "SC" if axis in axes), None)
    array = array[None] if channel is None else np.moveaxis(array, channel, 0)
    if array.ndim == 3:
        return _as_shown(array, orientation), None, None
    if spacing is None:
        file = tiff_spacing_file(path).name
        return array, None, f"has no {file} with its spacing beside it: every axis counts as 1 mm"
    return array, np.diag([*spacing, 1.0]), None


def tiff_spacing_file(path: str | Path) -> Path:
    """nnU-Net's CASE.json beside CASE_0000.tif (or CASE.tif), which holds {"spacing": [one number an axis]}."""
    return Path(path).with_name(f"{split_channel(path)[0]}.json")


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4)[:3] in (b"II*", b"II+", b"MM\0")


def _spacing(path: Path) -> list[float] | None:
    file = tiff_spacing_file(path)
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    spacing = content.get("spacing") if isinstance(content, dict) else None
    if spacing is not None and not (len(spacing) == 3 and min(spacing) > 0):
        raise ValueError(f"{file.name} must hold three positive numbers as spacing")
    return spacing


def _is_pillows(page: tifffile.TiffPage) -> bool:
    """Whether Pillow reads a page: as colours without alpha, 0 black, turned as its tag says."""
    is_colour = page.photometric in (YCBCR, LAB) or (page.photometric == CMYK and page.bitspersample == 8)
    return is_colour or not can_unpack(page)


def _samples(path: Path, series: tifffile.TiffPageSeries) -> tuple[np.ndarray, str]:
    """Stored numbers and axes ("YX", "YXS", "ZYX", …) of a series of pages; colours where Pillow reads it."""
    page, bits = series.keyframe, series.keyframe.bitspersample
    if _is_pillows(page):
        check_claim(math.prod(series.shape), path, "other")
        return _through_pillow(path)
    check_claim(math.prod(series.shape) * bits // 8, path, _ENCODINGS.get(page.compression, "other"))
    if page.compression in (RAW, *DEFLATE) and bits in (8, 16, 32, 64) and page.predictor == 1:
        return series.asarray(), series.axes
    pages = [unpacked_page(part, path) for part in series.pages]
    return (pages[0] if len(pages) == 1 else np.stack(pages)).reshape(series.shape), series.axes


def _meant(
    array: np.ndarray, axes: str, page: tifffile.TiffPage, label: bool, keep_alpha: bool
) -> tuple[np.ndarray, str]:
    """What the stored numbers stand for in an image, and of a label's those of a single bit."""
    extra, bits = page.extrasamples, page.bitspersample
    if "S" in axes and extra and not keep_alpha and (page.photometric == RGB or ALPHA.issuperset(extra)):
        colours = page.samplesperpixel - len(extra) if page.photometric != RGB else 3
        array = array.take(range(colours), axes.index("S"))
    if array.dtype.kind not in "bu":
        return array, axes
    if page.photometric == WHITE_IS_ZERO and (bits == 1 or not label):
        array = array.dtype.type((1 << bits) - 1) - array
    if page.photometric == PALETTE and not label:
        return _colours(page)[array], axes + "S"
    if page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and bits in (1, 2, 4) and not label:
        array = array * np.uint8(255 // ((1 << bits) - 1))
    return array, axes


def _colours(page: tifffile.TiffPage) -> np.ndarray:
    """Index -> colour, 8 bits a channel where the palette, which always has 16, does not hold more."""
    colours = page.colormap.T
    if colours.max() < 256:  # some programs write 8 bits
        return colours.astype(np.uint8)
    fine = ((colours % 257 != 0) & (colours % 256 != 0)).any()
    return colours if fine else (colours >> 8).astype(np.uint8)


def _through_pillow(path: Path) -> tuple[np.ndarray, str]:
    # By its name, Pillow would map a raw file into memory, with rows for columns where it lies on its side.
    with path.open("rb") as file, TiffPicture(file) as image:
        frames = [plain_mode(frame) for frame in ImageSequence.Iterator(image)]
    axes = "YX" if frames[0].ndim == 2 else "YXS"
    return (frames[0], axes) if len(frames) == 1 else (np.stack(frames), "Z" + axes)


def _as_shown(array: np.ndarray, orientation: int) -> np.ndarray:
    """A picture (channels, rows, columns) turned as its tag says and viewers do."""
    if orientation >= 5:  # rows are columns
        array, orientation = array.swapaxes(1, 2), {5: 1, 6: 2, 7: 3, 8: 4}.get(orientation, 1)
    rows, columns = orientation in (3, 4), orientation in (2, 3)
    return array[:, :: -1 if rows else 1, :: -1 if columns else 1]
