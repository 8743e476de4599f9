"""What killed processes leave goes, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.common.leftovers import remove_leftovers, temporary_beside


def aged(path: Path, hours: float, folder: bool = False) -> Path:
    if folder:
        path.mkdir()
        (path / "image.npy").write_text("half")
    else:
        path.write_text("half")
    then = time.time() - 3600 * hours
    for part in (*path.glob("*"), path):
        os.utime(part, (then, then))
    return path


def of_a_dead_process(path: Path) -> Path:
    """The same name, made by a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{child.pid}-"))


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_dead_process_left_goes_at_once(tmp_path: Path, folder: bool) -> None:
    mine = temporary_beside(tmp_path / "model.pt", folder)
    aged(of_a_dead_process(mine), 0, folder)
    aged(mine, 5, folder)  # of this process, which is slow but lives
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (".0123abcd-7-89abcdef.part.a.nii.gz", False),  # of another machine, container or start
        (".0123abcd-7-89abcdef.part", True),
        (".0123456789ab.part.model.pt", False),  # of version 0.6
        (".0123456789abcdef0123456789abcdef.part", True),
    ],
)
def test_what_strangers_left_goes_after_an_hour(tmp_path: Path, name: str, folder: bool) -> None:
    (tmp_path / "cache").mkdir()
    path = aged(tmp_path / "cache" / name, 0.9, folder)
    remove_leftovers(tmp_path, within=True)
    assert path.exists()
    for part in (*path.glob("*"), path):
        os.utime(part, (time.time() - 3700, time.time() - 3700))
    remove_leftovers(tmp_path)
    assert path.exists(), "not in this folder"
    remove_leftovers(tmp_path, within=True)
    assert not path.exists() and (tmp_path / "cache").is_dir()


def test_a_folder_that_is_still_filled_stays(tmp_path: Path) -> None:
    folder = aged(tmp_path / ".0123abcd-7-89abcdef.part", 5, folder=True)
    (folder / "label.npy").write_text("just now")
    os.utime(folder, (0, 0))
    remove_leftovers(tmp_path)
    assert folder.is_dir()


def test_other_names_stay(tmp_path: Path) -> None:
    names = [
        "a.part.nii.gz",
        ".part",
        ".write_test",
        ".0123456789.part.model.pt",
        ".0123abcd-x-89abcdef.part.a",
        ".0123ABCD-7-89abcdef.part",
        "0123456789ab.part.model.pt",
        ".0123456789ab.partial",
    ]
    for name in names:
        aged(tmp_path / name, 100)
    (tmp_path / ".0123456789ab.part.link").symlink_to(tmp_path / names[0])
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(names) + 1


def test_a_clock_that_went_back_removes_nothing(tmp_path: Path) -> None:
    path = aged(tmp_path / ".0123abcd-7-89abcdef.part.a", -5)
    remove_leftovers(tmp_path)
    assert path.exists()


def test_a_long_name_keeps_its_ending(tmp_path: Path) -> None:
    name = "ä" * 100 + ".nii.gz"
    temporary = temporary_beside(tmp_path / name)
    temporary.touch()
    assert temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
