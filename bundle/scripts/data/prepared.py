"""Preprocessed cases on disk: made once, memory-mapped in training.

    cache_dir/files/NAME-PATHS.json           size, time and digest of a case's files, so that they are read once
    cache_dir/SETTINGS/settings.json          what these cases were prepared with
    cache_dir/SETTINGS/NAME-CONTENT/image.npy       (channels, *spatial), float16
                                   /label.npy       (1, *spatial), class indices, int8 or int16
                                   /foreground.npy  (1 + dims, voxels): class and position, foreground_locations
                                   /arrays.json     size and digest of these

SETTINGS and CONTENT are digests, so nothing is ever out of date. A case is written into a temporary folder that is
renamed when it is complete: a killed process leaves no half-written case, and several may prepare at once. What the
arrays hold is compared with arrays.json once a run; a case that was damaged since, or that an older version wrote
without that list, is prepared anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import Transform

from ..common.atomic_writing import flush_file, flush_folder, replacing
from ..common.leftovers import temporary_beside
from ..images.files import case_name, check_case_name, first_file, image_files
from ..images.formats import columns_first, shallow_before
from ..images.formats.itk import voxel_files
from ..images.formats.tiff import tiff_spacing_file
from ..images.label_names import values_in
from .augmentation import Augmentation
from .cache_check import find_damage, list_arrays, renew, renewed_place
from .loading import Sample
from .transforms import Preparation

__all__ = ["PreparedDataset", "foreground_locations", "source_files", "whole_case"]

FORMAT = 2  # counts up whenever the same files and settings would give other arrays
BLOCK = 1 << 22  # voxels of a label map that are looked at together
LOCATIONS = 10_000  # labelled voxels that are remembered per class, as in nnU-Net
FLOAT16_RANGE = (2**-4, 256)  # of the largest intensity: above, a voxel may lose more than a tenth, below, its value

Case = Mapping[str, Any]


class PreparedDataset(Dataset):
    """A data set whose deterministic preprocessing is done once per case and kept on disk.

    Training maps the arrays into memory and touches only the patch that it cuts out; the operating system keeps
    what is used in free memory. Cases that are not there yet are prepared when they are first asked for.

    Images are kept as float16: half the disk and, what matters more, twice as many cases in the page cache, for a
    relative error of at most 1/2000 (of voxels below a thousandth of the largest, a little more), far less than the
    noise of a scan. A case whose largest normalised intensity is above 256 or below 1/16 is kept as float32.

    Args:
        data: [{"image": path or one per channel, "label": path}, …].
        preprocessing: loads and prepares a case with "image" and "label" (class indices, -1 for ignored voxels).
        augment: ``dataset[Sample(index, key)]`` is the patch that its ``cut`` draws from the random numbers of that
            key, and ``dataset[index]`` any; None: whole cases are handed out, {"image": float32 (channels, *spatial),
            "label": int16 (1, *spatial)}.
        cache_dir: where prepared cases are kept; may be shared by runs and by processes.
        preparation: everything that ``preprocessing`` depends on. Where it has a slice axis, slices lie together on
            disk.
    """

    def __init__(
        self,
        data: Sequence[Case],
        preprocessing: Transform,
        augment: Augmentation | None,
        cache_dir: str | Path,
        preparation: Preparation,
    ) -> None:
        super().__init__(data, whole_case)
        self.augment = augment
        self.preprocessing = preprocessing
        self.slice_axis = preparation.slice_axis
        self.settings = {"format": FORMAT, **_relevant(preparation, data)}
        self.cache_dir = Path(cache_dir)
        self.folder = self.cache_dir / _digest(json.dumps(self.settings, sort_keys=True).encode())
        self.prepared: dict[int, Path] = {}  # folders known to be complete, found in prepare()

    def __getitem__(self, index: int | slice | Sequence[int]) -> Any:
        return self._transform(index) if isinstance(index, Sample) else super().__getitem__(index)

    def _transform(self, index: int | Sample) -> Any:
        if self.augment is None:
            return self.transform(self.load(index))
        sample = index if isinstance(index, Sample) else Sample(index, None)
        return self.augment.cut(self.load(sample.index), np.random.default_rng(sample.key))

    def load(self, index: int) -> dict[str, np.ndarray]:
        """The prepared case as memory maps: "image", "label", "foreground"."""
        folder = self.prepared.get(index) or self.prepare(index)
        case = {key: np.load(folder / f"{key}.npy", mmap_mode="r") for key in ("image", "label", "foreground")}
        if self.slice_axis is not None:
            case |= {key: np.moveaxis(case[key], 1, self.slice_axis + 1) for key in ("image", "label")}
        return case

    def prepare(self, index: int, trusted: bool = False) -> Path:
        """Prepare one case unless it is there and whole, and return its folder.

        Args:
            index: of the case.
            trusted: what is there was looked through in this run: do not read it again.

        Raises:
            UserError: the case cannot be used (see LoadCased), possibly as the cause of MONAI's own error.
        """
        folder = self.case_folder(index)
        is_there = folder.is_dir()
        if not is_there or not (trusted or find_damage(folder) is None):
            case = self.preprocessing({key: self.data[index][key] for key in ("image", "label")})
            image, label = (np.asarray(torch.as_tensor(case[key])) for key in ("image", "label"))
            foreground = foreground_locations(label[0])
            if self.slice_axis is not None:
                image, label = (np.moveaxis(array, self.slice_axis + 1, 1) for array in (image, label))
            arrays = {"image": _compact_image(image), "label": _compact_label(label), "foreground": foreground}
            place = renewed_place(folder) if is_there else folder
            self._write(place, arrays)
            if is_there:
                renew(folder, place)
        self.prepared[index] = folder
        return folder

    def find_prepared(self, index: int) -> Path | None:
        """The folder of a case that is known to be there, without reading its files; None if it is not."""
        name, files = self._name_and_files(index)
        digest = self._known_digest(self._index_file(name, files), _stamps(files))
        folder = self.folder / f"{name}-{digest}"
        return folder if digest is not None and folder.is_dir() else None

    def case_folder(self, index: int) -> Path:
        """Where a case is, or will be, once it is prepared. Reads its files if they are new or have changed."""
        name, files = self._name_and_files(index)
        index_file, stamps = self._index_file(name, files), _stamps(files)
        digest = self._known_digest(index_file, stamps)
        if digest is None:
            digest = _digest_files(files)
            index_file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(index_file) as temporary:
                temporary.write_text(json.dumps({"files": stamps, "digest": digest}), encoding="utf-8")
        return self.folder / f"{name}-{digest}"

    def _name_and_files(self, index: int) -> tuple[str, list[Path]]:
        case = self.data[index]
        name = case.get("name") or case_name(first_file(case["image"]))
        check_case_name(name)
        return name, source_files(case)

    def _index_file(self, name: str, files: Sequence[Path]) -> Path:
        return self.cache_dir / "files" / f"{name}-{_digest(json.dumps(list(map(str, files))).encode())}.json"

    def _known_digest(self, index_file: Path, stamps: Mapping[str, Sequence[int]]) -> str | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(index_file.read_text(encoding="utf-8"))
            if known["files"] == stamps and re.fullmatch(r"[0-9a-f]{16}", known["digest"]):
                return known["digest"]
        return None

    def _write(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        settings = self.folder / "settings.json"
        temporary = temporary_beside(folder, folder=True)
        temporary.mkdir(parents=True)
        try:
            if not settings.exists():
                with replacing(settings) as file:
                    file.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            for key, array in arrays.items():
                np.save(temporary / f"{key}.npy", array)
            list_arrays(temporary)
            for file in temporary.iterdir():
                flush_file(file)
            flush_folder(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
            flush_folder(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def whole_case(case: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A prepared case read whole."""
    image, label = (np.ascontiguousarray(case[key]) for key in ("image", "label"))
    return {"image": torch.from_numpy(image.astype(np.float32)), "label": torch.from_numpy(label.astype(np.int16))}


def foreground_locations(label: np.ndarray) -> np.ndarray:
    """Class and position of up to 10,000 voxels of each class, (1 + dims, voxels) int32, sorted by class.

    Where voxels are ignored, class 0 stands for all the others, whatever their class.

    Args:
        label: (*spatial), class indices, -1 where voxels are ignored.
    """
    blocks = [np.s_[start : start + BLOCK] for start in range(0, label.size, BLOCK)]
    flat = label.ravel()
    present = [set(values_in(flat[block].reshape(1, -1)).tolist()) for block in blocks]
    classes: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        int(value): partial(np.equal, value) for value in sorted(set().union(*present)) if value > 0
    }
    ignoring = any(min(values) < 0 for values in present) and any(max(values) >= 0 for values in present)
    if ignoring:
        classes = {0: partial(np.less_equal, 0)} | classes
    random = np.random.RandomState(1234)
    chosen = []
    for value, is_of in classes.items():
        own = [block for block, values in zip(blocks, present, strict=True) if value in values or value == 0]
        chosen.append(_draw(flat, own, is_of, random))
    if not chosen:
        return np.zeros((1 + label.ndim, 0), np.int32)
    values = np.repeat(list(classes), [len(places) for places in chosen])
    return np.stack([values, *np.unravel_index(np.concatenate(chosen), label.shape)]).astype(np.int32)


def _draw(
    flat: np.ndarray,
    blocks: Sequence[slice],
    is_of: Callable[[np.ndarray], np.ndarray],
    random: np.random.RandomState,
) -> np.ndarray:
    """Places in ``flat`` of the voxels of a class, all or LOCATIONS drawn ones, ascending: a list of all the places
    of a large organ would take many times the memory of the label map."""
    ends = np.cumsum([np.count_nonzero(is_of(flat[block])) for block in blocks])
    count = int(ends[-1])
    ranks = np.sort(random.randint(0, count, LOCATIONS)) if count > LOCATIONS else np.arange(count)
    places, before = [], 0
    for block, end in zip(blocks, ends, strict=True):
        first, last = np.searchsorted(ranks, [before, end])
        if first < last:
            places.append(np.flatnonzero(is_of(flat[block]))[ranks[first:last] - before] + block.start)
        before = end
    return np.concatenate(places)


def _relevant(preparation: Preparation, data: Sequence[Case]) -> dict[str, Any]:
    """Its facts, with how files are read only where there are some to which this matters: others keep their digest."""
    files = [path for case in data for key in ("image", "label") for path in image_files(case[key])]
    relevant = preparation.facts()
    if preparation.image_dims == 3 or not any(map(columns_first, files)):
        del relevant["rows_first"]
    if any(map(shallow_before, files)):
        relevant["full_depth"] = True
    return relevant


def _compact_image(image: np.ndarray) -> np.ndarray:
    low, high = FLOAT16_RANGE
    largest = max(-image.min(), image.max())
    return np.ascontiguousarray(image, np.float16 if low <= largest <= high else np.float32)


def _compact_label(label: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(label, np.int8 if label.max() <= np.iinfo(np.int8).max else np.int16)


def _stamps(files: Sequence[Path]) -> dict[str, list[int]]:
    """Size and time of change of each file that is there."""
    stats = {str(file): file.stat() for file in files if file.is_file()}
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def source_files(case: Case) -> list[Path]:
    """The files that a case is read from, with the second files of some formats: a TIFF's spacing, raw voxels."""
    files = [Path(path).absolute() for key in ("image", "label") for path in image_files(case[key])]
    beside = []
    for file in files:
        if file.suffix.lower() in (".tif", ".tiff"):
            beside.append(tiff_spacing_file(file))
        elif file.suffix.lower() in (".nhdr", ".mhd"):
            beside += [file.with_suffix(ending) for ending in (".raw", ".raw.gz", ".zraw")]
            with contextlib.suppress(OSError, ValueError, TypeError):  # loading will say what is wrong with it
                beside += [named for named in voxel_files(file) if named not in files]
    return files + [file for file in dict.fromkeys(beside) if file.is_file()]


def _digest_files(files: Sequence[Path]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for file in files:
        with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:  # loading will say that it is missing
            while block := stream.read(1 << 22):
                total.update(block)
        total.update(b"|")
    return total.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=6).hexdigest()
