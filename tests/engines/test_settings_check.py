"""Settings that a run cannot use are refused in one line, before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.common.errors import UserError
from scripts.engines.settings_check import RULES, check_settings
from scripts.networks import LightMUNet

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
COUNTS = ("batch_size", "epochs", "iterations_per_epoch", "val_interval", "sw_batch_size", "limit_cases")
SHARES = ("warmup", "drop_path", "overlap")
FLAGS = ("crop_nonzero", "cuda_graph", "keep_largest", "overwrite", "recompute_activations", "resume")
FLAGS += ("save_probabilities", "skip_existing", "tta", "update_models")
PATHS = ("cache_dir", "dataset_dir", "evaluation_dir", "output_dir", "predictions_dir")
PATHS_OR_NULL = ("input_dir", "postprocessing_rules", "pretrained", "splits")
BAD: dict[str, list[Any]] = {
    **{name: [0, -1, 1.5, True, "two"] for name in COUNTS},
    **{name: [1, -0.1, "half", float("nan")] for name in SHARES},
    **{name: ["ture", 2, [], {}] for name in FLAGS},
    **{name: [5, "", [], {"a": 1}, True] for name in (*PATHS, *PATHS_OR_NULL)},
    "checkpoint": [5, "", [], [5], None],
    "fold": [-1, 0.5, "al", None, True],
    "ignore_label": [0, -1, "a", [3]],
    "in_channels": [0, -1, 1.5, "one"],
    "labels": [{}, 5, "x", ["a"], {"a": 0}, {"a": "1"}, {"a": 1, "b": 1}, {"a": True}],
    "mirror_axes": [0, "x", [3], [-1], [0, 0], None, [True]],
    "name": [5, "", None],
    "normalization": ["zscore", 5, [], [5], {"ct": 1}, [{"ct": {"lower": "x"}}], [{"rgb": 1}]],
    "patch_size": [16, "16", [16], [16, 0], [16, 1.5], [16] * 4, None],
    "regions": ["x", ["a"], {"a": "b"}, {"a": [1]}],
    "slice_axis": [-1, 3, "x", [0], True],
    "spacing": [1, "x", [], [1, 0, 1], [1, -1], [1, "a"], [1] * 4],
    "spatial_dims": [1, 4, "x", 2.5, None, [2]],
    "strides": [2, "x", [], [2, 2], [[2, 0]], [[2, "a"]]],
    "init_filters": [12, 0, -8, 8.0, "wide"],
    "conv_stages": [4, -1, 1.5, "all", None, True],
    "learning_rate": [0, -0.001, "abc", float("inf")],
    "gradient_norm": [0, -1, "null"],
    "weight_decay": [-1, "none"],
    "norm_bias": [-1, "wide"],
    "num_workers": [-1, 0.5, "abc"],
    "seed": ["abc", 0.5],
    "scan_order": ["axis", 1],
    "stem": ["dense", None],
    "device": ["gpu", "cuda:x", "cuda:99", 1.5, None],
}
GOOD: dict[str, list[Any]] = {
    **{name: [1, 250] for name in COUNTS},
    "limit_cases": [1, None, "null"],
    **{name: [0, 0.5] for name in SHARES},
    **{name: [True, False, "true", "false", 0, 1] for name in FLAGS},
    **{name: ["a", "./a b", Path("a")] for name in PATHS},
    **{name: ["a", Path("a"), None, "null"] for name in PATHS_OR_NULL},
    "checkpoint": ["a.pt", "[a.pt,b.pt]", ["a.pt", "b.pt"], Path("a.pt")],
    "fold": [0, 4, "2", "all"],
    "ignore_label": [3, None, "null"],
    "in_channels": [1, 4],
    "labels": [{"a": 1}, {"a": 2, "b": 1}],
    "mirror_axes": [[], [0], [2, 0], (0, 1)],
    "name": ["hippocampus"],
    "normalization": [["zscore"], ["none", {"ct": {"lower": 0, "upper": 1, "mean": 0.5, "std": 1}}], None, "null"],
    "patch_size": [[16, 16], (8, 16, 24)],
    "regions": [{}, {"all": ["a", "b"]}, None],
    "slice_axis": [0, 2, None, "null"],
    "spacing": [[1, 1.5, 2], [None, 1, 1], None, "null"],
    "spatial_dims": [2, 3],
    "strides": [[[2, 2], [2, 1]], None, "null"],
    "init_filters": [8, 16, 40],
    "conv_stages": [0, 3],
    "learning_rate": [1, 1e-3],
    "gradient_norm": [0.5, 12],
    "weight_decay": [0, 0.3],
    "norm_bias": [0, 1.0],
    "num_workers": [0, 4],
    "seed": [0, -1, None, "null"],
    "scan_order": ["raster", "axes"],
    "stem": ["full", "separable"],
    "device": ["cpu", torch.device("cpu")],
}


def pairs(settings: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in settings.items() for value in values]


@pytest.mark.parametrize(("name", "value"), pairs(BAD))
def test_what_cannot_be_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError) as refused:
        check_settings(**{name: value})
    message = str(refused.value)
    assert message.startswith(f"{name} must be ") and message.endswith(f", not {value}") and "\n" not in message


@pytest.mark.parametrize(("name", "value"), pairs(GOOD))
def test_what_can_be_passes(name: str, value: Any) -> None:
    check_settings(**{name: value})


def test_every_rule_is_tested() -> None:
    assert set(BAD) == set(GOOD) == set(RULES)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"^epochs must be .*, not 0; warmup must be .*, not 1$"):
        check_settings(epochs=0, batch_size=2, warmup=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slice_axis": 1, "spatial_dims": 3}, "slice_axis is for a network of spatial_dims 2"),
        ({"normalization": ["zscore"], "in_channels": 2}, "normalization must name a scheme for each of the 2"),
        ({"labels": {"a": 1}, "ignore_label": 1}, "ignore_label 1 is the value of a label too"),
        ({"labels": {"a": 1}, "regions": {"all": ["a", "c"]}}, "regions name c, which the labels do not have: a"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(**settings)


@pytest.mark.parametrize(("count", "usable"), [(0, []), (2, ["cuda", "cuda:0", "cuda:1"])])
def test_gpus_of_this_machine(count: int, usable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    gpus = ["cuda", "cuda:0", "cuda:1", "cuda:2"]
    assert [gpu for gpu in gpus if RULES["device"].holds(gpu)] == usable


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, value in pairs(GOOD) if name in ("scan_order", "stem", "drop_path")]
)
def test_the_network_takes_what_passes(name: str, value: Any) -> None:
    LightMUNet(spatial_dims=2, in_channels=1, out_channels=2, init_filters=8, **{name: value})


@pytest.mark.parametrize(
    "files",
    [
        ["train.json"],
        ["train.json", "multi_gpu_train.json"],
        ["train.json", "evaluate.json"],
        ["train.json", "evaluate.json", "multi_gpu_evaluate.json"],
        ["inference.json"],
    ],
)
def test_every_setting_with_a_rule_is_checked_first(files: list[str]) -> None:
    config = ConfigParser.load_config_files([str(CONFIGS / file) for file in files])
    settings = {name: value for name, value in config["check_settings"].items() if not name.startswith("_")}
    # in inference dataset_dir is another name of input_dir
    assert settings == {name: f"@{name}" for name in config if name in RULES and config[name] != "@input_dir"}
    assert "@check_settings" in config["initialize"]


def test_what_the_configs_and_tasks_hold_passes() -> None:
    for name in (
        "train.json",
        "inference.json",
        *(f"tasks/{file.name}" for file in (CONFIGS / "tasks").glob("*.json")),
    ):
        config = json.loads((CONFIGS / name).read_text(encoding="utf-8"))
        values = {key: config[key] for key in RULES if key in config}
        check_settings(**{key: value for key, value in values.items() if not str(value).startswith("$")})


@pytest.mark.parametrize(
    ("run_id", "config", "options", "message"),
    [
        ("training", "{}/train.json", ["--learning_rate", "-1"], "learning_rate must be a number above 0, not -1"),
        ("evaluating", "['{}/train.json','{}/evaluate.json']", ["--overlap", "1"], "overlap must be a number of 0"),
        ("inference", "{}/inference.json", ["--device", "gpu"], "device must be cpu, or cuda or cuda:N"),
    ],
)
def test_as_a_user_types_it(run_id: str, config: str, options: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", config.replace("{}", str(CONFIGS))]
    command += ["--bundle_root", str(BUNDLE), "--output_dir", str(tmp_path / "run"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [[16, 20, 16], [16, 16], 16, [0, 8, 8]])
def test_patch_sizes_that_the_network_cannot_take(bad: object) -> None:
    check_settings(patch_size=[16, 24, 8], spatial_dims=3, strides="null")
    with pytest.raises(UserError, match="patch_size"):
        check_settings(patch_size=bad, spatial_dims=3, strides=None)


def test_patch_sizes_follow_the_strides() -> None:
    strides = [[2, 2, 1], [2, 2, 1], [2, 2, 2]]
    check_settings(patch_size=[16, 24, 2], spatial_dims=3, strides=strides)
    with pytest.raises(UserError, match=r"multiple of \[8, 8, 2\]; nearest: \[16, 24, 4\]"):
        check_settings(patch_size=[16, 24, 3], spatial_dims=3, strides=strides)
    with pytest.raises(UserError, match="each stage needs 2 numbers"):
        check_settings(patch_size=[16, 24], spatial_dims=2, strides=strides)
