"""The bundle as a client of federated learning, by MONAI's own classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from monai.networks.utils import get_state_dict
from small_data import SMALL, write_small_data

from scripts.common.errors import UserError

BUNDLE = Path(__file__).parents[2] / "bundle"
pytestmark = pytest.mark.filterwarnings("ignore:executing the bundle config")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def documented_client(folder: Path) -> MonaiAlgo:
    """The client of the documents' example, with small settings."""
    text = (BUNDLE / "docs/integrations.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"## Federated learning\n\n```python\n(.*?)```", text, flags=re.DOTALL)
    for name, place in (("DATASET", folder / "data"), ("BUNDLE", BUNDLE), ("RUN", folder / "run")):
        example = example.replace(f'"{name}', f'"{place}')
    names: dict[str, Any] = {"small": {**SMALL, "cache_dir": str(folder / "cache")}}
    exec(example.replace('"epochs": 20}', '"epochs": 20, **small}'), names)
    return names["client"]


def weights_of(client: MonaiAlgo) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in get_state_dict(client.trainer.network).items()}


def test_two_rounds(tmp_path: Path) -> None:
    write_small_data(tmp_path / "data")
    client = documented_client(tmp_path)
    assert Path(client.bundle_root) == BUNDLE
    server = ExchangeObject(weights=weights_of(client), weight_type=WeightType.WEIGHTS)
    start = {name: value.clone() for name, value in server.weights.items()}
    for number in (1, 2):
        client.train(server)
        returned = client.get_weights()
        assert returned.weight_type == WeightType.WEIGHT_DIFF
        assert returned.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 2
        server.weights = {name: value + returned.weights[name] for name, value in server.weights.items()}
        metrics = client.evaluate(server).metrics
        assert {"val_mean_dice", "dice_anterior", "dice_posterior"} <= set(metrics)
        last = client.get_weights({ExtraItems.MODEL_TYPE: ModelType.FINAL_MODEL}).weights
        assert all(torch.equal(value, last[name]) for name, value in weights_of(client).items()), number
    epochs = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2] and epochs[1]["lr"] > epochs[0]["lr"] / 2
    checkpoint = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    best = client.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
    assert any(not torch.equal(value, start[name]) for name, value in best.items())
    if checkpoint["best_scores"]["epoch"] == 2:
        assert all(torch.equal(value, best[name]) for name, value in last.items())
    assert json.loads((tmp_path / "run/settings.json").read_text())["init_filters"] == 8
    assert len(json.loads((tmp_path / "run/cases.json").read_text())["training"]) == 4
    client.finalize()


def test_a_client_overwrites_no_training(tmp_path: Path) -> None:
    write_small_data(tmp_path / "data")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model_final.pt").write_bytes(b"of another")
    client = documented_client(tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        client.train(ExchangeObject(weights=weights_of(client), weight_type=WeightType.WEIGHTS))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model_final.pt"]


def test_the_bundle_may_lie_below_the_clients_root(tmp_path: Path) -> None:
    """MONAI initialises before it says where the bundle is."""
    extra = {ExtraItems.CLIENT_NAME: "hospital_1", ExtraItems.APP_ROOT: str(BUNDLE.parent)}
    MonaiAlgoStats(bundle_root="bundle").initialize(extra)
    assert not list(tmp_path.iterdir()), "initialising writes nothing"
    settings = {**SMALL, "dataset_dir": str(write_small_data(tmp_path / "data"))}
    client = MonaiAlgo(bundle_root="bundle", train_kwargs=dict(settings), eval_kwargs=dict(settings))
    client.initialize(extra)
    assert Path(client.train_workflow.bundle_root) == BUNDLE and client.trainer.state.max_epochs == 1


def test_statistics_of_the_data(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    write_small_data(tmp_path / "data")
    file = str(BUNDLE / "configs/train.json")
    settings = {**SMALL, "dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "run")}
    client = MonaiAlgoStats(
        bundle_root=str(BUNDLE), workflow=ConfigWorkflow(file, workflow_type="train", logging_file=False, **settings)
    )
    client.initialize({ExtraItems.CLIENT_NAME: "hospital_1", ExtraItems.APP_ROOT: str(tmp_path)})
    wanted = {FlStatistics.HIST_BINS: [10], FlStatistics.HIST_RANGE: [[0, 300]]}
    statistics = client.get_data_stats(wanted).statistics
    assert statistics["train"][FlStatistics.DATA_COUNT] == 4 and statistics["eval"][FlStatistics.DATA_COUNT] == 1
    assert statistics["train"][FlStatistics.FAIL_COUNT] == 0
