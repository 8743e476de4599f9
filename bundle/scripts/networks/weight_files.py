"""Reading a file of weights, believed only if every byte and every number in it is sound."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["UnsoundWeightsError", "check_archive", "check_finite", "read_weight_file"]

DOS_FOLDER = 0x10  # an attribute of a zip archive's part
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how files begin that PyTorch saved before version 1.6


class UnsoundWeightsError(ValueError):
    """A file of weights that was damaged, or that holds what no network can use."""


def read_weight_file(path: str | Path) -> Any:
    """What torch.save wrote, on the CPU, without running code from the file.

    Raises:
        UnsoundWeightsError: bytes of the file have changed, or it holds numbers that are not finite.
        Exception: whatever zipfile or torch.load raises for a file of something else.
    """
    check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    check_finite(content)
    return content


def check_archive(path: str | Path) -> None:
    """Compare every part of the file with its checksum, which torch.load does not.

    torch.save writes a zip archive, uncompressed, with a CRC-32 of each part: reading it once, a megabyte at a time,
    takes a small part of the time of loading.

    Raises:
        UnsoundWeightsError: a part does not match its checksum, or an old file has none.
        Exception: whatever zipfile raises for a file that is no such archive, or no whole one.
    """
    with Path(path).open("rb") as file:
        if file.read(len(LEGACY)) == LEGACY:
            raise UnsoundWeightsError("is of PyTorch before 1.6, without checksums: load it and torch.save it again")
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() or not all(map(_is_plain, archive.infolist())):
            raise UnsoundWeightsError("is damaged, its content does not match its checksums: copy it again")


def _is_plain(part: zipfile.ZipInfo) -> bool:
    """Stored as torch.save stores it; one that is marked as a folder torch.load takes for empty, and then hands out
    whatever the memory holds."""
    return part.file_size == part.compress_size and not part.external_attr & DOS_FOLDER


def check_finite(content: Any) -> None:
    """Look at every tensor in a state_dict or a checkpoint, buffers and the optimiser's moments included.

    Raises:
        UnsoundWeightsError: names the first tensor that holds NaN or infinity, and says how many do.
    """
    wrong = [name for name, tensor in _tensors(content, "") if not _is_finite(tensor)]
    if wrong:
        raise UnsoundWeightsError(
            f"holds NaN or infinite values in {len(wrong)} of its tensors ({wrong[0]}), as after a diverged training"
        )


def _tensors(content: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        for index, value in enumerate(content):
            yield from _tensors(value, f"{name}.{index}".lstrip("."))


def _is_finite(tensor: torch.Tensor) -> bool:
    """NaN and infinity both show in the extremes, which need no second tensor."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if tensor.is_complex() or tensor.dtype.itemsize < 2:  # aminmax knows neither complex numbers nor float8
        return bool(torch.isfinite(tensor.to(torch.complex128 if tensor.is_complex() else torch.float32)).all())
    return all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(tensor)).tolist())
