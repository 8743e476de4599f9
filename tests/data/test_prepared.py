"""Prepared cases on disk: made once, whole or not at all, up to date, and the same from any process."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from generators import write_image

from scripts.common.case_memory import case_memory
from scripts.common.errors import UserError
from scripts.data import preparation
from scripts.data import prepared as prepared_module
from scripts.data.augmentation import Augmentation
from scripts.data.loading import Sample
from scripts.data.preparation import prepare_cases
from scripts.data.prepared import PreparedDataset, foreground_locations
from scripts.data.transforms import Preparation
from scripts.images.data_folders import cache_folder
from scripts.images.headers import read_header

LABELS = {"a": 1, "b": 5}
AFFINE = np.diag([-1, 1, 2, 1.0])


def write_case(
    root: Path, number: int, shape: tuple[int, ...] = (12, 14, 9), seed: int | None = None
) -> dict[str, str]:
    rng = np.random.default_rng(number if seed is None else seed)
    case = {"name": f"case_{number}"}
    arrays = {
        "image": rng.normal(100, 20, shape).astype(np.float32),
        "label": rng.choice([0, 0, 0, 1, 5], shape).astype(np.uint8),
    }
    for key, array in arrays.items():
        case[key] = str(root / f"{key}_{number}.nii")
        nib.save(nib.Nifti1Image(array, AFFINE), case[key])
    return case


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, str]]:
    return [write_case(tmp_path, i) for i in range(4)]


def dataset_of(cases: list[dict[str, str]], cache: Path, augment: Any = None, **options: Any) -> PreparedDataset:
    dims = 3 if options.get("slice_axis") is None else 2
    preparation = Preparation(dims, 1, LABELS, **options)
    return PreparedDataset(cases, preparation.transforms("image", "label"), augment, cache, preparation)


def folders(cache: Path) -> set[Path]:
    return {path.parent for path in cache.rglob("image.npy")}


def times(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}


def test_a_whole_case_is_what_preprocessing_gives(cases: list, tmp_path: Path) -> None:
    dataset = dataset_of(cases, tmp_path / "cache")
    for case, prepared in zip(cases, dataset, strict=True):
        expected = dataset.preprocessing({key: case[key] for key in ("image", "label")})
        assert prepared["image"].dtype == torch.float32 and prepared["label"].dtype == torch.int16
        assert torch.allclose(prepared["image"], expected["image"].as_tensor(), atol=2e-3)
        assert torch.equal(prepared["label"], expected["label"].as_tensor().short())
        assert set(prepared["label"].unique().tolist()) == {0, 1, 2}


def test_a_killed_worker_is_named_and_finished_cases_are_kept(cases: list, tmp_path: Path) -> None:
    def kill(case: Any) -> Any:
        if "image_3" in case["image"]:
            time.sleep(0.5)  # the others are done by then
            os._exit(1)
        return preprocessing(case)

    training = dataset_of(cases, tmp_path / "cache")
    preprocessing, training.preprocessing = training.preprocessing, kill
    with pytest.raises(UserError, match=r"was killed.*fewer --num_workers; the cases that were finished are kept$"):
        prepare_cases(training, training, num_workers=2)
    assert len(folders(tmp_path / "cache")) == 3


def test_as_many_workers_as_memory_holds(
    cases: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lightm_unet")
    counts: list[int] = []

    def prepare(jobs: Any, num_workers: int) -> list[str]:
        counts.append(num_workers)
        return []

    monkeypatch.setattr(preparation, "_prepare_all", prepare)
    one = case_memory((12, 14, 9), (12, 14, 9), 1)
    for free in (None, 5 * one, 3 * one, one // 2):
        monkeypatch.setattr(preparation, "free_memory", lambda free=free: free)
        training = dataset_of(cases, tmp_path / f"cache_{free}")
        prepare_cases(training, training, num_workers=4)
    assert counts == [4, 4, 2, 1]
    assert "2 at once instead of 4, since one takes up to 0 MB of memory and 0 MB are free" in caplog.text


def test_cases_are_prepared_once(cases: list, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepare_cases(dataset_of(cases, cache), dataset_of(cases[:1], cache), num_workers=2)
    assert len(folders(cache)) == 4 and not list(cache.rglob("*.part"))
    assert cache_folder(cache / "evaluation") == cache, "nothing else may be written there, see images/outputs.py"
    before = times(cache)
    prepare_cases(dataset_of(cases, cache), dataset_of(cases[:1], cache))
    assert dataset_of(cases, cache)[2]["image"].shape == (1, 12, 14, 9)
    assert times(cache) == before


def test_other_settings_and_other_files_are_prepared_anew(cases: list, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = dataset_of(cases, cache)[0]["image"]
    assert dataset_of(cases, cache, spacing=[1, 1, 1])[0]["image"].shape == (1, 12, 14, 18)
    assert len(folders(cache)) == 2
    write_case(tmp_path, 0, seed=99)
    changed = dataset_of(cases, cache)[0]["image"]
    assert not torch.equal(first, changed) and len(folders(cache)) == 3
    write_case(tmp_path, 0)  # the first content again, at a new time: its case is still there
    before = times(cache)
    assert torch.equal(dataset_of(cases, cache)[0]["image"], first) and times(cache) == before


def test_files_are_read_again_only_after_a_change(cases: list, tmp_path: Path) -> None:
    dataset = dataset_of(cases, tmp_path / "cache")
    folder = dataset.prepare(0)
    label = Path(cases[0]["label"])
    stat = label.stat()
    content = bytearray(label.read_bytes())
    content[-1] ^= 1
    label.write_bytes(content)
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if nothing had happened
    assert dataset_of(cases, tmp_path / "cache").case_folder(0) == folder
    label.touch()
    assert dataset_of(cases, tmp_path / "cache").case_folder(0) != folder


def test_a_killed_process_leaves_nothing_half_written(
    cases: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, save = tmp_path / "cache", np.save

    def fail_at_label(path: Path, array: np.ndarray) -> None:
        if path.name == "label.npy":
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", fail_at_label)
    with pytest.raises(KeyboardInterrupt):
        dataset_of(cases, cache)[0]
    monkeypatch.setattr(np, "save", save)
    assert not folders(cache) and dataset_of(cases, cache).find_prepared(0) is None
    abandoned = dataset_of(cases, cache).folder / ".0123.part"
    abandoned.mkdir()  # what a process leaves that could not even clean up
    assert dataset_of(cases, cache)[0]["image"].shape == (1, 12, 14, 9)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("image.npy", flip_a_bit, "other content in image.npy"),
        ("label.npy", flip_a_bit, "other content in label.npy"),
        ("foreground.npy", flip_a_bit, "other content in foreground.npy"),
        ("image.npy", cut_off, "bytes in image.npy"),
        ("label.npy", Path.unlink, "no readable label.npy"),
        ("arrays.json", lambda file: file.write_text('{"image.npy": 3}'), "broken arrays.json"),
        ("arrays.json", lambda file: file.write_text("{}"), "broken arrays.json"),
        ("arrays.json", Path.unlink, "1 prepared case(s) without the arrays.json"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_case_is_prepared_anew(
    cases: list, tmp_path: Path, name: str, damage: Any, said: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    before = dataset_of(cases, cache)
    prepare_cases(before, dataset_of(cases[:1], cache))
    expected, folder = before[1], before.prepare(1)
    opened = before.load(1)
    damage(folder / name)
    others = times(cache)
    after = dataset_of(cases, cache)
    prepare_cases(after, dataset_of(cases[:1], cache), num_workers=workers)
    assert after.prepare(1) == folder and all(torch.equal(expected[key], after[1][key]) for key in expected)
    lines = [record.getMessage() for record in caplog.records if "prepared anew" in record.getMessage()]
    assert len(lines) == 1 and said in lines[0] and (str(folder) in lines[0] or "1 prepared" in lines[0])
    changed = {path.parent for path, time in times(cache).items() if others.get(path) != time}
    assert changed == {folder} and not list(cache.rglob("*.part*"))
    assert opened["image"].shape == (1, 12, 14, 9)  # a run that had it open goes on
    caplog.clear()
    prepare_cases(dataset_of(cases, cache), dataset_of([], cache))
    assert "anew" not in caplog.text


def test_a_damaged_case_is_noticed_without_a_run(cases: list, tmp_path: Path) -> None:
    expected = dataset_of(cases, tmp_path / "cache")[0]["image"]
    flip_a_bit(dataset_of(cases, tmp_path / "cache").prepare(0) / "image.npy")
    assert torch.equal(dataset_of(cases, tmp_path / "cache")[0]["image"], expected)


def test_cases_are_looked_through_once_a_run(cases: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(cases, tmp_path / "cache", Augmentation([8, 8, 8], [0, 1, 2]))
    prepare_cases(dataset, dataset_of([], tmp_path / "cache"))
    looked = []
    monkeypatch.setattr(preparation, "find_damage", lambda folder: looked.append(folder))
    monkeypatch.setattr("scripts.data.prepared.find_damage", lambda folder: looked.append(folder))
    prepare_cases(dataset, dataset_of(cases[:1], tmp_path / "cache"))
    for _ in range(3):
        dataset[0]
    assert len(looked) == len(set(looked)) == 4


def test_a_broken_index_is_read_as_none(cases: list, tmp_path: Path) -> None:
    folder = dataset_of(cases, tmp_path / "cache").prepare(0)
    (index,) = (tmp_path / "cache/files").glob("case_0-*.json")
    known = json.loads(index.read_text())
    for broken in (
        "[]",
        "{",
        '{"files": 3}',
        json.dumps(known | {"digest": "../../x"}),
        json.dumps(known | {"digest": 3}),
    ):
        index.write_text(broken)
        assert dataset_of(cases, tmp_path / "cache").prepare(0) == folder


def test_two_processes_may_prepare_the_same_case(cases: list, tmp_path: Path) -> None:
    first, second = (dataset_of(cases, tmp_path / "cache") for _ in range(2))
    arrays = {"image": np.zeros(1), "label": np.zeros(1), "foreground": np.zeros(1)}
    folder = first.prepare(0)
    second._write(folder, arrays)  # the slower one gives way
    assert second[0]["image"].shape == (1, 12, 14, 9) and not list((tmp_path / "cache").rglob("*.part"))


def test_every_broken_case_is_named_at_once(cases: list, tmp_path: Path) -> None:
    Path(cases[1]["image"]).write_text("broken")
    nib.save(nib.Nifti1Image(np.full((12, 14, 9), 3, np.uint8), AFFINE), cases[3]["label"])
    cache = tmp_path / "cache"
    for workers in (0, 2):
        with pytest.raises(UserError) as caught:
            prepare_cases(dataset_of(cases, cache), dataset_of(cases[1:2], cache), num_workers=workers)
        message = str(caught.value)
        assert message.startswith("2 case(s) cannot be used") and "image_1.nii" in message and "label_3.nii" in message
    assert len(folders(cache)) == 2  # the good ones are kept


def test_too_little_room_is_said_before_anything_is_written(
    cases: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    usage = type(preparation.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 15_000))
    with pytest.raises(UserError, match=r"4 cases will take about 0 MB in .*--cache_dir"):
        prepare_cases(dataset_of(cases, cache), dataset_of([], cache))
    assert not cache.exists()
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**8))
    prepare_cases(dataset_of(cases, cache), dataset_of([], cache))


def test_the_estimate_is_close(cases: list, tmp_path: Path) -> None:
    dataset = dataset_of(cases, tmp_path / "cache", spacing=[0.5, 0.5, 0.5])
    estimate = preparation._sizes(dataset, 0, [0.5, 0.5, 0.5]).on_disk
    written = sum((dataset.prepare(0) / f"{key}.npy").stat().st_size for key in ("image", "label"))
    assert estimate == pytest.approx(written, rel=0.05)
    assert read_header(cases[0]["image"]) == ([12, 14, 9], [1.0, 1.0, 2.0], 1)
    assert read_header(tmp_path / "none.nii") is None


def test_the_estimate_of_a_volume_of_one_slice(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.nii.gz", np.zeros((1, 10, 1, 20), np.uint8), np.diag([1, 5, 2, 1]))
    dataset = dataset_of([{"image": str(image), "label": str(image)}], tmp_path / "cache")
    assert preparation._sizes(dataset, 0, [1, 1]).on_disk == 10 * 40 * 3


def test_a_folder_that_cannot_be_written(cases: list) -> None:
    cache = Path(cases[0]["image"]) / "cache"  # below a file
    with pytest.raises(UserError, match=r"cannot write to .*cache: .*--cache_dir"):
        prepare_cases(dataset_of(cases, cache), dataset_of([], cache))


@pytest.mark.parametrize("full", ["No space left on device", "400 requested and 12 written"])
def test_a_disk_that_gets_full(cases: list, tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(file: Path, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, full) if "space" in full else OSError(full)

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(UserError, match=r"cannot write to .*cache: (No space|.*the disk is full).*--cache_dir"):
        prepare_cases(dataset_of(cases, tmp_path / "cache"), dataset_of([], tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_a_training_patch_is_a_function_of_its_case_and_key(cases: list, tmp_path: Path) -> None:
    augment = Augmentation([8, 8, 8], [0, 1, 2])
    dataset = dataset_of(cases, tmp_path / "cache", augment)

    def image(sample: Sample | int) -> torch.Tensor:
        return augment.finish(augment.gather([dataset[sample]]), torch.device("cpu"))["image"]

    one = image(Sample(0, (3, 1)))
    assert one.shape == (1, 1, 8, 8, 8) and torch.equal(one, image(Sample(0, (3, 1))))
    for other in (Sample(1, (3, 1)), Sample(0, (3, 2)), 0):
        assert not torch.equal(one, image(other))


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_lie_together_on_disk(cases: list, tmp_path: Path, axis: int) -> None:
    plain = dataset_of(cases, tmp_path / "cache")[1]
    dataset = dataset_of(cases, tmp_path / "cache", slice_axis=axis)
    assert np.load(dataset.prepare(1) / "image.npy").shape[1] == (12, 14, 9)[axis]
    assert torch.equal(dataset[1]["image"], plain["image"]) and torch.equal(dataset[1]["label"], plain["label"])


def test_intensities_that_float16_cannot_hold_stay_exact(tmp_path: Path) -> None:
    from scripts.data.prepared import _compact_image

    assert _compact_image(np.array([[1.5, -255.0]], np.float32)).dtype == np.float16
    large = np.array([[12345.0, 0]], np.float32)
    assert _compact_image(large).dtype == np.float32 and _compact_image(large)[0, 0] == 12345
    small = np.array([[1.5e-3, 2e-7]], np.float32)  # diffusion coefficients in mm²/s, not normalised
    assert np.array_equal(_compact_image(small), small)


def test_foreground_locations() -> None:
    label = np.zeros((40, 40, 40), np.int16)
    label[:30, :30, :30], label[35, 36, 37] = 2, 7
    found = foreground_locations(label)
    assert found.dtype == np.int32 and (found[0] == 2).sum() == 10_000 and (np.diff(found[0]) >= 0).all()
    assert np.array_equal(found[:, -1], [7, 35, 36, 37]) and np.array_equal(label[tuple(found[1:])], found[0])
    assert np.array_equal(found, foreground_locations(label))
    assert foreground_locations(np.zeros((3, 4))).shape == (3, 0)
    assert foreground_locations(np.full((3, 4), -1)).shape == (3, 0)


@pytest.mark.parametrize("ignored", [False, True])
def test_locations_are_those_of_a_list_of_all_voxels(ignored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_module, "BLOCK", 700)
    label = np.random.default_rng(0).choice([0, 1, 1, 1, 3], (30, 40, 33)).astype(np.int8)
    label[:2], label[20, 3:9] = -1 if ignored else 0, 4
    random, expected = np.random.RandomState(1234), []
    for value in ([0] if ignored else []) + [1, 3, 4]:
        voxels = np.flatnonzero(label == value if value else label >= 0)
        if len(voxels) > 10_000:
            voxels = np.sort(voxels[random.randint(0, len(voxels), 10_000)])
        expected.append(np.stack([np.full(len(voxels), value), *np.unravel_index(voxels, label.shape)]))
    assert np.array_equal(foreground_locations(label), np.concatenate(expected, 1))


def test_locations_beside_ignored_voxels() -> None:
    label = np.array([[-1, 0, 2], [-1, -1, 1]])
    assert foreground_locations(label).T.tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 2], [1, 1, 2], [2, 0, 2]]


def test_typed_words_are_the_same_settings(cases: list, tmp_path: Path) -> None:
    typed = dataset_of(cases, tmp_path, crop_nonzero="false", spacing="null")
    assert typed.folder == dataset_of(cases, tmp_path, crop_nonzero=False, spacing=None).folder


def test_settings_are_noted_in_plain_words(cases: list, tmp_path: Path) -> None:
    dataset = dataset_of(cases, tmp_path / "cache", spacing=[1, 1, 1])
    dataset.prepare(0)
    assert json.loads((dataset.folder / "settings.json").read_text())["spacing"] == [1, 1, 1]
