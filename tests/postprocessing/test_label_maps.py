"""The label map that is kept, and what a validation scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from generators import write_image
from monai.metrics import DiceMetric, get_confusion_matrix
from monai.transforms import Compose

from scripts.common.errors import find_user_error
from scripts.images.cases import load_image
from scripts.postprocessing.label_maps import for_scoring, to_label_map, to_saved_label_map


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_no_numbers_give_no_file(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    image = load_image(write_image(tmp_path / "in/a.png", np.arange(12, dtype=np.uint8).reshape(1, 3, 4)), 2)
    (tmp_path / "out").mkdir()
    steps = Compose(to_saved_label_map(Compose([]), {"a": 1}, str(tmp_path / "out")))
    logits = logits_of(torch.zeros(3, 4, dtype=torch.long), 2).to(dtype)
    steps({"image": image, "pred": logits})
    (tmp_path / "out/a.png").unlink()
    logits[1, 2, 3] = value
    with pytest.raises(Exception) as caught:
        steps({"image": image, "pred": logits})
    assert f"{tmp_path}/in/a.png: the network's output holds NaN or infinite" in str(find_user_error(caught.value))
    assert not list((tmp_path / "out").iterdir())


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
