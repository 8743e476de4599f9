"""Sliding windows on a GPU: where the sums lie changes nothing, and what the GPU lacks the host holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from scripts.data.transforms import Preparation
from scripts.engines.ensemble import Ensemble
from scripts.engines.inferers import InSlabs, sliding_window
from scripts.inference import room
from scripts.postprocessing.label_maps import to_label_map

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

WINDOW = sliding_window([16, 16, 16], tta=True, mirror_axes=[0, 2])


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 5, 3, padding=1).eval()


def slabs_of(net: torch.nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Logits (classes, *spatial) put together from slabs, and where these were."""
    (lazy,) = InSlabs(WINDOW)(image[None], net)
    slabs = list(lazy.slabs())
    return torch.cat([slab.cpu() for slab in slabs], dim=1).movedim(1, lazy.axis + 1), [s.device.type for s in slabs]


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.rand(1, 20, 41, 17, generator=torch.Generator().manual_seed(0))


def test_the_gpu_the_host_and_both_agree(image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = slabs_of(network(), image)
    on_gpu, devices = slabs_of(network().cuda(), image.cuda())
    assert set(devices) == {"cuda"}
    torch.testing.assert_close(on_gpu, expected, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(room, "SHARE", 0)
    summed_on_host, devices = slabs_of(network().cuda(), image.cuda())
    assert set(devices) == {"cpu"}
    torch.testing.assert_close(summed_on_host, expected, atol=1e-4, rtol=1e-4)


def test_a_gpu_that_fills_up_meanwhile_stops_nothing(image: torch.Tensor) -> None:
    class Filling(torch.nn.Conv3d):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Filling.calls += 1
            if Filling.calls == 9:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    net = Filling(1, 5, 3, padding=1)
    net.load_state_dict(network().state_dict())
    result, devices = slabs_of(net.cuda(), image.cuda())
    assert devices[0] == "cuda" and devices[-1] == "cpu"
    torch.testing.assert_close(result, slabs_of(network(), image)[0], atol=1e-4, rtol=1e-4)


def test_labels_agree(image: torch.Tensor) -> None:
    affine = torch.diag(torch.tensor([-0.7, 1.1, 2.0, 1.0], dtype=torch.float64))
    steps = Compose(Preparation(3, 1, {}, spacing=[1.0, 1.0, 1.0]).transforms("image").transforms[1:])  # not to load
    case = steps({"image": MetaTensor(image, affine=affine, meta={"filename_or_obj": "a", "spacing_known": True})})
    results = []
    for device in ("cpu", "cuda"):
        (pred,) = InSlabs(WINDOW)(case["image"][None].to(device), network().to(device))
        post = Compose(to_label_map(steps, {f"c{value}": value for value in range(1, 5)}, probabilities_key="p"))
        results.append(post({**case, "pred": pred}))
    assert results[1]["pred"].device.type == "cpu" and results[1]["pred"].shape == image.shape
    assert (results[0]["pred"] == results[1]["pred"]).float().mean() > 0.999
    torch.testing.assert_close(results[0]["p"].as_tensor(), results[1]["p"].as_tensor(), atol=1e-4, rtol=0)


def test_each_checkpoint_counts_in_bfloat16(image: torch.Tensor, tmp_path: Path) -> None:
    nets = [network() for _ in range(3)]
    for number, net in enumerate(nets):
        torch.nn.init.normal_(net.weight, generator=torch.Generator().manual_seed(number))
        torch.save(net.state_dict(), tmp_path / f"{number}.pt")
    ensemble = Ensemble(WINDOW, [tmp_path / f"{number}.pt" for number in range(3)])
    singles = []
    for net in nets:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            singles.append(WINDOW(image[None].cuda(), net.cuda())[0])
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        together = ensemble(image[None].cuda(), network().cuda())[0]
        (lazy,) = InSlabs(ensemble)(image[None].cuda(), network().cuda())
    expected = torch.stack(singles).mean(0)
    torch.testing.assert_close(together, expected, atol=1e-2, rtol=1e-2)
    slabs = torch.cat(list(lazy.slabs()), dim=1).movedim(1, lazy.axis + 1)
    torch.testing.assert_close(slabs, expected, atol=1e-2, rtol=1e-2)
