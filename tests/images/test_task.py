"""Reading of task overlays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("text", ["{", "[]", '{"labels": "$@task"}', '{"labels": {}}', '{"labels": {"a": 0}}'])
def test_refuses_what_is_no_task(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.json"
    with pytest.raises(UserError, match=r"task\.json cannot be read"):
        read_task(path)
    path.write_text(text)
    with pytest.raises(UserError, match=r"task\.json"):
        read_task(path)
