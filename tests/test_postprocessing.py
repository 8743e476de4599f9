"""The label map that is kept, and what a validation scores."""

from __future__ import annotations

import torch
from monai.metrics import DiceMetric, get_confusion_matrix
from monai.transforms import Compose

from scripts.postprocessing import for_scoring, to_label_map


def logits_of(indices: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(indices, classes).movedim(-1, 0).float() * 5


def test_indices_become_values_of_the_label_files() -> None:
    indices = torch.tensor([[0, 1, 2], [2, 2, 0]])
    steps = Compose(to_label_map(Compose([]), {"cyst": 5, "kidney": 1}))
    assert steps({"pred": logits_of(indices, 3)})["pred"].tolist() == [[[0, 1, 5], [5, 5, 0]]]


def test_largest_component_of_each_label() -> None:
    indices = torch.tensor([[2, 2, 0, 2], [0, 0, 0, 0], [1, 0, 1, 1]])
    steps = Compose(to_label_map(Compose([]), {"kidney": 1, "cyst": 5}, keep_largest="true"))
    assert steps({"pred": logits_of(indices, 3)})["pred"].tolist() == [[[5, 5, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]]


def test_ignored_voxels_count_in_no_score() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, label = (torch.randint(3, (12, 10), generator=generator) for _ in range(2))
    ignored = label.clone()
    ignored[6:] = -1
    steps = Compose(for_scoring(3))

    def scores(predicted: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        data = steps({"pred": logits_of(predicted, 3), "label": label[None].short()})
        pair = data["pred"][None], data["label"][None]
        confusion = get_confusion_matrix(*pair, include_background=False)[..., [0, 1, 3]]  # without true negatives
        return DiceMetric(include_background=False)(*pair), confusion

    for ours, expected in zip(scores(predicted, ignored), scores(predicted[:6], label[:6]), strict=True):
        assert torch.equal(ours, expected)
