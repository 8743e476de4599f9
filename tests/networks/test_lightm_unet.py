"""LightMUNet against the authors' network: parameters, forward pass and gradients."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.networks import LightMUNet
from scripts.networks.reference_weights import from_reference, read_reference_checkpoint
from scripts.ops.selective_scan import backend_report

PARITY = Path(__file__).parents[1] / "parity"
# spatial_dims, in_channels, out_channels, init_filters -> parameters (counted on the authors' code)
PARAMETERS = {
    (2, 3, 2, 8): 380_821,
    (2, 3, 2, 16): 1_342_965,
    (2, 3, 2, 32): 5_011_765,
    (3, 1, 3, 8): 381_822,
    (3, 1, 3, 16): 1_344_966,
    (3, 1, 3, 32): 5_015_766,
}


@pytest.fixture(params=["2d", "3d"])
def reference(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    """What the authors' network computed with its CUDA scan."""
    with np.load(PARITY / f"lightmunet_{request.param}.npz") as arrays:
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def reference_state(reference: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len("state/") :]: value for name, value in reference.items() if name.startswith("state/")}


def reference_gradient_norms(reference: dict[str, torch.Tensor], net: LightMUNet) -> dict[str, float]:
    """Each parameter's gradient norm under our names."""
    shapes = net.state_dict()
    norms = {k[len("gradnorm/") :]: v for k, v in reference.items() if k.startswith("gradnorm/")}
    # from_reference checks shapes, so each norm travels in a tensor of its parameter's shape
    filled = {k: v.float().expand(reference[f"state/{k}"].shape) for k, v in norms.items()}
    return {name: float(value.flatten()[0]) for name, value in from_reference(filled, shapes).items()}


def build(reference: dict[str, torch.Tensor], **kwargs: object) -> LightMUNet:
    dims = reference["input"].ndim - 2
    net = LightMUNet(dims, reference["input"].shape[1], reference["output"].shape[1], 8, **kwargs)
    net.load_reference_state_dict(reference_state(reference))
    return net


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.detach() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("arguments", "count"), PARAMETERS.items())
def test_parameter_count(arguments: tuple[int, ...], count: int) -> None:
    assert sum(p.numel() for p in LightMUNet(*arguments).parameters()) == count


@pytest.mark.parametrize(("dims", "filter_size"), [(2, 9), (3, 27)])
def test_a_full_stem_has_a_filter_per_channel(dims: int, filter_size: int) -> None:
    separable, full = (LightMUNet(dims, 2, 3, 8, stem=stem) for stem in ("separable", "full"))
    count = [sum(p.numel() for p in net.parameters()) for net in (separable, full)]
    assert count[1] - count[0] == 2 * 8 * filter_size - (2 * filter_size + 2 * 8)
    x = torch.zeros(1, 2, *[8] * dims)
    x[(0, 1, *[4] * dims)] = 1
    channels = full.stem(x)[0].flatten(1)
    assert torch.linalg.matrix_rank(channels) == 8
    assert torch.linalg.matrix_rank(separable.stem(x)[0].flatten(1)) == 1
    with pytest.raises(ValueError, match="stem must be separable or full, not 'dense'"):
        LightMUNet(dims, 2, 3, 8, stem="dense")


def test_spread_biases_let_the_first_scan_see_how_bright_a_voxel_is() -> None:
    """With equal thresholds the tokens of intensities of one sign are one and the same, after their LayerNorm."""

    def directions(norm_bias: float) -> torch.Tensor:
        torch.manual_seed(0)
        net = LightMUNet(2, 1, 2, 8, norm=("GROUP", {"num_groups": 1}), norm_bias=norm_bias)
        tokens: list[torch.Tensor] = []
        net.encoder[0].blocks[0].vss1.mamba.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
        x = torch.zeros(1, 1, 8, 8)
        x[..., ::4, ::4] = torch.tensor([[1.0, 2], [-1, -2]])  # apart, each alone in its filters' windows
        with torch.no_grad(), torch.enable_grad():
            net(x)
        return tokens[0].detach()[0].view(8, 8, -1)

    plain, spread = directions(0), directions(1)
    assert torch.allclose(plain[0, 0], plain[0, 4], atol=0.05)
    assert not torch.allclose(spread[0, 0], spread[0, 4], atol=0.2)


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_agrees_with_the_reference(reference: dict[str, torch.Tensor], use_checkpoint: bool) -> None:
    net = build(reference, use_checkpoint=use_checkpoint)
    x = reference["input"].clone().requires_grad_()
    y = net(x)
    y.backward(reference["output_grad"])
    assert relative_error(y, reference["output"]) < 1e-4
    # The 3D case sits on ReLU kinks: on a CPU, float32 and float64 of this very network differ by 1 % in its
    # gradient. On a GPU, where the reference was made, it agrees to 3e-4 (tested there).
    tolerance = 1e-3 if net.spatial_dims == 2 else 5e-2
    assert relative_error(x.grad, reference["input_grad"]) < tolerance
    expected = reference_gradient_norms(reference, net)
    norms = torch.stack([p.grad.norm() for p in net.parameters()])
    assert relative_error(norms, torch.tensor([expected[n] for n, _ in net.named_parameters()])) < tolerance


def test_gradients_are_exact_in_float64(reference: dict[str, torch.Tensor]) -> None:
    def gradients(backend: str) -> list[torch.Tensor]:
        net = build(reference, backend=backend).double()
        corner = (..., *(slice(8) for _ in range(net.spatial_dims)))  # naive is slow
        net(reference["input"][corner].double()).backward(reference["output_grad"][corner].double())
        return [p.grad for p in net.parameters()]

    for ours, expected in zip(gradients("chunked"), gradients("naive"), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-9 * float(reference["output_grad"].norm()))


def test_naive_and_chunked_backends_agree(reference: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        x = reference["input"][..., :16, :16].double()  # in float32 the layers' rounding alone comes to 3e-5
        outputs = [build(reference, backend=backend).double()(x) for backend in ("naive", "chunked")]
    assert relative_error(*outputs) < 1e-12


@pytest.mark.parametrize("numpy_version", [1, 2])
def test_takes_a_whole_nnunet_checkpoint_of_a_wrapped_network(
    reference: dict[str, torch.Tensor], tmp_path: Path, numpy_version: int
) -> None:
    weights = {f"module.{name}": value for name, value in reference_state(reference).items()}
    logging = {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(1)]}
    checkpoint = {"network_weights": weights, "logging": logging, "_best_ema": np.float64(0.5), "current_epoch": 1}
    torch.save(checkpoint | {"trainer_name": "nnUNetTrainerLightMUNet"}, tmp_path / "checkpoint_best.pth")
    if numpy_version == 1:  # which nearly all of the authors' users had
        with zipfile.ZipFile(tmp_path / "checkpoint_best.pth") as new:
            files = {name: new.read(name) for name in new.namelist()}
        with zipfile.ZipFile(tmp_path / "checkpoint_best.pth", "w") as old:
            for name, content in files.items():
                old.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    expected = build(reference)
    net = LightMUNet(expected.spatial_dims, expected.in_channels, reference["output"].shape[1], 8)
    net.load_reference_state_dict(read_reference_checkpoint(tmp_path / "checkpoint_best.pth"))
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_weights_that_do_not_fit_are_listed(reference: dict[str, torch.Tensor]) -> None:
    state = reference_state(reference)
    state.pop("convInit.0.conv.weight")
    state["surplus.weight"] = torch.zeros(1)
    net = LightMUNet(reference["input"].ndim - 2, reference["input"].shape[1], 7, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing: stem\.0(.|\n)*unknown: surplus(.|\n)*head\.2\.1.*has shape"):
        net.load_reference_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_no_nan(reference: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    net = build(reference)
    with torch.autocast("cpu", dtype=dtype):
        y = net(reference["input"][..., :16, :16])  # small: CPUs emulate half precision
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton", "chunked", "mamba_ssm"])
def test_agrees_with_the_reference_on_the_gpu(reference: dict[str, torch.Tensor], backend: str) -> None:
    if reason := backend_report("cuda")[backend] if torch.cuda.is_available() else "no CUDA device":
        pytest.skip(reason)
    torch.backends.cudnn.allow_tf32 = False
    net = build(reference, backend=backend).cuda()
    x = reference["input"].cuda().requires_grad_()
    y = net(x)
    y.backward(reference["output_grad"].cuda())
    assert relative_error(y.cpu(), reference["output"]) < 1e-4
    # The fused layers round otherwise than the reference did: on the ReLU kinks, that counts as on a CPU.
    fused = backend in ("cuda", "triton")
    tolerance = {2: 5e-3, 3: 5e-2}[net.spatial_dims] if fused else 1e-3
    assert relative_error(x.grad.cpu(), reference["input_grad"]) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_autocast_gives_no_nan(reference: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = build(reference).cuda()
    with torch.autocast("cuda", dtype=dtype):
        y = net(reference["input"].cuda())
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert relative_error(y.float().cpu(), reference["output"]) < 0.25


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 60, 64), r"multiple of 8.*\(60, 64\)"),
        ((1, 1, 64, 64), r"3 input channel\(s\).*got 1"),
        ((1, 3, 64, 64, 64), r"spatial_dims=2.*\(1, 3, 64, 64, 64\)"),
    ],
)
def test_unsuitable_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LightMUNet(2, 3, 2, 8)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
        ({"blocks_up": (1, 1)}, "one entry fewer"),
        ({"norm": "BATCH", "use_checkpoint": True}, "use_checkpoint would update the running statistics"),
        ({"norm": ("instance", {"track_running_stats": True}), "use_checkpoint": True}, "running statistics"),
        ({"scan_order": "spiral"}, "scan_order must be one of raster, alternating, axes, bidirectional, not 'spiral'"),
        ({"strides": [(2, 2), (2, 2)]}, "3 entries of 2 numbers"),
        ({"strides": [(2, 2), (2, 4), (2, 2)]}, "each 1 or 2"),
        ({"strides": [(2, 1), (2, 2), (2, 2)], "upsample_mode": "pixelshuffle"}, "pixelshuffle"),
    ],
)
def test_unsuitable_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LightMUNet(**({"spatial_dims": 2, "in_channels": 1, "out_channels": 2} | arguments))


@pytest.mark.parametrize("size", [(12, 16), (8, 12, 16)])
def test_a_traced_file_runs_in_another_process_with_gradients_on(tmp_path: Path, size: tuple[int, ...]) -> None:
    """As ckpt_export traces it. Gradients are on unless somebody turns them off."""
    net = LightMUNet(len(size), 2, 3, 8, blocks_down=(1, 1), blocks_up=(1,), scan_order="axes", norm_bias=1.0).eval()
    x = torch.rand(1, 2, *size)
    with torch.no_grad():
        torch.jit.trace(net, x, check_trace=False).save(str(tmp_path / "net.ts"))
        torch.save((2 * x, net(2 * x)), tmp_path / "pair.pt")
    code = (
        "import torch\n"
        "x, expected = torch.load('pair.pt')\n"
        "y = torch.jit.load('net.ts')(x)\n"
        "torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)\n"
        "assert not y.requires_grad, 'some of the gradients would be missing'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_depths_and_dropout() -> None:
    net = LightMUNet(2, 1, 2, 8, blocks_down=(1, 1), blocks_up=(2,), dropout_prob=0.5, upsample_mode="deconv")
    assert net(torch.rand(2, 1, 6, 10)).shape == (2, 2, 6, 10)


def test_strides_leave_a_thin_axis_alone() -> None:
    net = LightMUNet(3, 1, 2, 8, strides=[(2, 2, 1), (2, 2, 1), (2, 2, 2)])
    assert net.size_multiples == (8, 8, 2)
    sizes = []
    for stage in net.encoder:
        stage.register_forward_hook(lambda _module, _input, output: sizes.append(tuple(output.shape[2:])))
    assert net(torch.rand(1, 1, 16, 24, 6)).shape == (1, 2, 16, 24, 6)
    assert sizes == [(16, 24, 6), (8, 12, 6), (4, 6, 6), (2, 3, 3)]
    with pytest.raises(ValueError, match=r"multiple of \(8, 8, 2\), but got \(16, 16, 3\)"):
        net(torch.zeros(1, 1, 16, 16, 3))


def test_strides_of_two_are_the_default() -> None:
    torch.manual_seed(0)
    default = LightMUNet(2, 1, 2, 8)
    torch.manual_seed(0)
    spelled_out = LightMUNet(2, 1, 2, 8, strides=[(2, 2)] * 3)
    x = torch.rand(1, 1, 16, 16)
    assert default.size_multiples == (8, 8)
    assert torch.equal(default(x), spelled_out(x))


def test_step_sizes_start_between_their_bounds() -> None:
    for name, module in LightMUNet(2, 1, 2, 32).named_modules():
        if name.endswith("mamba"):
            dt = torch.nn.functional.softplus(module.dt_proj.bias)
            assert dt.min() >= 1e-3 * 0.99 and dt.max() <= 1e-1 * 1.01


def test_spread_biases_are_for_group_norm() -> None:
    with pytest.raises(ValueError, match="norm_bias is for GroupNorm"):
        LightMUNet(2, 1, 2, 8, norm="BATCH", norm_bias=1.0)
    with pytest.raises(ValueError, match="norm_bias must be 0 or more, not -1"):
        LightMUNet(2, 1, 2, 8, norm_bias=-1)


def test_stochastic_depth_leaves_out_later_blocks_more_often() -> None:
    torch.manual_seed(0)
    net = LightMUNet(2, 1, 2, 8, blocks_down=(1, 2), blocks_up=(1,), drop_path=0.6)
    sums: list[tuple[torch.Tensor, torch.Tensor]] = []
    for stage in net.encoder:
        for block in stage.blocks:
            block.drop_path.register_forward_hook(lambda _, given, result: sums.append((given[0], result)))
    with torch.no_grad():
        net(torch.randn(500, 1, 8, 8))
    for expected, (before, after) in zip([0.2, 0.4, 0.6], sums, strict=True):
        left_out = (after == 0).flatten(1).all(1)
        assert float(left_out.float().mean()) == pytest.approx(expected, abs=0.07)
        assert torch.allclose(after[~left_out], before[~left_out] / (1 - expected))

    plain = LightMUNet(2, 1, 2, 8, blocks_down=(1, 2), blocks_up=(1,))
    plain.load_state_dict(net.state_dict())  # no weight more
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    for wrong in (1, -0.1):
        with pytest.raises(ValueError, match="drop_path must be 0 or more and below 1"):
            LightMUNet(2, 1, 2, 8, drop_path=wrong)


@pytest.mark.parametrize("shape", [(0, 1, 16, 16), (1, 1, 0, 16)])
def test_nothing_is_no_image(shape: tuple[int, ...]) -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="at least one image of at least one voxel"):
        LightMUNet(2, 1, 2, 8)(torch.zeros(shape))
