"""How many voxels each rule changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scripts.postprocessing.apply import apply_rules, largest_components, no_rules
from scripts.postprocessing.changes import changed_voxels, single_rules

LABELS = {"organ": 1, "lesion": 3}


def test_each_rule_of_the_faulty_cases(faulty: Path) -> None:
    rules = no_rules(LABELS) | {"largest_component_of_foreground": True}
    rules["classes"]["lesion"]["min_size"] = {"value": 0.005, "unit": "ml"}  # a voxel has 0.002
    rules["classes"]["organ"]["fill_holes"] = True
    found = changed_voxels(sorted((faulty / "predictions").iterdir()), rules, workers=0)
    assert found == [
        {"rule": "largest_component_of_foreground", "class": None, "voxels": 6 * 12, "cases": 6},
        {"rule": "min_size", "class": "lesion", "voxels": 6 * 2, "cases": 6},
        {"rule": "fill_holes", "class": "organ", "voxels": 6, "cases": 6},
    ]
    assert changed_voxels([], no_rules(LABELS)) == []


@pytest.mark.parametrize("foreground", [False, True])
@given(label_map=arrays(np.uint8, (7, 8), elements=st.sampled_from([0, 0, 1, 1, 3])))
def test_one_after_the_other_they_do_what_all_do_together(foreground: bool, label_map: np.ndarray) -> None:
    rules = largest_components(LABELS) | {"largest_component_of_foreground": foreground}
    for rule in rules["classes"].values():
        rule |= {"fill_holes": True, "min_size": {"value": 3, "unit": "px"}}
    result = label_map
    for _, _, alone in single_rules(rules):
        result = apply_rules(result, alone)
    assert np.array_equal(result, apply_rules(label_map, rules))
