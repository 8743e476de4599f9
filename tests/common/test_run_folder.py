"""The names of what runs leave have one home."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.common import BUNDLE_ROOT
from scripts.common.run_folder import PREDICTIONS, SUMMARY, FinishedFolder, RunFolder

SCRIPTS = BUNDLE_ROOT / "scripts"
HOME = "common/run_folder.py"
# In the cache of prepared cases: another file of that name.
OTHERS = {"data/prepared.py": {"settings.json"}, "images/data_folders.py": {"settings.json"}}


def names() -> set[str]:
    """Of all files and folders, as the home has them."""
    run, finished = RunFolder("run"), FinishedFolder("run")
    paths = [*vars(run).values(), *vars(run.evaluation).values(), *vars(finished).values()]
    return {path.name for path in paths if isinstance(path, Path) and path != run.path} | {PREDICTIONS, SUMMARY}


def test_what_earlier_versions_wrote_is_found() -> None:
    """Runs, weights and scores of users lie under these names."""
    files = {"checkpoint.pt", "model.pt", "model_final.pt", "settings.json", "cases.json", "training.log", "log.jsonl"}
    files |= {"postprocessing.json"}
    results = {"metrics.json", "metrics.csv", "predictions.json", "summary.json", "finish.json", "configuration.json"}
    folders = {"tensorboard", "evaluation", "predictions", "held_out", "postprocessed", "report"}
    assert names() == files | results | folders
    assert RunFolder("a").evaluation.predictions == Path("a/evaluation/predictions")
    assert RunFolder.of("a/b/model_final.pt").settings == Path("a/b/settings.json")
    assert RunFolder.of("model.pt").cases == Path("cases.json")


def test_no_other_file_spells_them() -> None:
    files = {name for name in names() if "." in name}  # a folder's name is also a common word
    found = {}
    for path in sorted(SCRIPTS.rglob("*.py")):
        part = path.relative_to(SCRIPTS).as_posix()
        spelled = files & {text.rpartition("/")[2] for text in texts(path)} - OTHERS.get(part, set())
        if spelled:
            found[part] = spelled
    assert found.keys() == {HOME}, found


def texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:  # not a sentence
            yield node.value


def test_the_configs_say_the_same() -> None:
    for config in (BUNDLE_ROOT / "configs").glob("*.json"):
        said = re.findall(r"@(?:output|evaluation|run)_dir \+ '/([^']+)'", config.read_text(encoding="utf-8"))
        assert {*said} <= names(), config.name
        assert said or config.name not in ("train.json", "evaluate.json"), f"{config.name} joins paths otherwise"
