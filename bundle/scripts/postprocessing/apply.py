"""Applying a file of learned rules to label maps.

A file holds, beside the evidence it was decided on,
    {"labels": {"liver": 1, "tumour": 2},
     "largest_component_of_foreground": true,
     "classes": {"liver": {"largest_component": true, "min_size": null, "fill_holes": true},
                 "tumour": {"largest_component": false, "min_size": {"value": 0.05, "unit": "ml"}, …}}}
and is applied in this order: components of the whole foreground, components of each class, holes. Where
"image_dims" says 2, volumes of one slice in a folder of predictions are 2D images, as they are in inference.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..common.command_line import from_words
from ..common.distributed import is_main_process
from ..common.errors import UserError
from ..common.run_folder import RunFolder
from ..engines.ensemble import checkpoint_paths
from ..images.pairs import physical_spacing
from ..metrics import voxel_measure
from ..metrics.components import Components, find_components, find_holes, keep_components
from ..metrics.slabs import is_among

__all__ = [
    "ApplyPostprocessingd",
    "Rules",
    "apply_rules",
    "describe",
    "find_rules",
    "largest_components",
    "load_rules",
    "no_rules",
    "remove_components",
]

logger = logging.getLogger("lightm_unet")

Rules = dict[str, Any]


def no_rules(labels: Mapping[str, int]) -> Rules:
    """Rules that change nothing."""
    untouched = {"largest_component": False, "min_size": None, "fill_holes": False}
    return {
        "labels": dict(labels),
        "largest_component_of_foreground": False,
        "classes": {name: dict(untouched) for name in labels},
    }


def largest_components(labels: Mapping[str, int]) -> Rules:
    """Rules that keep the largest component of each class."""
    rules = no_rules(labels)
    for rule in rules["classes"].values():
        rule["largest_component"] = True
    return rules


def load_rules(path: str | Path, labels: Mapping[str, int] | None = None) -> Rules:
    """Read a file of rules.

    Args:
        labels: name -> value of the task's classes; None: whatever the file has.

    Raises:
        UserError: the file is missing or broken, or was learned for other labels.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no postprocessing rules at {path}: python -m scripts.postprocessing determine")
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if problem := _problem(rules):
        raise UserError(f"{path} holds no postprocessing rules: {problem}; determine them again")
    if labels is not None and rules["labels"] != dict(labels):
        raise UserError(
            f"the postprocessing rules {path} were learned for the labels {rules['labels']}, the task has "
            f"{dict(labels)}: determine them again, or switch them off with --postprocessing_rules none"
        )
    return rules


def apply_rules(label_map: np.ndarray, rules: Mapping[str, Any], spacing: Sequence[float] | None = None) -> np.ndarray:
    """Clean a label map.

    Args:
        label_map: (*spatial), label values. Values that the rules do not name stay as they are.
        rules: the content of a file of rules.
        spacing: voxel size in mm along each axis; None: there is none.

    Returns:
        A new label map of the same type.

    Raises:
        UserError: a smallest size is in other units than the image can be measured in.
    """
    return fill_holes(remove_components(label_map, rules, spacing), rules)


def remove_components(
    label_map: np.ndarray, rules: Mapping[str, Any], spacing: Sequence[float] | None = None
) -> np.ndarray:
    """The first part of apply_rules: components of the foreground, then those of each class."""
    result = label_map.copy()
    if rules["largest_component_of_foreground"]:
        components = find_components(is_among(result, rules["labels"].values()))
        result = keep_components(result, components, _only(components.largest(), components))
        del components  # large
    chosen = {
        rules["labels"][name]: rule
        for name, rule in rules["classes"].items()
        if rule["largest_component"] or rule["min_size"]
    }
    if not chosen:
        return result
    components = find_components(result)
    measure = voxel_measure(label_map.ndim, spacing)
    kept = np.ones(len(components.sizes), bool)
    for value, rule in chosen.items():
        kept &= _kept_of_class(components, value, rule, measure)
    return keep_components(result, components, kept)


def fill_holes(label_map: np.ndarray, rules: Mapping[str, Any]) -> np.ndarray:
    """The last part of apply_rules."""
    values = [rules["labels"][name] for name, rule in rules["classes"].items() if rule["fill_holes"]]
    if not values:
        return label_map
    holes, result = find_holes(label_map), label_map.copy()
    np.copyto(result, holes, where=is_among(holes, values))
    return result


def find_rules(rules: str | None, checkpoint: str | Sequence[str] | None) -> Path | None:
    """The file of rules that belongs to a checkpoint.

    Args:
        rules: a file; "auto": postprocessing.json beside the (first) checkpoint, if there is one; None: none.
        checkpoint: one file or several.
    """
    if rules is None:
        return None
    if rules != "auto":
        return Path(rules)
    if not checkpoint:
        return None
    file = RunFolder.of(checkpoint_paths(checkpoint)[0]).rules
    return file if file.is_file() else None


class ApplyPostprocessingd(MapTransform):
    """Clean label maps (1, *spatial), which hold label values on the grid of the image file, by learned rules.

    Args:
        keys: of the label maps.
        labels: name -> value of the task's classes.
        rules, checkpoint: see find_rules.

    Raises:
        UserError: the rules are missing, broken, or belong to other labels.
    """

    @from_words
    def __init__(
        self,
        keys: KeysCollection,
        labels: Mapping[str, int],
        rules: str | None = "auto",
        checkpoint: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(keys)
        file = find_rules(rules, checkpoint)
        self.rules = load_rules(file, labels) if file else None
        if file and is_main_process():
            logger.info(f"postprocessing: {describe(self.rules)} ({file}; --postprocessing_rules none switches it off)")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.rules is None:
            return result
        for key in self.keys:
            label_map = result[key]
            values = label_map[0].cpu().numpy()
            values = values.astype(np.min_scalar_type(int(values.max(initial=0))))  # components take enough memory
            unmeasured = "image" in result and physical_spacing(result["image"]) is None  # a picture
            cleaned = apply_rules(values, self.rules, None if unmeasured else physical_spacing(label_map))
            result[key] = label_map.clone()
            result[key][0] = torch.as_tensor(cleaned).to(label_map)
        return result


def describe(rules: Mapping[str, Any]) -> str:
    """What the rules do, in words."""
    parts = ["largest component of the foreground"] if rules["largest_component_of_foreground"] else []
    for name, rule in rules["classes"].items():
        own = ["largest component"] if rule["largest_component"] else []
        if size := rule["min_size"]:
            own.append(f"no component under {size['value']:g} {size['unit']}")
        own += ["holes filled"] if rule["fill_holes"] else []
        parts += [f"{name}: {', '.join(own)}"] if own else []
    return "; ".join(parts) or "no rule helped, so nothing is changed"


def _only(component: int, components: Components) -> np.ndarray:
    kept = np.zeros(len(components.sizes), bool)
    kept[component] = True
    return kept


def _kept_of_class(
    components: Components, value: int, rule: Mapping[str, Any], measure: tuple[float, str]
) -> np.ndarray:
    """Component -> whether it stays; those of other classes do."""
    own = components.values == value
    kept = ~own
    kept |= _only(components.largest(own), components) if rule["largest_component"] else own
    if smallest := rule["min_size"]:
        voxel, unit = measure
        if unit != smallest["unit"]:
            raise UserError(
                f"the postprocessing rules remove components under {smallest['value']:g} {smallest['unit']}, but this "
                f"image is measured in {unit}: determine rules for such images"
            )
        kept &= ~own | (components.sizes * voxel >= smallest["value"])
    return kept


def _problem(rules: Any) -> str | None:
    """What makes a file's content no rules, or None."""
    if not isinstance(rules, dict) or not {"labels", "largest_component_of_foreground", "classes"} <= rules.keys():
        return "it lacks labels, largest_component_of_foreground or classes"
    labels, classes = rules["labels"], rules["classes"]
    if not isinstance(labels, dict) or not all(isinstance(value, int) and value > 0 for value in labels.values()):
        return "labels must be a name -> value above 0"
    if not isinstance(classes, dict) or set(classes) != set(labels):
        return "classes must have an entry for each label"
    for name, rule in classes.items():
        if not isinstance(rule, dict) or not {"largest_component", "min_size", "fill_holes"} <= rule.keys():
            return f"the class {name} lacks largest_component, min_size or fill_holes"
        size = rule["min_size"]
        if size is not None and not (isinstance(size, dict) and {"value", "unit"} <= size.keys()):
            return f"the class {name} has a min_size that is neither null nor {{value, unit}}"
    return None
