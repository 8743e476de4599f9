"""Files that are written whole or not at all, and names that lead nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scripts.common.atomic_writing import replacing
from scripts.common.errors import UserError
from scripts.data import prepared
from scripts.data.layouts import read_dataset
from scripts.data.prepared import PreparedDataset
from scripts.data.transforms import Preparation
from scripts.images.files import file_of_case

NAMES = st.one_of(
    st.text(min_size=0, max_size=30),
    st.lists(st.sampled_from(["..", ".", "", "a", "~", "/", "\\", "C:", "\0", "etc"]), max_size=6).map("/".join),
)

PLANAR = Preparation(2, 1, {"a": 1})


@given(NAMES)
@example("../../x")
@example("/abs/x")
@example("a/../b")
@example("..")
@example("")
@example("x" * 300)
@example("\ud800")
def test_a_case_never_leads_out_of_its_folder(name: str) -> None:
    try:
        path = file_of_case("/out", name, ".nii.gz")
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert os.path.dirname(os.path.realpath(path)) == "/out" and not path.name.startswith(".")


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "a/b", "..", ""])
def test_a_data_set_whose_cases_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    content = {"channel_names": {"0": "a"}, "labels": {"background": 0, "x": 1}, "file_ending": ".png"}
    content["dataset"] = {name: {"images": ["imagesTr/a.png"], "label": "labelsTr/a.png"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset\.json: the case name .*rename the case"):
        read_dataset(tmp_path)
    dataset = PreparedDataset(
        [{"name": name or "..", "image": "a.png", "label": "a.png"}], None, None, tmp_path, PLANAR
    )
    with pytest.raises(UserError, match="the case name"):
        dataset.prepare(0)


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power loss leaves an empty file under the name."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def note_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("tells files from folders by /proc")
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert steps == ["file", "rename", "folder"]


def test_a_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems say so only when the file is flushed."""
    (tmp_path / "a.txt").write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_what_a_link_leads_to_stays(tmp_path: Path, link: type[os.link]) -> None:
    (tmp_path / "kept.txt").write_text("old")
    link(tmp_path / "kept.txt", tmp_path / "a.txt")
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "kept.txt").read_text() == "old" and (tmp_path / "a.txt").read_text() == "new"


def test_a_prepared_case_that_cannot_be_put_in_its_place_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only another process that was faster is none."""

    def fail(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    dataset = PreparedDataset([], None, None, tmp_path, PLANAR)
    arrays = {"image": np.zeros((1, 2, 2)), "label": np.zeros((1, 2, 2)), "foreground": np.zeros((3, 0))}
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        dataset._write(dataset.folder / "a-0", arrays)
    assert [path.name for path in dataset.folder.iterdir()] == ["settings.json"]
    (dataset.folder / "a-0").mkdir()
    dataset._write(dataset.folder / "a-0", arrays)


def test_every_array_is_on_the_disk_before_its_case_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(prepared, "flush_file", lambda path: flushed.append(path.name))
    rename = Path.rename

    def check(self: Path, target: Path) -> Path:
        assert sorted(flushed) == sorted(path.name for path in self.iterdir())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", check)
    dataset = PreparedDataset([], None, None, tmp_path, PLANAR)
    dataset._write(dataset.folder / "a-0", {"image": np.zeros(1), "label": np.zeros(1), "foreground": np.zeros(1)})
    assert {path.name for path in dataset.folder.iterdir()} == {"settings.json", "a-0"}
