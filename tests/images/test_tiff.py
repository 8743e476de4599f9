"""What a TIFF's pixel is worth does not depend on how the file is compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiff_files import write_tiff

from scripts.common.errors import UserError
from scripts.images.formats import read_raw

RNG = np.random.default_rng(0)
BYTES = ["raw", "deflate", "lzw", "packbits"]
PREDICTED = ["deflate", "lzw"]


def numbers(shape: tuple[int, ...], kind: str, top: int | None = None) -> np.ndarray:
    if kind.startswith("f"):
        return RNG.normal(size=shape).astype(kind)
    return RNG.integers(0, top or min(np.iinfo(kind).max, 2**40), shape).astype(kind)


LAYOUTS = {
    "strips": {},
    "one_strip": {"rows_per_strip": 2**31},
    "tiles": {"tile": 16},
    "big_endian": {"order": ">"},
    "differences": {"predictor": 2},
    "differences_big_endian": {"predictor": 2, "order": ">", "tile": 16},
    "bits_turned": {"tag_266": [2]},
    "bits_turned_in_tiles": {"tag_266": [2], "tile": 16, "order": ">"},
}


@pytest.mark.parametrize("compression", BYTES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_grey_of_any_depth_and_layout(tmp_path: Path, compression: str, layout: str) -> None:
    for kind in ("uint8", "uint16", "int16", "uint32", "float32"):
        pixels = numbers((23, 37), kind)
        if layout.startswith("differences") and (kind == "float32" or compression not in PREDICTED):
            continue
        path = write_tiff(tmp_path / f"{kind}.tif", pixels, compression, **LAYOUTS[layout])
        if kind == "int16":  # as its SampleFormat says
            path = write_tiff(path, pixels, compression, tag_339=[2], **LAYOUTS[layout])
        array = read_raw(path).array
        assert array.dtype == pixels.dtype and np.array_equal(array, pixels[None])


@pytest.mark.parametrize("compression", BYTES)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "layout", [{}, {"planar": True}, {"tile": 16}, {"planar": True, "tile": 16, "order": ">"}, {"predictor": 2}]
)
def test_colours(tmp_path: Path, compression: str, kind: str, layout: dict) -> None:
    pixels = numbers((23, 37, 3), kind)
    if layout.get("predictor") and (kind == "float32" or compression not in PREDICTED):
        return
    array = read_raw(write_tiff(tmp_path / "a.tif", pixels, compression, **layout)).array
    assert array.dtype == pixels.dtype and np.array_equal(array, np.moveaxis(pixels, -1, 0))


@pytest.mark.parametrize("compression", PREDICTED)
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_floats_with_their_own_predictor(tmp_path: Path, compression: str, kind: str) -> None:
    for shape in ((23, 36), (23, 36, 3)):
        pixels = numbers(shape, kind)
        array = read_raw(write_tiff(tmp_path / "a.tif", pixels, compression, predictor=3)).array
        assert np.array_equal(array, pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))


@pytest.mark.parametrize("compression", [*BYTES, "group4"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_single_bits(tmp_path: Path, compression: str, white_is_zero: bool) -> None:
    white = numbers((23, 40), "uint8", 2)
    stored = 1 - white if white_is_zero else white
    path = write_tiff(tmp_path / "a.tif", stored, compression, bits=1, photometric=0 if white_is_zero else 1)
    if compression == "group4":  # also with the bits of a byte the other way round, as fax machines write them
        write_tiff(path, stored, compression, bits=1, photometric=0 if white_is_zero else 1, tag_266=[2])
    assert np.array_equal(read_raw(path, label=True).array, white[None])
    assert np.array_equal(read_raw(path).array, 255 * white[None])


@pytest.mark.parametrize("compression", BYTES)
@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_depths_between_bytes(tmp_path: Path, compression: str, bits: int) -> None:
    pixels = numbers((23, 37), "uint16", 2**bits)
    scale = 255 // (2**bits - 1) if bits < 8 else 1
    path = write_tiff(tmp_path / "a.tif", pixels, compression, bits=bits)
    assert np.array_equal(read_raw(path, label=True).array, pixels[None])
    assert np.array_equal(read_raw(path).array, scale * pixels[None])
    path = write_tiff(tmp_path / "a.tif", pixels, compression, bits=bits, photometric=0)
    assert np.array_equal(read_raw(path).array, scale * (2**bits - 1 - pixels[None]))


@pytest.mark.parametrize("compression", BYTES)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palettes_are_colours_of_images_and_indices_of_labels(tmp_path: Path, compression: str, bits: int) -> None:
    indices = numbers((23, 37), "uint8", 2**bits)
    colours = numbers((2**bits, 3), "uint8")
    for palette, expected in (
        (colours.astype(int) * 257, colours),
        (colours.astype(int) * 256, colours),
        (colours.astype(int) * 200 + 300, colours.astype(np.uint16) * 200 + 300),
    ):
        path = write_tiff(
            tmp_path / "a.tif", indices, compression, bits=bits, photometric=3, tag_320=palette.T.ravel().tolist()
        )
        assert np.array_equal(read_raw(path, label=True).array, indices[None])
        image = read_raw(path).array
        assert image.dtype == expected.dtype and np.array_equal(image, np.moveaxis(expected[indices], -1, 0))


@pytest.mark.parametrize("compression", BYTES)
def test_alpha_is_left_out(tmp_path: Path, compression: str) -> None:
    for samples, photometric, kept in ((2, 1, 1), (4, 2, 3)):
        pixels = numbers((23, 37, samples), "uint16")
        path = write_tiff(tmp_path / "a.tif", pixels, compression, photometric=photometric, tag_338=[2])
        assert np.array_equal(read_raw(path).array, np.moveaxis(pixels[..., :kept], -1, 0))
    channels = numbers((23, 37, 2), "uint16")  # of a microscope: the second is said to be no alpha
    path = write_tiff(tmp_path / "a.tif", channels, compression, photometric=1, tag_338=[0])
    assert np.array_equal(read_raw(path).array, np.moveaxis(channels, -1, 0))


@pytest.mark.parametrize("compression", ["raw", "lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_lie_as_their_tag_says(tmp_path: Path, compression: str, orientation: int) -> None:
    pixels = numbers((23, 37), "uint8")
    path = write_tiff(tmp_path / "a.tif", pixels, compression, tag_274=[orientation])
    with Image.open(path) as shown:
        shown.load()
        assert np.array_equal(read_raw(path).array[0], np.asarray(shown))


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_stacks_in_several_pages(tmp_path: Path, compression: str) -> None:
    stack = numbers((4, 20, 30), "uint16")
    pages = [Image.fromarray(page) for page in stack]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=compression)
    (tmp_path / "a.json").write_text('{"spacing": [3, 1, 2]}')
    raw = read_raw(tmp_path / "a.tif")
    assert np.array_equal(raw.array, stack[None]) and np.allclose(np.diag(raw.affine), [3, 1, 2, 1])


def test_jpeg_inside(tmp_path: Path) -> None:
    """Nothing but Pillow unpacks it: close to the picture, in its own colours."""
    pixels = np.full((32, 48, 3), (200, 40, 90), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="jpeg")
    assert np.abs(read_raw(tmp_path / "a.tif").array.astype(int) - np.moveaxis(pixels, -1, 0)).max() < 6


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_pillow_reads_is_turned_once(tmp_path: Path, mode: str, orientation: int) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16], pixels[16:, 32:] = (200, 40, 90), (20, 220, 20)
    stored, shown = (
        Image.fromarray(pixels).convert(mode),
        np.asarray(Image.fromarray(pixels).convert(mode).convert("RGB")),
    )
    turns = {1: 0, 6: -1, 3: 2, 8: 1}
    for compression in ("jpeg", "tiff_lzw", None):
        stored.save(tmp_path / "a.tif", compression=compression, tiffinfo={274: orientation})
        array = read_raw(tmp_path / "a.tif").array.astype(int)
        assert array.shape[1:] == ((32, 48) if orientation < 5 else (48, 32))
        if orientation in turns:
            expected = np.moveaxis(np.rot90(shown, turns[orientation]), -1, 0)
            assert np.abs(array - expected).max() < 12


def test_cut_and_greedy_files_are_refused(tmp_path: Path) -> None:
    pixels = numbers((64, 64), "uint8")
    for compression in BYTES:
        path = write_tiff(tmp_path / "a.tif", pixels, compression, tag_274=[1], rows_per_strip=16)
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            tag = file.pages[0].tags[273]
        content[tag.valueoffset : tag.valueoffset + 4] = (len(content) - 3).to_bytes(4, "little")
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.tif cannot be read as an image"):
            read_raw(path)
        path = write_tiff(path, pixels, compression, tag_256=[2**17], tag_257=[2**17], rows_per_strip=2**17)
        with pytest.raises(UserError, match="cannot hold"):
            read_raw(path)
