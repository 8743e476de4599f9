"""The loss: MONAI's where every voxel has a label, and blind to the others."""

from __future__ import annotations

import monai.losses
import pytest
import torch

from scripts.engines.losses import DiceCELoss


@pytest.mark.parametrize("shape", [(9, 8), (5, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_equals_monais(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, *shape, requires_grad=True)
    label = torch.randint(4, (3, 1, *shape))
    label[0][label[0] == 2] = 0  # a class that one image lacks
    ours = DiceCELoss()(logits, label.to(dtype))
    theirs = monai.losses.DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(logits, label)
    assert torch.allclose(ours, theirs, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_ignored_voxels_do_not_count() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 1, 8, 8))
    masked = label.clone()
    masked[:, :, 5:] = -1
    logits.requires_grad_()
    loss = DiceCELoss()(logits, masked)
    assert torch.allclose(loss, DiceCELoss()(logits[:, :, :5], label[:, :, :5]), atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, :, 5:].any() and gradient[:, :, :5].any()


def test_batch_dice_counts_the_images_as_one() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(3, 3, 6, 5), torch.randint(3, (3, 1, 6, 5))
    side_by_side = torch.cat(list(logits), dim=-1)[None], torch.cat(list(label), dim=-1)[None]
    assert torch.allclose(DiceCELoss(batch=True)(logits, label), DiceCELoss()(*side_by_side), atol=1e-6)
    assert not torch.allclose(DiceCELoss(batch=True)(logits, label), DiceCELoss()(logits, label), atol=1e-4)


def test_nothing_labelled_is_no_error() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = DiceCELoss()(logits, torch.full((1, 1, 4, 4), -1))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and not gradient.any()


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    logits, label = torch.randn(1, 2, 64, 64).bfloat16(), torch.randint(2, (1, 1, 64, 64))
    assert torch.equal(DiceCELoss()(logits, label), DiceCELoss()(logits.float(), label))
    with pytest.raises(ValueError, match="does not fit"):
        DiceCELoss()(logits, label[0])
