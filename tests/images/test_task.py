"""Reading of task overlays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from scripts.common import BUNDLE_ROOT
from scripts.common.errors import UserError
from scripts.images.task import Task, read_task


def test_task_orders_labels_by_value_and_knows_its_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"labels": {"b": 7, "a": 2}, "spatial_dims": 2, "slice_axis": 2, "ignore_label": 9}))
    task = read_task(path)
    assert list(task.labels) == ["a", "b"]
    assert (task.image_dims, task.ignore_label) == (3, 9)
    assert read_task() == Task()
    changed = tmp_path / "changed.json"
    changed.write_text('{"name": "smaller"}')
    assert read_task(path, changed) == dataclasses.replace(task, name="smaller")


@pytest.mark.parametrize("home", ["hippocampus", "lung_xray"])
def test_a_shipped_overlay_has_the_labels_of_the_one_it_builds_on(home: str) -> None:
    tasks = BUNDLE_ROOT / "configs/tasks"
    expected = read_task(tasks / f"{home}.json")
    others = [file for file in tasks.glob(f"{home}_*.json") if not file.name.endswith("_splits.json")]
    assert len(others) == 2 and expected.labels
    for file in others:
        assert read_task(file) == dataclasses.replace(expected, name=file.stem)
        facts = json.loads(file.read_text(encoding="utf-8")).keys()
        assert not facts & {"labels", "dataset_dir", "normalization", "in_channels"}, "they have one home"


def test_an_overlay_may_build_on_one_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "home.json").write_text('{"labels": {"a": 1}, "spatial_dims": 2, "name": "home"}')
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"task_file": str(tmp_path / "home.json"), "name": "own"}))
    assert read_task(path) == Task({"a": 1}, image_dims=2, name="own")
    path.write_text('{"task_file": "$@task[0]"}')
    with pytest.raises(UserError, match=r"task\.json: task_file must be a path"):
        read_task(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"labels": "$@task"}', '{"labels": {}}', '{"labels": {"a": 0}}'])
def test_refuses_what_is_no_task(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.json"
    with pytest.raises(UserError, match=r"task\.json cannot be read"):
        read_task(path)
    path.write_text(text)
    with pytest.raises(UserError, match=r"task\.json"):
        read_task(path)
