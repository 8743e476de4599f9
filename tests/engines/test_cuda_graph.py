"""Recording the training pass: nothing on a CPU, the same training on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer

from scripts.common.errors import UserError
from scripts.engines.cuda_graph import RecordCudaGraph
from scripts.networks import LightMUNet

SHAPE = (2, 1, 16, 16)


def smooth_network() -> torch.nn.Module:
    """Without kinks, at which rounding would decide how training goes on."""
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 2, 1))


def lightm_unet() -> torch.nn.Module:
    return LightMUNet(2, 1, 2, init_filters=8)


def train(
    device: str,
    enabled: bool | str,
    amp: bool = False,
    make: Callable[[], torch.nn.Module] = smooth_network,
    **trainer: Any,
) -> list[float]:
    """The losses of five iterations, and of one more after an evaluation of another shape."""
    torch.manual_seed(0)
    network = make().to(device)
    batches = [{"image": torch.randn(SHAPE), "label": torch.randint(2, (2, 1, 16, 16)).float()} for _ in range(6)]
    losses: list[float] = []

    def loss_function(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(pred.float(), label[:, 0].long())
        losses.append(loss.item())
        return loss

    def run(data: list[dict[str, torch.Tensor]]) -> None:
        SupervisedTrainer(
            device=torch.device(device),
            max_epochs=1,
            train_data_loader=data,
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), 0.1),
            loss_function=loss_function,
            train_handlers=[RecordCudaGraph(enabled, 1, SHAPE[2:], SHAPE[0])],
            decollate=False,
            amp=amp,
            amp_kwargs={"dtype": torch.bfloat16},
            **trainer,
        ).run()

    run(batches[:5])
    with torch.no_grad():
        network.eval()(torch.zeros(1, 1, 24, 8, device=device))
    enabled = False  # recorded already
    run(batches[5:])
    return losses


@pytest.mark.parametrize("enabled", [True, "false"])
def test_does_nothing_on_a_cpu(enabled: bool | str) -> None:
    assert train("cpu", enabled) == train("cpu", False)


def test_a_word_that_is_no_flag() -> None:
    with pytest.raises(UserError, match="enabled must be true or false, not 'perhaps'"):
        RecordCudaGraph("perhaps", 1, (16, 16), 2)


def test_training_batches_of_another_shape_are_refused() -> None:
    network, other = smooth_network(), torch.zeros(1, *SHAPE[1:])
    network.register_forward_pre_hook(RecordCudaGraph(True, 1, SHAPE[2:], SHAPE[0])._check_shape)
    network(torch.zeros(SHAPE))
    with pytest.raises(UserError, match=r"recorded for batches of shape \(2, 1, 16, 16\), but got \(1, 1, 16, 16\)"):
        network(other)
    network.eval()(other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", [False, True])
def test_trains_as_without(amp: bool) -> None:
    eager, recorded = train("cuda", False, amp), train("cuda", True, amp)
    assert recorded == pytest.approx(eager, rel=1e-3 if amp else 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", [False, True])
def test_lightm_unet_trains_as_without(amp: bool) -> None:
    eager, recorded = (train("cuda", enabled, amp, lightm_unet) for enabled in (False, True))
    # From the fourth loss on, differences of 1e-6 in the gradients (upsampling's backward uses atomics) grow to 1e-2:
    # where a value sits on a ReLU's kink or two are equal to a max-pool, rounding decides where the gradient goes.
    assert recorded[:3] == pytest.approx(eager[:3], rel=5e-3)
    assert recorded == pytest.approx(eager, rel=5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_parameters_that_take_no_part_are_no_obstacle() -> None:
    def make() -> torch.nn.Module:
        network = smooth_network()
        network.add_module("unused", torch.nn.Identity())
        network.unused.weight = torch.nn.Parameter(torch.ones(3))
        return network

    assert train("cuda", True, make=make) == pytest.approx(train("cuda", False, make=make), rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_cannot_be_recorded_is_said() -> None:
    class Reads(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1 + float(self.weight.sum()) * 0)  # waits for the GPU

    with pytest.raises(UserError, match=r"cuda_graph: the network cannot be recorded \(.*--cuda_graph false"):
        train("cuda", True, make=lambda: Reads(1, 2, 1))
    assert torch.rand(3, device="cuda").isfinite().all()  # the next training of this process draws again


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sums_over_batches_are_refused() -> None:
    with pytest.raises(UserError, match="cuda_graph: accumulation_steps must be 1"):
        train("cuda", True, accumulation_steps=2)
