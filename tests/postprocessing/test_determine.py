"""Which rules are adopted, and that the evidence is what applying them really gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rule_cases import SHAPE, write
from scipy.ndimage import gaussian_filter

from scripts.common.errors import UserError
from scripts.images.pairs import pair_files, read_pair
from scripts.images.task import Task
from scripts.metrics import case_scores
from scripts.postprocessing.apply import apply_rules
from scripts.postprocessing.determine import _thresholds, determine
from scripts.postprocessing.evidence import component_evidence

LABELS = {"organ": 1, "lesion": 3}


def mean_dice(root: Path, task: Task, rules: dict | None = None) -> dict[str, float]:
    """The mean of case_scores' Dice over the folder, after the rules."""
    rows = []
    for pair in pair_files(root / "predictions", root / "labels"):
        prediction, label = read_pair(pair, task)
        cleaned = apply_rules(prediction.array, rules, prediction.spacing) if rules else prediction.array
        rows.append(case_scores(cleaned, label.array, task.labels, None, task.regions, task.ignore_label))
    return {name: float(np.nanmean([row[name]["dice"] for row in rows])) for name in rows[0]}


def steps(rules: dict, rule: str, name: str | None = None) -> list[dict]:
    return [step for step in rules["evidence"]["steps"] if (step["rule"], step["class"]) == (rule, name)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_fault_gets_its_rule(faulty: Path, workers: int) -> None:
    task = Task(LABELS, {"all": ["organ", "lesion"]})
    rules = determine(pair_files(faulty / "predictions", faulty / "labels"), task, workers)
    assert rules["labels"] == LABELS and rules["largest_component_of_foreground"] is True
    assert rules["classes"]["organ"] == {"largest_component": False, "min_size": None, "fill_holes": True}
    size = rules["classes"]["lesion"].pop("min_size")
    assert rules["classes"]["lesion"] == {"largest_component": False, "fill_holes": False}
    assert size["unit"] == "ml" and 0.004 < size["value"] < 0.016, "above 2 voxels, under the 8 of a true part"

    (foreground,) = steps(rules, "largest_component_of_foreground")
    assert foreground["adopted"] and foreground["cases_improved"] == 6 and foreground["cases_degraded"] == 0
    (largest,) = steps(rules, "largest_component", "lesion")
    assert not largest["adopted"] and largest["reason"]
    assert steps(rules, "min_size", "organ")[0]["reason"] == "no component misses its class entirely"
    assert "changes no prediction" in steps(rules, "fill_holes", "lesion")[0]["reason"]


def test_evidence_is_what_applying_gives(faulty: Path) -> None:
    task = Task(LABELS, {"all": ["organ", "lesion"]})
    rules = determine(pair_files(faulty / "predictions", faulty / "labels"), task, 0)
    evidence = rules["evidence"]
    assert evidence["cases"] == 6 and evidence["defined_cases"] == {"organ": 6, "lesion": 6, "all": 6}
    assert evidence["dice_before"] == pytest.approx(mean_dice(faulty, task), abs=1e-6)
    assert evidence["dice_after"] == pytest.approx(mean_dice(faulty, task, rules), abs=1e-6)
    assert all(evidence["dice_after"][name] > evidence["dice_before"][name] for name in LABELS)


@pytest.mark.parametrize("seed", range(4))
def test_noise(tmp_path: Path, seed: int) -> None:
    """On random maps with many components, merged in the tables, a region and ignored voxels: the same promise."""
    rng = np.random.default_rng(seed)
    task = Task({"a": 1, "b": 2, "c": 7}, {"ab": ["a", "b"]}, ignore_label=9)
    values = np.array([0, 0, 1, 2, 7], np.uint8)
    for case in range(3):
        smooth = gaussian_filter(rng.standard_normal(SHAPE), 1.5)
        label = values[np.digitize(smooth, np.quantile(smooth, [0.3, 0.6, 0.8, 0.9]))]
        noisy = np.where(rng.random(SHAPE) < 0.15, rng.choice(values, SHAPE), label)
        label[:2] = 9
        write(tmp_path / f"labels/{case}.nii.gz", label)
        write(tmp_path / f"predictions/{case}.nii.gz", noisy)
    pairs = pair_files(tmp_path / "predictions", tmp_path / "labels")
    rows = component_evidence(pairs[0], task).components
    assert len(rows.size) < rows.count.sum(), "specks share rows"
    rules = determine(pairs, task, 0)
    before, after = rules["evidence"]["dice_before"], rules["evidence"]["dice_after"]
    assert before == pytest.approx(mean_dice(tmp_path, task), abs=1e-6)
    assert after == pytest.approx(mean_dice(tmp_path, task, rules), abs=1e-6)
    assert all(after[name] >= before[name] for name in before)
    adopted = [step for step in rules["evidence"]["steps"] if step["adopted"]]
    assert adopted and all(step["after"][name] >= step["before"][name] for step in adopted for name in before)


def test_a_case_without_the_class_counts_when_its_false_alarms_go(tmp_path: Path) -> None:
    for case in range(3):
        label, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
        label[:, :, :3] = prediction[:, :, :3] = 1
        prediction[8, 8, 8:10] = 3
        if case:
            label[2:9, 2:9, 12:20] = prediction[2:9, 2:9, 12:20] = 3
        write(tmp_path / f"labels/{case}.nii.gz", label)
        write(tmp_path / f"predictions/{case}.nii.gz", prediction)
    rules = determine(pair_files(tmp_path / "predictions", tmp_path / "labels"), Task(LABELS, {}), 0)
    assert rules["classes"]["lesion"]["min_size"] and rules["evidence"]["dice_after"]["lesion"] == 1
    assert steps(rules, "largest_component", "lesion")[0]["adopted"], "nnU-Net's rule comes first"


def test_a_rule_that_lowers_a_region_is_refused(tmp_path: Path) -> None:
    """The specks of 3 lie on voxels of class 1: without them 3 gains and the union of both loses."""
    for case in range(2):
        label = np.zeros(SHAPE, np.uint8)
        label[2:14, 2:14, 2:14], label[4:8, 4:8, 4:8] = 1, 3
        prediction = label.copy()
        prediction[12, 12, 12] = 3
        write(tmp_path / f"labels/{case}.nii.gz", label)
        write(tmp_path / f"predictions/{case}.nii.gz", prediction)
    pairs = pair_files(tmp_path / "predictions", tmp_path / "labels")
    assert determine(pairs, Task(LABELS, {}), 0)["classes"]["lesion"]["largest_component"]
    rules = determine(pairs, Task(LABELS, {"all": ["organ", "lesion"]}), 0)
    assert not rules["classes"]["lesion"]["largest_component"]
    assert "Dice of all would fall" in steps(rules, "largest_component", "lesion")[0]["reason"]


def test_bad_input(faulty: Path) -> None:
    pairs, task = pair_files(faulty / "predictions", faulty / "labels"), Task(LABELS, {})
    with pytest.raises(UserError, match="1 case is too few"):
        determine(pairs[:1], task, 0)
    with pytest.raises(UserError, match=r"(?s)6 of 6 cases.*case_0.nii.gz holds the label value\(s\) 3"):
        determine(pairs, Task({"organ": 1}, {}), 0)
    empty = np.zeros(SHAPE, np.uint8)
    for pair in pairs:
        write(pair.prediction, empty)
    with pytest.raises(UserError, match="none of the 6 predictions holds any class"):
        determine(pairs, task, 0)
    for pair in pairs:
        write(pair.label, empty)
    with pytest.raises(UserError, match="none of the 6 labels holds any"):
        determine(pairs, task, 0)


def test_thresholds_lie_just_above_the_sizes() -> None:
    sizes, counts = np.array([5.0, 1.0, 40.0]), np.array([1, 98, 1])
    assert _thresholds(sizes, counts, whole=True) == [2, 41]
    assert _thresholds(np.array([0.0999, 0.012]), np.array([1, 1]), whole=False) == [0.013, 0.1]
    assert _thresholds(sizes[:0], counts[:0], whole=True) == []
