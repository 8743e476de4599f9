"""Several checkpoints in one network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threads import threads

from scripts.common.errors import UserError
from scripts.engines.ensemble import Ensemble, checkpoint_paths, load_checkpoints, with_ensemble
from scripts.engines.inferers import InSlabs, sliding_window
from scripts.networks import LightMUNet


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def network(seed: int) -> LightMUNet:
    torch.manual_seed(seed)
    return LightMUNet(2, 1, 3, init_filters=8, backend="naive").eval()


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{seed}.pt") for seed in range(3)]
    for seed, path in enumerate(paths):
        state = network(seed).state_dict()
        torch.save({"network": state} if seed == 1 else state, path)
    return paths


@torch.no_grad()
def test_equals_the_mean_of_single_predictions(checkpoints: list[str]) -> None:
    image = torch.randn(1, 1, 24, 16)
    window = sliding_window([16, 16], tta=True, mirror_axes=[1], sw_batch_size=2)
    expected = torch.stack([window(image, network(seed)) for seed in range(3)]).mean(0)
    ensemble, own = with_ensemble(window, checkpoints), network(9)
    for _ in range(2):  # the second case starts from the last one's weights
        torch.testing.assert_close(ensemble(image, own), expected)
        (lazy,) = InSlabs(ensemble)(image, own)
        torch.testing.assert_close(torch.cat(list(lazy.slabs()), dim=1).movedim(1, lazy.axis + 1), expected[0])


@torch.no_grad()
def test_each_checkpoint_counts_in_half_precision(checkpoints: list[str]) -> None:
    """Autocast keeps the weights that it converted, also where others took their place meanwhile."""
    image = torch.randn(1, 1, 16, 16)
    window = sliding_window([16, 16])
    single = [network(seed).requires_grad_(True) for seed in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        result = with_ensemble(window, checkpoints)(image, network(9))
    each = []
    for member in single:
        with torch.autocast("cpu", torch.bfloat16):
            each.append(window(image, member))
    torch.testing.assert_close(result, torch.stack(each).mean(0))


def test_half_precision_is_added_in_single(checkpoints: list[str]) -> None:
    class Halves(LightMUNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.bfloat16()

    image = torch.rand(1, 1, 16, 16)
    logits = Ensemble(sliding_window([16, 16]), checkpoints)(image, Halves(2, 1, 3, init_filters=8))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, image.bfloat16().float())


def test_one_checkpoint_is_no_ensemble(checkpoints: list[str]) -> None:
    inferer = sliding_window([16, 16])
    assert with_ensemble(inferer, checkpoints[0]) is inferer and with_ensemble(inferer, checkpoints[:1]) is inferer
    assert isinstance(with_ensemble(inferer, checkpoints[:2]), Ensemble)


def test_paths() -> None:
    assert checkpoint_paths("a.pt") == ["a.pt"] and checkpoint_paths(Path("a.pt")) == ["a.pt"]
    assert checkpoint_paths("[a.pt, 'b.pt']") == checkpoint_paths(["a.pt", "b.pt"]) == ["a.pt", "b.pt"]
    for wrong, message in (([], "no file"), ("[]", "no file"), (["a.pt", "a.pt"], "a.pt twice")):
        with pytest.raises(UserError, match=message):
            checkpoint_paths(wrong)


def test_a_wrong_checkpoint_is_found_before_the_first_case(checkpoints: list[str], tmp_path: Path) -> None:
    own = network(9)
    load_checkpoints(own, checkpoints)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), network(0).state_dict().values()))
    with pytest.raises(UserError, match="there are no weights at"):
        load_checkpoints(own, [checkpoints[0], str(tmp_path / "missing.pt")])
    with pytest.raises(UserError, match="do not fit the network"):
        load_checkpoints(LightMUNet(2, 1, 4, init_filters=8), checkpoints)
