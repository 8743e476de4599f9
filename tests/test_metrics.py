"""Scores against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scripts.metrics import case_scores


def test_overlap() -> None:
    prediction, label = torch.zeros(2, 10, 10, 10, dtype=torch.int)
    prediction[2, 2, 2:6], label[2, 2, 4:8] = 1, 1
    scores = case_scores(prediction, label, {"a": 1}, (1, 1, 3))["a"]
    assert scores["dice"] == pytest.approx(0.5) and scores["iou"] == pytest.approx(1 / 3)


def test_single_voxels_a_known_distance_apart() -> None:
    prediction, label = torch.zeros(2, 9, 9, 9, dtype=torch.int)
    prediction[1, 1, 1], label[4, 5, 1] = 2, 2
    scores = case_scores(prediction, label, {"b": 2}, (1.0, 2.0, 5.0))["b"]
    assert scores["hd95"] == pytest.approx(math.hypot(3, 8)) and scores["dice"] == 0


def test_absent_classes_are_undefined() -> None:
    prediction, label = torch.zeros(2, 8, 8, dtype=torch.int)
    label[2:4, 2:4] = 1
    scores = case_scores(prediction, label, {"a": 1, "b": 2}, (1, 1))
    assert scores["a"]["dice"] == 0 and math.isnan(scores["a"]["hd95"])
    assert all(math.isnan(value) for value in scores["b"].values())
