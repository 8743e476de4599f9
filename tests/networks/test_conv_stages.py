"""The network with convolutions in its finest stages; its steps on a GPU stand in test_channels_last.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

from scripts.networks import LightMUNet, VSSLayer
from scripts.networks.conv_stages import ConvDecoderStage, DenseBlock
from scripts.networks.stages import DecoderStage, ResidualVSSBlock

SMALL = {"blocks_down": (1, 1, 2), "blocks_up": (1, 1)}


def parts(net: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in net.modules() if isinstance(part, kind)]


@pytest.mark.parametrize("conv_stages", [0, 1, 2, 3])
def test_which_stages_hold_what(conv_stages: int) -> None:
    with torch.device("meta"):
        net = LightMUNet(3, 1, 3, 8, conv_stages=conv_stages)
    blocks = (1, 2, 2, 4)
    for number, stage in enumerate(net.encoder):
        kind = DenseBlock if number < conv_stages else ResidualVSSBlock
        assert [type(block) for block in stage.blocks] == [kind] * blocks[number]
    assert [type(stage) for stage in net.decoder] == [DecoderStage] * (3 - conv_stages) + [
        ConvDecoderStage
    ] * conv_stages
    of_blocks = 2 * sum(blocks[conv_stages:])
    assert len(parts(net, VSSLayer)) == of_blocks + (0 if conv_stages else 3)  # the paper also pools through three


@pytest.mark.parametrize("conv_stages", [-1, 3, 4])
def test_a_stage_of_vss_blocks_is_left(conv_stages: int) -> None:
    with pytest.raises(ValueError, match="conv_stages must be 0 to 2"):
        LightMUNet(2, 1, 2, 8, conv_stages=conv_stages, **SMALL)


@pytest.mark.parametrize(("size", "strides"), [((8, 12), None), ((8, 4, 8), None), ((3, 8, 4), [(1, 2, 2), (1, 2, 1)])])
def test_every_weight_learns(size: tuple[int, ...], strides: list[tuple[int, ...]] | None) -> None:
    torch.manual_seed(0)
    net = LightMUNet(len(size), 2, 3, 8, conv_stages=2, strides=strides, norm_bias=1.0, stem="full", **SMALL)
    y = net(torch.randn(2, 2, *size))
    assert y.shape == (2, 3, *size)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_inference_is_training_without_gradients() -> None:
    """The layouts and the forms of the VSS layers differ."""
    torch.manual_seed(0)
    net, x = LightMUNet(3, 1, 3, 8, conv_stages=1, **SMALL), torch.randn(1, 1, 8, 12, 8)
    with torch.no_grad():
        quick = net(x)
    torch.testing.assert_close(quick, net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_layout_throughout(channels: int) -> None:
    """Also behind a stem of one channel, which lies both ways."""
    net, layouts = LightMUNet(3, channels, 2, 8, conv_stages=2, stem="full", **SMALL), []
    for stage in (*net.encoder, *net.decoder):
        stage.register_forward_hook(lambda module, inputs, output: layouts.append(output))
    with torch.no_grad():
        net(torch.randn(1, channels, 8, 12, 8))
    assert len(layouts) == 5 and all(x.is_contiguous(memory_format=torch.channels_last_3d) for x in layouts)


def test_recomputed_stages_are_the_same() -> None:
    torch.manual_seed(0)
    plain = LightMUNet(2, 1, 3, 8, conv_stages=1, **SMALL)
    again = LightMUNet(2, 1, 3, 8, conv_stages=1, use_checkpoint=True, **SMALL)
    again.load_state_dict(plain.state_dict())
    x, gradients = torch.randn(2, 1, 8, 8), []
    for net in (plain, again):
        gradients.append(torch.autograd.grad(net(x).square().sum(), tuple(net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_only_vss_blocks_are_left_out() -> None:
    net = LightMUNet(2, 1, 2, 8, conv_stages=1, drop_path=0.3, **SMALL)
    assert [block.drop_path.drop_prob for block in parts(net, ResidualVSSBlock)] == pytest.approx([0.1, 0.2, 0.3])


def test_the_message_of_the_papers_weights_says_what_takes_them() -> None:
    paper, default = LightMUNet(2, 3, 2, 8), LightMUNet(2, 3, 2, 8, conv_stages=3)
    with pytest.raises(ValueError, match="conv_stages=0"):
        default.load_reference_state_dict(paper.state_dict())
