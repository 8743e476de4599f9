"""What MONAI Label's tasks for bundles do to a bundle, written after its documentation and public source.

``BundleInferTask`` parses inference.json itself: it takes network_def, preprocessing, inferer and postprocessing one by
one, loads ``models/model.pt``, drops what saves files (by class, SaveImaged) and saves by itself. ``BundleTrainTask``
runs train.json with its own data, epochs and handlers in place of the bundle's. Both forget the bundle's Python before
each step and import it anew.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged, SaveImaged

__all__ = ["LabelInference", "forgetting_the_bundle", "forgotten", "label_training"]


def forget() -> None:
    for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
        del sys.modules[name]


@contextmanager
def forgotten() -> Iterator[None]:
    """Gives a test its own modules back, whose classes others have in hand."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "scripts"}
    path = list(sys.path)
    try:
        yield
    finally:
        forget()
        sys.modules.update(before)
        sys.path[:] = path


@contextmanager
def forgetting_the_bundle(bundle: Path) -> Iterator[None]:
    """How each step of a task begins and ends."""
    sys.path.insert(0, str(bundle))
    forget()
    yield
    sys.path.remove(str(bundle))


class LabelInference:
    """Segments one image after the other."""

    def __init__(self, bundle: Path, device: str = "cpu") -> None:
        self.bundle, self.device = bundle, device
        with forgetting_the_bundle(bundle):
            self.parser = ConfigParser()
            self.parser.read_config(str(bundle / "configs/inference.json"))
            self.parser.config["bundle_root"] = str(bundle)
            self.parser.config["use_click"] = False
            self.network = self.parser.get_parsed_content("network_def", instantiate=True)

    def part(self, name: str) -> Any:
        with forgetting_the_bundle(self.bundle):
            self.parser.config["device"] = self.device
            return self.parser.get_parsed_content(name, instantiate=True)

    def __call__(self, image: str) -> np.ndarray:
        data: dict[str, Any] = {"model": "lightm", "device": self.device, "image": image, "image_path": image}
        steps: Compose = self.part("preprocessing")
        assert not any(isinstance(step, LoadImaged) for step in steps.transforms)  # would get other arguments
        for step in steps.transforms:
            data = step(data)
        inferer = self.part("inferer")
        network = copy.deepcopy(self.network).to(self.device)
        network.load_state_dict(torch.load(self.bundle / "models/model.pt", map_location=self.device), strict=False)
        network.eval()
        with torch.no_grad():
            data["pred"] = inferer(data["image"][None].to(self.device), network)[0]
        for step in self.part("postprocessing").transforms:
            if not isinstance(step, SaveImaged):
                data = step(data)
        restored = data["pred"]
        return np.asarray(restored[0] if restored.ndim > 3 and len(restored) == 1 else restored)


def label_training(
    bundle: Path,
    training: Sequence[dict[str, str]],
    validation: Sequence[dict[str, str]] | None,
    max_epochs: int = 1,
    pretrained: bool = True,
    **overrides: Any,
) -> None:
    """One press of the button "Train"; ``overrides`` are those of a class derived from the task."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/train.json"))
    handlers = parser.get("train#handlers", [])
    weights = bundle / "models/model.pt"
    if pretrained and weights.exists() and not [h for h in handlers if h.get("_target_") == "CheckpointLoader"]:
        load = {"load_path": str(weights), "load_dict": {"model": "$@network"}, "strict": False}
        handlers.insert(0, {"_target_": "CheckpointLoader", **load})
    changes = {
        "bundle_root": str(bundle),
        "train#trainer#max_epochs": max_epochs,
        "train#dataset#data": list(training),
        "device": "cpu",
        "train#handlers": handlers,
        **({} if validation is None else {"validate#dataset#data": list(validation)}),
        **overrides,
    }
    with forgetting_the_bundle(bundle):
        monai.bundle.run(
            run_id="run",
            init_id=None,
            final_id=None,
            meta_file=str(bundle / "configs/metadata.json"),
            config_file=str(bundle / "configs/train.json"),
            **changes,
        )
