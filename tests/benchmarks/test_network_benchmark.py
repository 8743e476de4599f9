"""The network benchmark at tiny sizes, and its reference structure against our network."""

from __future__ import annotations

import json
from pathlib import Path

import network_candidates
import networks as benchmark
import pytest
import torch
from reference_lightm_unet import ReferenceLightMUNet

from scripts.networks import LightMUNet
from scripts.networks.vss import Mamba

SMALL = ["lightm_unet:chunked,init_filters=8", "reference:chunked,init_filters=8", "segresnet:init_filters=8"]


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    options = ["--shapes", "1x1x8x8x8", "--modes", "train", "forward", "--rounds", "1", "--no-memory"]
    benchmark.main(["--networks", *SMALL, "nonsense", *options, "--json", str(results)])
    printed = capsys.readouterr().out
    rows = json.loads(results.read_text())["rows"]
    assert [row["network"] for row in rows] == [*SMALL, "nonsense"]
    for row in rows[:-1]:
        assert "failed" not in row and row["train_ms"] > 0 and row["forward_ms"] > 0
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert "unknown network 'nonsense'" in rows[-1]["failed"]
    assert f"| times as fast as {SMALL[1]} |" in printed
    assert "| - |" in next(line for line in printed.splitlines() if line.startswith("| nonsense"))
    benchmark.main(["--from-json", str(results)])
    assert capsys.readouterr().out == printed


def test_memory_of_a_fresh_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--networks", "segresnet", "--shapes", "1x1x64x64", "--rounds", "1", "--json", str(tmp_path / "r.json")]
    benchmark.main(options)
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert "failed" not in row
    assert row["peak_bytes"]["forward"] > 4 * row["parameters"]


def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--profile", SMALL[2], "nonsense", "--shapes", "1x1x16x16"])
    printed = capsys.readouterr().out
    assert "| aten::" in printed and "100 %" in printed
    assert "failed: ValueError: unknown network 'nonsense'" in printed


@pytest.mark.parametrize("dims", [2, 3])
def test_reference_structure_is_our_network(dims: int) -> None:
    torch.manual_seed(0)
    ours = LightMUNet(dims, 2, 3, init_filters=8, backend="naive").eval()
    reference = ReferenceLightMUNet(dims, 2, 3, 8, lambda width: Mamba(width, backend="naive")).eval()
    reference.load_state_dict(ours.state_dict())
    image = torch.randn(1, 2, *[8] * dims)
    with torch.no_grad():
        torch.testing.assert_close(reference(image), ours(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "dims"), [("2x3x512x512", 2), ("2x1x80x128x128", 3), ("2x3x512", None), ("2x3x512xx", None)]
)
def test_shapes(text: str, dims: int | None) -> None:
    if dims is None:
        with pytest.raises(benchmark.argparse.ArgumentTypeError, match="is not BATCH"):
            network_candidates.parse_shape(text)
    else:
        shape = network_candidates.parse_shape(text)
        assert shape.dims == dims and str(shape) == text


def test_plain_conv_unet_has_the_size_of_nnunets_plans() -> None:
    sizes = []
    for text, options in (("1x3x512x512", ""), ("1x1x80x128x128", ""), ("1x1x80x128x128", ":stages=6")):
        network = network_candidates.build(f"plain_conv_unet{options}", network_candidates.parse_shape(text))
        sizes.append(sum(p.numel() for p in network.parameters()))
    assert sizes == [46_325_134, 16_548_076, 30_786_799]


def test_committed_records_count_the_parameters_of_their_networks() -> None:
    records = sorted((Path(benchmark.__file__).parent / "results").glob("networks*.json"))
    assert records
    for path in records:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            # On mamba-ssm, which need not be here, the reference has the same weights as on our scan.
            spec = "reference:chunked" if row["network"] == "reference" else row["network"]
            with torch.device("meta"):
                network = network_candidates.build(spec, network_candidates.parse_shape(row["shape"]))
            assert sum(p.numel() for p in network.parameters()) == row["parameters"], (path.name, row["network"])
