"""Trainings that MLflow follows, switched on by MONAI's own option."""

from __future__ import annotations

import json
import re
from pathlib import Path

import monai.bundle
import pytest
import torch
from ignite.engine import Engine
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.handlers import from_engine
from small_data import SMALL, write_small_data

from scripts.common.command_line import option_values
from scripts.engines.handlers import OutputAsList

BUNDLE = Path(__file__).parents[2] / "bundle"


def test_an_epoch_with_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    text = (BUNDLE / "docs/integrations.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"-m monai\.bundle (run training .*--tracking mlflow.*)", text)
    options = option_values(command.split())
    for name in ("config_file", "dataset_dir"):
        options.pop(name)
    options = {name: value.replace("/data", str(tmp_path)) for name, value in options.items()}
    places = {"output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache"), "bundle_root": str(BUNDLE)}
    monai.bundle.run(
        "training",
        config_file=str(BUNDLE / "configs/train.json"),
        dataset_dir=str(write_small_data(tmp_path / "data")),
        **{**SMALL, **places, **options, "epochs": 1},
    )
    client = mlflow.MlflowClient(options["tracking_uri"])
    experiment = client.get_experiment_by_name(options["experiment_name"])
    (run,) = client.search_runs(experiment.experiment_id)
    assert (run.info.run_name, run.info.status) == (options["run_name"], "FINISHED")
    assert run.data.params == {"max_epochs": "1", "epoch_length": "2"}
    epoch = json.loads((tmp_path / "run/log.jsonl").read_text())
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "train_loss")]
    assert len(losses) == 2 and sum(losses) / 2 == pytest.approx(epoch["loss"])
    scores = {name: run.data.metrics[f"dice_{name}"] for name in ("anterior", "posterior")}
    assert scores == pytest.approx(epoch["dice"])
    assert run.data.metrics["ema_pseudo_dice"] == pytest.approx(epoch["ema_pseudo_dice"])
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["first.json"]
    assert json.loads((tmp_path / "first.json").read_text())["epochs"] == 1

    configs = [str(BUNDLE / f"configs/{name}.json") for name in ("train", "evaluate")]
    evaluation = {"dataset_dir": str(tmp_path / "data"), "tta": False, "run_name": "scores"}
    monai.bundle.run("evaluating", config_file=configs, **{**SMALL, **places, **options, **evaluation})
    classes = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["classes"]
    (scored,) = (r for r in client.search_runs(experiment.experiment_id) if r.info.run_name == "scores")
    assert scored.data.metrics == pytest.approx({f"dice_{name}": s["dice"]["mean"] for name, s in classes.items()})


def test_monais_trackers_find_the_loss() -> None:
    """Without MLflow: what its handler reads is no tuple."""
    transform = DEFAULT_MLFLOW_SETTINGS["configs"]["trainer"]["output_transform"]
    trainer = Engine(lambda engine, batch: {"loss": torch.tensor(batch), "pred": torch.zeros(2, 1)})
    OutputAsList().attach(trainer)
    trainer.run([1.0, 0.5])
    assert transform == "$monai.handlers.from_engine(['loss'], first=True)"
    assert float(from_engine(["loss"], first=True)(trainer.state.output)) == 0.5


def test_training_hands_its_output_on_as_a_list() -> None:
    content = json.loads((BUNDLE / "configs/train.json").read_text(encoding="utf-8"))
    names = [handler["_target_"] for handler in content["train"]["handlers"]]
    others = [name for name in names if name.endswith(("OpenFirst", "OutputAsList"))]
    assert names[:2] == others, "before every handler that reads it"
