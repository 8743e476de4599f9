"""The records of the accuracy benchmark: a run joins its row's file and touches nothing else."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import accuracy_records
import pytest
from accuracy_records import RESULTS, ROW, find_run, load_records, load_row, save_run


def run(fold: str = "0", seed: int = 0, dice: float = 0.5, **row: str) -> dict:
    key = {"task": "t", "network": "n", "variant": "v", "budget": "9it"} | row
    return key | {"fold": fold, "seed": seed, "scores": {"tta": {"case": {"a": {"dice": dice, "hd95": None}}}}}


def test_a_run_joins_its_row(tmp_path: Path) -> None:
    runs = [run("1"), run("0", seed=1), run("0"), run("0", budget="8it"), run("0", variant=""), run("0", task="u")]
    files = [save_run(tmp_path, record) for record in runs]
    assert files[0] == files[1] == files[2] == tmp_path / "t/n-v-9it.json"
    assert files[3:] == [tmp_path / name for name in ("t/n-v-8it.json", "t/n-9it.json", "u/n-v-9it.json")]
    assert load_row(files[0]) == [run("0"), run("0", seed=1), run("1")]
    assert len(load_records(tmp_path)) == len(runs)


def test_only_the_same_fold_and_seed_is_replaced(tmp_path: Path) -> None:
    path = save_run(tmp_path, run("0"))
    save_run(tmp_path, run("1"))
    content = json.loads(path.read_text())
    content["runs"][1]["note"] = "written by hand"
    path.write_text(json.dumps(content))
    assert save_run(tmp_path, run("0", dice=0.123456789012345678)) == path
    assert load_row(path) == [run("0", dice=0.123456789012345678), run("1") | {"note": "written by hand"}]


def test_a_row_is_found_by_what_its_file_says(tmp_path: Path) -> None:
    path = save_run(tmp_path, run("0"))
    renamed = path.rename(path.with_name("short.json"))
    assert save_run(tmp_path, run("1")) == renamed
    assert find_run(tmp_path, run("1")) == renamed
    assert find_run(tmp_path, run("2")) is find_run(tmp_path, run("1", task="u")) is None


def test_rows_whose_names_begin_alike_do_not_share_a_file(tmp_path: Path) -> None:
    runs = [run(network=f'lightm_unet:scan_order="axes",stem="full",blocks_up=[{n}]') for n in range(3)]
    files = [save_run(tmp_path, record) for record in runs]
    names = [f"lightm_unet-scan_order-axes-stem-full-9it{end}.json" for end in ("", "-2", "-3")]
    assert [path.name for path in files] == names
    assert [load_row(path) for path in files] == [[record] for record in runs]


def test_trainings_that_end_at_once_keep_each_other_s_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path) -> list[dict]:
        found = load_row(path)
        time.sleep(0.02)
        return found

    save_run(tmp_path, run("0"))
    monkeypatch.setattr(accuracy_records, "load_row", slow)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(partial(save_run, tmp_path), [run(fold) for fold in "12345"]))
    assert [record["fold"] for record in load_records(tmp_path)] == list("012345")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "no row of the accuracy tables"), ('{"task": 1}', "no row")],
)
def test_a_file_of_something_else_is_named_and_stays(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t/notes.json"
    path.parent.mkdir()
    path.write_text(content)
    for call in (find_run, save_run):
        with pytest.raises(SystemExit, match=f"notes.json: .*{message}"):
            call(tmp_path, run())
    assert path.read_text() == content and list(path.parent.iterdir()) == [path]


def test_committed_files_are_a_row_each() -> None:
    files = sorted(RESULTS.rglob("*.json"))
    rows = {path: [tuple(record[key] for key in ROW) for record in load_row(path)] for path in files}
    assert all(len(set(members)) == 1 for members in rows.values())
    assert max(Counter(members[0] for members in rows.values()).values()) == 1
    for path, (row, *_) in rows.items():
        assert path.parent == RESULTS / row[0] and path.stem.endswith(row[3]) and len(path.stem) <= 50
