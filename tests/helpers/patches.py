"""Cases in memory and patches of them, for the tests of what trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scripts.data.augmentation import Augmentation
from scripts.data.prepared import foreground_locations
from scripts.data.sampling import PatchSampler

__all__ = ["PatchMaker", "case_of"]

CPU = torch.device("cpu")


def case_of(label: np.ndarray, image: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """A prepared case; without an image each voxel holds its position along the first axis."""
    image = np.indices(label.shape)[0][None].astype(np.float16) if image is None else image
    return {"image": image, "label": label[None].astype(np.int8), "foreground": foreground_locations(label)}


class PatchMaker:
    """Patches as they lie in a case, neither turned nor scaled unless it is asked for, without other alterations."""

    def __init__(self, patch_size: Sequence[int], seed: int = 0, **options: Any) -> None:
        self.augment = Augmentation(patch_size, mirror_axes=[])
        self.augment.choose = PatchSampler(patch_size, **{"prob_rotate": 0, "prob_scale": 0, **options})
        self.augment.alterations = []
        self.random = np.random.default_rng(seed)

    def __call__(self, case: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        batch = self.augment.finish(self.augment.gather([self.augment.cut(case, self.random)]), CPU)
        return {key: value[0] for key, value in batch.items()}
