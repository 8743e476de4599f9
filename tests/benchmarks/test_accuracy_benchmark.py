"""The accuracy benchmark: the networks it makes, the split of the lung X-rays, and its tables."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import accuracy
import accuracy_compare
import accuracy_figure
import pytest
import torch
from accuracy_networks import BUILDERS, DeepLoss, Task, build, nnunet_stages, parse_spec
from accuracy_records import load_records
from lung_split import split
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("task", "features", "smallest"),
    [
        (Task(3, 1, 3, (40, 56, 40)), [32, 64, 128, 256], (5, 7, 5)),  # as nnU-Net plans the hippocampus
        (Task(2, 1, 2, (512, 512)), [32, 64, 128, 256, 512, 512, 512, 512], (4, 4)),
        (Task(3, 1, 2, (128, 128, 16)), [32, 64, 128, 256, 320, 320], (4, 4, 4)),
    ],
)
def test_stages_by_nnunets_rule(task: Task, features: list[int], smallest: tuple[int, ...]) -> None:
    widths, strides = nnunet_stages(task)
    assert widths == features and strides[0] == (1,) * task.spatial_dims
    size = torch.tensor(task.patch_size)
    for stride in strides:
        size //= torch.tensor(stride)
    assert tuple(size.tolist()) == smallest


@pytest.mark.parametrize("name", ["lightm_unet", "plain_conv_unet", "residual_encoder_unet", "segresnet", "dynunet"])
@pytest.mark.parametrize("patch", [(32, 48), (16, 24, 16)])
def test_every_network_fits_a_task(name: str, patch: tuple[int, ...]) -> None:
    options = {"init_filters": 8} if name in ("lightm_unet", "segresnet") else {}
    network = build(name, len(patch), 2, 3, list(patch), **options).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 2, *patch)).shape == (1, 3, *patch)


def test_lung_split_is_stratified_and_the_shipped_one() -> None:
    names = [
        f"{hospital}_{i:04}_{i % 2}" for hospital, count in (("MCUCXR", 40), ("CHNCXR", 100)) for i in range(count)
    ]
    parts = split(names)
    assert sorted(name for members in parts.values() for name in members) == sorted(names)
    assert {part: len(members) for part, members in parts.items()} == {"train": 98, "validation": 14, "test": 28}
    assert sum(name.startswith("MCUCXR") for name in parts["test"]) == 8
    assert sum(name.endswith("_1") for name in parts["test"]) == 14
    validation, test = json.loads((ROOT / "bundle/configs/tasks/lung_xray_splits.json").read_text())
    everything = [*validation["train"], *validation["val"], *test["val"]]
    assert split(everything) == {"train": validation["train"], "validation": validation["val"], "test": test["val"]}
    assert test["train"] == validation["train"]


def test_the_table_counts_every_case_once_and_skips_undefined_scores() -> None:
    def record(fold: str, cases: dict[str, float | None]) -> dict:
        scores = {name: {"a": {"dice": dice, "hd95": None if dice is None else 2.0}} for name, dice in cases.items()}
        common = {"task": "t", "budget": "10it", "network": "n", "variant": "", "seed": 0, "iterations": 10}
        return common | {
            "fold": fold,
            "parameters": 5,
            "train_seconds": 60,
            "scores": {"tta": scores, "no_tta": scores},
        }

    records = [record("0", {"x": 0.8, "y": None}) | {"gone": ["a feature"]}, record("1", {"z": 0.9})]
    row = "| n | 5 | 10 | 2 x 1 | 3 | 60 | - | 0.8500 ± 0.0707 | 0.8500 ± 0.0707 | 2.00 ± 0.00 | a feature |"
    assert row in accuracy.summary(records)


def test_the_table_shows_a_training_that_lost_its_way() -> None:
    def column(*losses: list[float]) -> str:
        return accuracy._highest_rise([{"losses": values} for values in losses])

    assert column([1.0, 0.5, 0.6, 0.2, 0.7, 0.3], [1.0, 0.9]) == "3.50"
    assert column([1.0, 0.01, 0.2]) == "2.00", "a tiny loss counts as 0.1"
    assert accuracy._highest_rise([{"losses": [1.0, 0.9]}, {}]) == "-"
    assert column([1.0]) == "-", "nothing to rise from"


@pytest.mark.parametrize(
    ("spec", "order"), [("lightm_unet:scan_order=bidirectional", "bidirectional"), ("lightm_unet", "raster")]
)
def test_weights_are_scored_with_the_order_that_their_network_scans_in(spec: str, order: str) -> None:
    paths = {"dataset_dir": Path("data"), "run_dir": Path("runs"), "num_workers": 0, "splits": None, "set": []}
    settings = accuracy.config_settings(Namespace(**paths), {}, spec, "0", 0)
    assert settings["scan_order"] == order


def scored(network: str, fold: str, cases: dict[str, float | None], seed: int = 0) -> dict:
    scores = {"tta": {name: {"a": {"dice": dice}} for name, dice in cases.items()}}
    return {"network": network, "variant": "", "fold": fold, "seed": seed, "scores": scores}


def test_rows_are_compared_case_by_case() -> None:
    first = [
        scored("n", "0", {"x": 0.8, "y": 0.7}),
        scored("n", "0", {"x": 0.9, "y": 0.7}, seed=1),
        scored("n", "1", {"w": 0.5, "undefined": None}),
    ]
    second = [
        scored("m", "0", {"x": 0.8, "y": 0.6, "z": 0.1}),
        scored("m", "1", {"w": 0.6, "undefined": 0.9}),
        scored("m", "2", {"v": 0.0}),
    ]
    lines = accuracy_compare.comparison(first, second).splitlines()
    assert lines[-3] == "| 0 | 2 | 0.7750 | 0.7000 | +0.0750 ± 0.0250 |"
    assert lines[-2] == "| 1 | 1 | 0.5000 | 0.6000 | -0.1000 |"
    assert lines[-1] == "| 0, 1 | 3 | 0.6833 | 0.6667 | +0.0167 ± 0.0601 |"


def test_a_comparison_needs_two_rows_that_share_cases() -> None:
    with pytest.raises(ValueError, match="share no held-out case"):
        accuracy_compare.comparison([scored("n", "0", {"x": 0.8})], [scored("m", "1", {"y": 0.6})])


def test_a_row_is_one_of_a_task_and_budget() -> None:
    record = scored("n", "0", {"x": 0.8}) | {"task": "t", "budget": "5it"}
    assert accuracy_compare.row([record], "t", "5it", "n") == [record]
    with pytest.raises(ValueError, match="no row of t, 9it, is named 'n'"):
        accuracy_compare.row([record], "t", "9it", "n")


def test_committed_records_name_no_place_on_a_machine() -> None:
    records = load_records()
    assert records
    for record in records:
        assert not set(record["settings"]) & set(accuracy.OF_THIS_MACHINE)
        assert "/home/" not in json.dumps(record) and "/tmp" not in json.dumps(record)


def test_stochastic_depth_and_deep_supervision_act_in_training_only() -> None:
    torch.manual_seed(0)
    options = {"init_filters": 8, "drop_path": 0.5, "deep_supervision": True}
    network, x = build("lightm_unet", 2, 1, 3, (32, 32), **options), torch.rand(2, 1, 32, 32)
    logits = network(x)
    assert [tuple(level.shape) for level in logits] == [(2, 3, 32, 32), (2, 3, 16, 16), (2, 3, 8, 8)]
    loss = DeepLoss()(logits, torch.randint(3, (2, 1, 32, 32), dtype=torch.int16))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not torch.equal(network(x)[0], network(x)[0])
    network.eval()
    assert torch.equal(network(x), network(x))


def test_convolutions_to_try_start_from_the_network_without_them() -> None:
    x = torch.rand(1, 1, 32, 32)

    def network(**options: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return build("lightm_unet", 2, 1, 3, (32, 32), init_filters=8, **options).eval()

    local = network(local_conv=True)
    assert not torch.allclose(local(x), network()(x), atol=1e-4)
    for stage in local.encoder:
        for block in stage.blocks:
            torch.nn.init.zeros_(block.conv.weight)
    assert torch.equal(local(x), network()(x))
    kernels = [block.conv[0].weight.shape for stage in network(decoder="full").decoder for block in stage.blocks]
    assert kernels == [(32, 32, 3, 3), (16, 16, 3, 3), (8, 8, 3, 3)]
    with pytest.raises(ValueError, match="decoder must be separable or full"):
        network(decoder="none")


def test_committed_records_count_the_parameters_of_their_networks() -> None:
    """Every network, the others' too, is built as its task and settings say."""
    counts: dict[tuple[str, str, str], int] = {}
    for record in load_records():
        task = accuracy.load_task(record["task"]) | record["settings"]
        key = record["network"], record["task"], str(task["patch_size"])
        counts[key] = counts.get(key) or accuracy.parameters(record["network"], task)
        assert record["parameters"] == counts[key], key
    assert {spec.partition(":")[0] for spec, _, _ in counts} == set(BUILDERS)


@pytest.mark.parametrize(
    ("network", "task", "count"),
    [
        ("plain_conv_unet", "hippocampus", 5_603_177),
        ("plain_conv_unet", "lung_xray", 33_471_820),
        ("residual_encoder_unet", "hippocampus", 25_895_593),
        ("dynunet", "hippocampus", 5_600_963),
        ("lightm_unet:init_filters=16,stem=full", "hippocampus", 1_345_355),
    ],
)
def test_a_tensor_with_two_names_counts_once(network: str, task: str, count: int) -> None:
    assert accuracy.parameters(network, accuracy.load_task(task)) == count


def test_a_run_records_the_parameters_of_its_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a training that leaves a state_dict in which each tensor has two names, as nnU-Net's do."""

    def trained(args: Namespace, settings: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
        run_dir.mkdir(parents=True)
        weights = {name: torch.ones(3) for name in ("encoder.a", "decoder.encoder.a")}
        torch.save(weights, run_dir / "model.pt")
        return [{"seconds": 1.0, "loss": 0.5}]

    monkeypatch.setattr(accuracy, "train", trained)
    monkeypatch.setattr(accuracy, "evaluate", lambda *_: {"x": {"anterior": {"dice": 0.8, "hd95": 1.0}}})
    options = ["--dataset_dir", "data", "--results", str(tmp_path), "--run_dir", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", ["accuracy.py", *options, "--networks", "plain_conv_unet", "--iterations", "50"])
    accuracy.main()
    (written,) = load_records(tmp_path)
    assert written["parameters"] == 5_603_177
    monkeypatch.setattr(accuracy, "train", lambda *_: pytest.fail("trained what is recorded"))
    accuracy.main()
    assert load_records(tmp_path) == [written]


def test_records_say_what_cannot_be_trained_any_more() -> None:
    ids = json.loads((ROOT / "bundle/configs/train.json").read_text(encoding="utf-8"))
    for record in load_records():
        unknown = set(record["settings"]) - set(ids) - set(accuracy.load_task(record["task"]))
        assert unknown <= set(record.get("gone", ())), record["variant"]
        before = "exact augmentation" not in record["variant"]
        assert ("augmentation before 0.5" in record.get("gone", ())) == before


def test_options_are_split_outside_of_brackets() -> None:
    options = {"init_filters": 16, "blocks_up": [1, 1, 1, 1], "stem": "full"}
    assert parse_spec("a:init_filters=16,blocks_up=[1,1,1,1],stem=full") == ("a", options)
    assert parse_spec('a:cuda,stem="full"') == ("a", {"backend": "cuda", "stem": "full"})
    assert parse_spec("a") == parse_spec("a:") == ("a", {})


def test_a_record_holds_the_recipe_that_was_the_default() -> None:
    args = Namespace(task=ROOT / "bundle/configs/tasks/hippocampus.json")
    found = accuracy.recorded(args, {"learning_rate": 7, "dataset_dir": "somewhere", "epochs": 3})
    assert found["learning_rate"] == 7 and found["epochs"] == 3 and "dataset_dir" not in found
    assert found["optimizer"]["_target_"].startswith("torch.optim.") and "warmup" in found


def test_the_figure_names_the_worst(tmp_path: Path) -> None:
    scores = {f"t_{i}": {"a": {"dice": i / 20, "hd95": 1.0}, "b": {"dice": None, "hd95": None}} for i in range(20)}
    scores["t_21"] = {"a": {"dice": 0.99, "hd95": 1.0}, "b": {"dice": 0.5, "hd95": 1.0}}
    figure = tmp_path / "pictures/cases.png"
    accuracy_figure.draw([("one", [{"scores": {"tta": scores}}])], figure)
    with Image.open(figure) as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize(("name", "title", "folds"), [("t/one", "t/one", "01"), ("A=b=t/one:1", "A=b", "1")])
def test_the_figure_takes_a_row_or_one_fold_of_it(tmp_path: Path, name: str, title: str, folds: str) -> None:
    row = {"task": "t", "network": "n", "variant": "", "budget": "9it"}
    (tmp_path / "t").mkdir()
    (tmp_path / "t/one.json").write_text(json.dumps(row | {"runs": [{"fold": "0"}, {"fold": "1"}]}))
    found, runs = accuracy_figure.chosen(tmp_path, name)
    assert found == title and "".join(run["fold"] for run in runs) == folds
    with pytest.raises(ValueError, match=r"there is no .*one.json, fold 7"):
        accuracy_figure.chosen(tmp_path, "t/one:7")
    with pytest.raises(ValueError, match=r"there is no .*two.json"):
        accuracy_figure.chosen(tmp_path, "t/two")


def test_options_are_read_as_json_where_they_are() -> None:
    assert accuracy.pairs(["a=1", "b=x", 'c={"d": true}']) == {"a": 1, "b": "x", "c": {"d": True}}


@pytest.mark.parametrize(("iterations", "validations"), [(5000, 4), (2500, 4), (4000, 10), (60, 10), (2, 1)])
def test_the_last_epoch_is_validated(iterations: int, validations: int) -> None:
    settings = accuracy.epochs(iterations, validations)
    assert settings["epochs"] % settings["val_interval"] == 0
    assert settings["epochs"] * settings["iterations_per_epoch"] <= iterations
    assert settings["iterations_per_epoch"] >= min(50, iterations)


def test_a_budget_in_seconds_is_for_training_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The trial's first epoch warms up and its last one validates, which takes time too."""

    def trained(args: Namespace, settings: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
        last, interval = settings["epochs"], settings["val_interval"]
        validates = [epoch == last or epoch % interval == 0 for epoch in range(1, last + 1)]
        return [{"seconds": 6.0 + 30 * (epoch == 0) + 4 * now} for epoch, now in enumerate(validates)]

    monkeypatch.setattr(accuracy, "train", trained)
    assert accuracy.iterations_in(Namespace(), {}, 6 * 10, tmp_path) == 10 * accuracy.TIMING_ITERATIONS
