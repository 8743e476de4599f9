"""Words, ids and errors of the command line."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.common.command_line import (
    as_flag,
    check_ids,
    from_words,
    number_from_zero,
    or_none,
    whole_number,
)
from scripts.common.errors import UserError, find_user_error

BUNDLE = Path(__file__).parents[2] / "bundle"


@pytest.fixture
def config(tmp_path: Path) -> str:
    content = {
        "training": [],
        "epochs": 1,
        "train": {"trainer": {"_target_": "a.B"}},
        "num_workers": 0,
        "output_dir": "output",
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return str(tmp_path / "train.json")


def check(config: str, *arguments: str) -> None:
    check_ids(["run", "training", "--config_file", f"['{config}']", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "3"],
        ["--epochs=3", "--num-workers", "2"],
        ["--train#trainer#max_epochs", "3"],
        ["--train::trainer::max_epochs", "3"],
        ["--bundle_root", "."][:0],
    ],
)
def test_known_ids_pass(config: str, arguments: list[str]) -> None:
    check(config, *arguments)


@pytest.mark.parametrize(
    ("argument", "hint"), [("--epoch", "epochs"), ("--num_worker=2", "num_workers"), ("--trian#trainer#x", "train")]
)
def test_an_unknown_id_names_the_nearest(config: str, argument: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{hint}'"):
        check(config, argument, "3")


@pytest.mark.parametrize(
    ("words", "mended"),
    [("--output_dir a.pt b.pt", "['a.pt', 'b.pt']"), ("--epochs 40 56 --num_workers 0", "[40, 56]")],
)
def test_several_values_of_an_option_are_one_list(config: str, words: str, mended: str) -> None:
    with pytest.raises(UserError) as caught:
        check(config, *words.split())
    assert f'write several values as one list, {words.split()[0]} "{mended}"' in str(caught.value)


def test_a_run_of_another_config_names_its_file(config: str) -> None:
    with pytest.raises(UserError, match=r"evaluating is defined in configs/evaluate\.json"):
        check_ids(["run", "evaluating", "--config_file", config])


@pytest.mark.parametrize(
    ("run_id", "message"),
    [
        ("train", "run train: train is a part of the config, and nothing that runs; did you mean 'training'?"),
        ("trainin", "run trainin: trainin is not defined in any config file; did you mean 'training'?"),
        ("epochs", "run epochs: epochs is a part of the config, and nothing that runs"),
    ],
)
def test_what_does_not_run_is_refused(config: str, run_id: str, message: str, tmp_path: Path) -> None:
    """MONAI would build that part of the config, do nothing, and end as if all were well."""
    with pytest.raises(UserError) as caught:
        check_ids(["run", run_id, "--config_file", config])
    assert str(caught.value) == message
    (tmp_path / "args.json").write_text(json.dumps({"run_id": run_id}))
    with pytest.raises(UserError, match=f"run {run_id}: "):
        check_ids(["run", "--args_file", str(tmp_path / "args.json"), "--config_file", config])


def test_other_forms_of_a_run_pass(tmp_path: Path) -> None:
    parts = {"run": ["@trainer"], "evaluating": "@run", "one": "$print()", "trainer": {"_target_": "a.B"}}
    (tmp_path / "train.json").write_text(json.dumps(parts))
    for run_id in (["run"], ["evaluating"], ["one"], ["trainer"], ["trainer#max_epochs"], [], ["--run_id", "one"]):
        check_ids(["run", *run_id, "--config_file", str(tmp_path / "train.json")])


def test_ids_that_monai_adds_pass(config: str) -> None:
    words = ["--tracking", "mlflow", "--tracking_uri", "sqlite:///runs.db", "--experiment_name", "hippocampus"]
    check(config, *words, "--run_name", "first", "--save_execute_config", "false", "--workflow_name", "ConfigWorkflow")


def test_ids_in_an_args_file_are_checked_too(config: str, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(json.dumps({"config_file": config, "epoch": 3}))
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        check_ids(["run", "--args_file", str(tmp_path / "args.json")])


def test_none_would_be_dropped_silently(config: str) -> None:
    with pytest.raises(UserError, match="write --epochs null"):
        check(config, "--epochs", "None")
    assert or_none("null") is None and or_none(0) == 0


@pytest.mark.parametrize(("folder", "read"), [("2025", "2025"), ("2025.10", "2025.1"), ("1e3", "1000.0")])
def test_a_folder_that_would_be_read_as_something_else(config: str, folder: str, read: str) -> None:
    message = f"--output_dir {folder}: MONAI reads it as {read}; write --output_dir ./{folder}"
    with pytest.raises(UserError, match=re.escape(message)):
        check(config, "--output_dir", folder)
    check(config, "--output_dir", f"./{folder}")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("output_dir", "/data/out#2"),
        ("output_dir", "out#2"),
        ("splits", "a#b.json"),
        ("checkpoint", "['a#1.pt','b.pt']"),
    ],
)
def test_a_path_that_monai_would_change_is_refused(config: str, option: str, value: str, tmp_path: Path) -> None:
    """The run would write into /data/out::2."""
    with pytest.raises(UserError, match=re.escape(f"--{option} {value}: MONAI reads # as ::")):
        check(config, f"--{option}", value)
    (tmp_path / "args.json").write_text(json.dumps({option: value}))
    with pytest.raises(UserError, match="MONAI reads # as ::"):
        check(config, "--args_file", str(tmp_path / "args.json"))


@pytest.mark.parametrize("option", ["output_dir", "checkpoint", "splits", "pretrained", "weights", "task_file"])
@pytest.mark.parametrize("name", ["$name", "@epochs", "%name", "$__import__('os').system('touch ran')"])
def test_a_path_is_not_run_or_looked_up(config: str, option: str, name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--{option} {name}: MONAI ") + f".*; write '\\./{re.escape(name)}'"):
        check(config, f"--{option}", name)
    if option == "output_dir":  # the one of these that this config has
        check(config, f"--{option}", f"./{name}")


def test_one_of_several_checkpoints_is_not_run(config: str) -> None:
    with pytest.raises(UserError, match=r"MONAI runs it as Python; write '\./\$b\.pt'"):
        check(config, "--checkpoint", "['a.pt','$b.pt']")


@pytest.mark.parametrize("content", ['{"output_dir": "$name"}', '{"output_dir": 5}', "[]", "{"])
def test_an_args_file_is_checked_likewise(config: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(UserError, match=r"--output_dir|--args_file"):
        check(config, "--args_file", str(tmp_path / "args.json"))


@pytest.mark.parametrize("value", ["x", "5", "[1]", "true", "null"])
def test_a_part_of_a_config_is_no_plain_value(config: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--train .*: that is a part of the config and no plain value"):
        check(config, "--train", value)
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"train": value}))
    with pytest.raises(UserError, match=r"overlay\.json: train .*: that is a part of the config"):
        check_ids(["run", "training", "--config_file", f"['{config}','{overlay}']"])


@pytest.mark.parametrize("content", ["{", "[]", "5"])
def test_a_broken_overlay_is_named(config: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "overlay.json").write_text(content)
    with pytest.raises(UserError, match=r"--config_file: .*overlay\.json cannot be read as a config: "):
        check_ids(["run", "training", "--config_file", f"['{config}','{tmp_path / 'overlay.json'}']"])


@pytest.mark.parametrize("words", [["--train", "{'_target_':'a.B'}"], ["--train", "@epochs"], ["--epochs", "null"]])
def test_parts_may_be_replaced_by_parts(config: str, words: list[str]) -> None:
    check(config, *words)


@pytest.mark.parametrize("value", ["@train#folder", "['@a#b']", "{'path': '@train#folder'}", "$@train#folder + 'x'"])
def test_a_reference_may_name_a_part_of_a_config(config: str, value: str) -> None:
    check(config, "--epochs", value)


@pytest.mark.parametrize("folder", ["out", "out-2", "my out", "v1.2", "~/out", "it's"])
def test_other_folders_are_read_as_they_are(config: str, folder: str) -> None:
    check(config, "--output_dir", folder)


def test_flags() -> None:
    assert [as_flag(word) for word in (True, "true", "True", 1, "yes")] == [True] * 5
    assert [as_flag(word) for word in (False, "false", "False", 0, "no", None)] == [False] * 6
    with pytest.raises(UserError, match="tta must be true or false, not 'ture'"):
        as_flag("ture", "tta")


def test_a_user_error_is_found_behind_library_errors() -> None:
    try:
        try:
            raise UserError("the file a.nii is missing")
        except UserError as error:
            raise RuntimeError("applying transform") from error
    except RuntimeError as error:
        assert str(find_user_error(error)) == "the file a.nii is missing"
    assert find_user_error(RuntimeError()) is None


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("raise KeyboardInterrupt", "interrupted"),
        ("raise UserError('no')", "error: no"),
        (
            "from monai.bundle import ConfigParser as P; network = {'_target_': 'scripts.networks.LightMUNet'}; "
            "P({'n': network | {'spatial_dims': 4, 'in_channels': 1, 'out_channels': 2}}).get_parsed_content('n')",
            "error: spatial_dims must be 2 or 3, not 4",
        ),
    ],
)
def test_what_a_user_did_has_no_traceback(failing: str, said: str) -> None:
    code = f"from scripts.common.errors import *; show_user_errors_plainly(); {failing}"
    result = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert result.returncode and result.stderr.strip() == said


def test_words_become_what_a_parameter_takes() -> None:
    @from_words
    def build(path: str | None, axis: int | None = None, tta: bool = False, name: str = "") -> tuple:
        return path, axis, tta, name

    assert build("null", axis="none", tta="true", name="null") == (None, None, True, "null")
    assert build("a", 2, True) == ("a", 2, True, "")
    with pytest.raises(UserError, match="tta must be true or false, not 'maybe'"):
        build(None, tta="maybe")


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "", "²", "1e3"])
def test_what_is_counted_is_a_whole_number(text: str) -> None:
    assert whole_number("0") == 0 and whole_number("12", least=1) == 12
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number, 0 or more, not "):
        whole_number(text)
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number, 1 or more, not 0"):
        whole_number("0", least=1)


@pytest.mark.parametrize("text", ["-0.1", "nan", "inf", "wide", ""])
def test_what_is_measured_is_a_finite_number(text: str) -> None:
    assert number_from_zero("0") == 0 and number_from_zero("2.5") == 2.5
    with pytest.raises(argparse.ArgumentTypeError, match="must be a distance, not "):
        number_from_zero(text, "a distance")
