"""Applying rules to arrays, as a transform and to folders; the command."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor
from PIL import Image
from rule_cases import SPACING, write

from scripts.common.errors import UserError
from scripts.engines.provenance import Run, read_provenance, write_provenance
from scripts.images.cases import load_image
from scripts.postprocessing.__main__ import main
from scripts.postprocessing.apply import ApplyPostprocessingd, apply_rules, describe, find_rules, load_rules, no_rules
from scripts.postprocessing.folder import apply_to_folder

LABELS = {"organ": 1, "lesion": 3}


def rules_for(foreground: bool = False, **classes: dict[str, Any]) -> dict[str, Any]:
    rules = no_rules(LABELS) | {"largest_component_of_foreground": foreground}
    for name, changes in classes.items():
        rules["classes"][name] |= changes
    return rules


@pytest.fixture
def label_map() -> np.ndarray:
    result = np.zeros((12, 20), np.uint8)
    result[1:6, 1:6], result[3, 3] = 1, 0  # with a hole
    result[2:5, 6:8] = 3  # touches it
    result[9, 9:11], result[9, 15] = 3, 1
    result[11, 19] = 200
    return result


def test_foreground(label_map: np.ndarray) -> None:
    cleaned = apply_rules(label_map, rules_for(foreground=True))
    assert (cleaned[9] == 0).all() and (cleaned[2:5, 6:8] == 3).all()
    assert cleaned[11, 19] == 200 and cleaned.dtype == np.uint8, "unknown values stay"


def test_classes(label_map: np.ndarray) -> None:
    before = label_map.copy()
    assert np.array_equal(apply_rules(label_map, rules_for()), label_map)
    cleaned = apply_rules(label_map, rules_for(organ={"largest_component": True, "fill_holes": True}))
    assert cleaned[9, 15] == 0 and cleaned[3, 3] == 1 and (cleaned == 3).sum() == 8
    cleaned = apply_rules(label_map, rules_for(lesion={"min_size": {"value": 3, "unit": "px"}}))
    assert (cleaned[9, 9:11] == 0).all() and (cleaned == 3).sum() == 6 and cleaned[9, 15] == 1
    assert np.array_equal(label_map, before)


def test_sizes_are_physical(label_map: np.ndarray) -> None:
    rules = rules_for(lesion={"min_size": {"value": 3.0, "unit": "mm2"}})
    assert (apply_rules(label_map, rules, [1.0, 1.0]) == 3).sum() == 6
    assert (apply_rules(label_map, rules, [2.0, 1.0]) == 3).sum() == 8
    with pytest.raises(UserError, match=r"under 3 mm2, but this image is measured in px"):
        apply_rules(label_map, rules)


def test_transform(tmp_path: Path, label_map: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "postprocessing.json").write_text(json.dumps(rules_for(organ={"fill_holes": True})))
    item = {
        "pred": MetaTensor(
            torch.from_numpy(label_map)[None].float(), meta={"filename_or_obj": "a.png", "spacing_known": False}
        )
    }
    with caplog.at_level(logging.INFO, "lightm_unet"):
        clean = ApplyPostprocessingd(["pred"], LABELS, checkpoint=str(tmp_path / "model.pt"))
    assert len(caplog.messages) == 1 and "organ: holes filled" in caplog.messages[0]
    cleaned = clean(item)["pred"]
    assert cleaned[0, 3, 3] == 1 and item["pred"][0, 3, 3] == 0 and cleaned.dtype == torch.float32
    assert cleaned.meta["filename_or_obj"] == "a.png" and cleaned.shape == item["pred"].shape
    caplog.clear()
    for rules, checkpoint in (("none", str(tmp_path / "model.pt")), ("auto", "elsewhere/model.pt"), ("auto", None)):
        assert ApplyPostprocessingd(["pred"], LABELS, rules, checkpoint)(item)["pred"] is item["pred"]
    assert not caplog.messages
    assert find_rules("auto", f"[{tmp_path}/a.pt,b.pt]") == tmp_path / "postprocessing.json"
    with pytest.raises(UserError, match=r"labels .*'lesion': 3.*task has .*'liver'.*--postprocessing_rules none"):
        ApplyPostprocessingd(["pred"], {"liver": 1}, str(tmp_path / "postprocessing.json"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"labels": {"a": 1}, "classes": {}, "largest_component_of_foreground": false}',
        '{"labels": {"a": 1}, "classes": {"a": {}}, "largest_component_of_foreground": false}',
        '{"labels": {"a": "1"}, "classes": {"a": {}}, "largest_component_of_foreground": false}',
    ],
)
def test_broken_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=r"p\.json"):
        load_rules(tmp_path / "p.json")
    with pytest.raises(UserError, match=r"no postprocessing rules at .*missing\.json"):
        load_rules(tmp_path / "missing.json")


def task_file(root: Path) -> Path:
    (root / "task.json").write_text(json.dumps({"labels": LABELS, "regions": {"all": ["organ", "lesion"]}}))
    return root / "task.json"


@pytest.mark.parametrize("command", ["determine", "apply"])
def test_workers_are_counted_from_none(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--predictions", str(tmp_path), "--workers", "-1"])
    assert "--workers: must be a whole number, 0 or more, not -1" in capsys.readouterr().err


def test_command(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--predictions", str(faulty / "predictions"), "--labels", str(faulty / "labels"), "--workers", "0"]
    output = faulty / "models/postprocessing.json"
    learn = ["determine", *folders, "--config_file", str(task_file(faulty)), "--output", str(output)]
    with pytest.raises(UserError, match="--held_out"):
        main(learn)
    assert not output.exists()
    main([*learn, "--held_out"])
    printed = capsys.readouterr().out
    assert "6 cases are few" in printed and "organ: holes filled" in printed and f"written: {output}" in printed
    with pytest.raises(UserError, match="is there already: add --overwrite"):
        main([*learn, "--held_out"])
    (faulty / "trained.json").write_text('["case_1", "case_9"]')
    with pytest.raises(UserError, match=r"trained on 1 of the 6 cases in .*: case_1\."):
        main([*learn, "--overwrite", "--trained_on", str(faulty / "trained.json")])

    (faulty / "predictions/predictions.json").write_text('{"runs": []}')
    clean = ["apply", "--rules", str(output), "--predictions", str(faulty / "predictions"), "--workers", "0"]
    main([*clean, "--output_dir", str(faulty / "clean")])
    for case in range(6):
        cleaned, raw, label = (
            nib.load(faulty / folder / f"case_{case}.nii.gz") for folder in ("clean", "predictions", "labels")
        )
        assert np.array_equal(cleaned.affine, raw.affine) and cleaned.header.get_zooms() == SPACING
        assert np.array_equal(np.asarray(cleaned.dataobj), np.asarray(label.dataobj)), "all faults are repaired"
    assert (faulty / "clean/predictions.json").is_file()
    with pytest.raises(UserError, match="already holds 6 of these 6"):
        main([*clean, "--output_dir", str(faulty / "clean")])
    main([*clean, "--output_dir", str(faulty / "clean"), "--overwrite"])
    with pytest.raises(UserError, match="holds the raw predictions"):
        main([*clean, "--output_dir", str(faulty / "predictions"), "--overwrite"])


def test_predictions_of_two_folders_cleaned_into_one_keep_what_is_known_of_both(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / f"{name}.nii.gz", np.ones((4, 4, 4), np.uint8))
        write_provenance(tmp_path / name, Run("model.pt", 0, [f"trained_{name}"], [name]))
        apply_to_folder(tmp_path / name, rules_for(), tmp_path / "clean", workers=0)
    assert {run.predicted[0]: run.trained_on for run in read_provenance(tmp_path / "clean")} == {
        "a": ["trained_a"],
        "b": ["trained_b"],
    }


def test_pictures(tmp_path: Path, label_map: np.ndarray) -> None:
    (tmp_path / "raw").mkdir()
    label_map[label_map == 200] = 0
    Image.fromarray(label_map).save(tmp_path / "raw/a.png")
    rules = rules_for(organ={"fill_holes": True})
    assert apply_to_folder(tmp_path / "raw", rules, tmp_path / "clean", workers=0) == 1
    assert np.asarray(Image.open(tmp_path / "clean/a.png"))[3, 3] == 1
    (tmp_path / "raw/b.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"1 of 2 cases cannot be used:\s+.*b.png cannot be read"):
        apply_to_folder(tmp_path / "raw", rules, tmp_path / "clean", overwrite=True, workers=0)
    with pytest.raises(UserError, match="cannot write to"):
        apply_to_folder(tmp_path / "raw", rules, tmp_path / "raw/a.png/x", workers=0)


@pytest.mark.parametrize("output", ["data/labelsTr", "link"])
def test_rules_are_applied_nowhere_among_the_data(tmp_path: Path, label_map: np.ndarray, output: str) -> None:
    write(tmp_path / "data/labelsTr/a.nii.gz", np.ones((4, 4, 4), np.uint8))
    write(tmp_path / "raw/a.nii.gz", np.ones((4, 4, 4), np.uint8))
    (tmp_path / "link").symlink_to(tmp_path / "data/labelsTr")
    before = (tmp_path / "data/labelsTr/a.nii.gz").stat().st_mtime_ns
    with pytest.raises(UserError, match="holds the images or labels of a data set"):
        apply_to_folder(tmp_path / "raw", rules_for(), tmp_path / output, overwrite=True, workers=0)
    assert (tmp_path / "data/labelsTr/a.nii.gz").stat().st_mtime_ns == before


def test_two_label_maps_under_one_name(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    tifffile.imwrite(tmp_path / "raw/predictions.tif", np.ones((4, 4), np.uint8))
    (tmp_path / "raw/predictions.json").write_text('{"spacing": [1, 1]}')  # a TIFF's spacing, which goes along
    with pytest.raises(UserError, match=r"would both be written into .*predictions\.json"):
        apply_to_folder(tmp_path / "raw", rules_for(), tmp_path / "clean", workers=0)


@pytest.mark.parametrize("output", ["labels/rules.json", "task.json", "predictions/case_0.nii.gz", "labels"])
def test_rules_replace_nothing_that_was_read(faulty: Path, output: str) -> None:
    (faulty / "labels").rename(faulty / "labelsTr")
    (faulty / "labels").symlink_to(faulty / "labelsTr")
    (faulty / "task.json").write_text(json.dumps({"labels": LABELS, "spatial_dims": 3, "slice_axis": None}))
    before = {path: path.stat().st_mtime_ns for path in faulty.rglob("*")}
    arguments = [f"--{kind}={faulty / kind}" for kind in ("predictions", "labels")]
    arguments += ["--config_file", str(faulty / "task.json"), "--output", str(faulty / output)]
    with pytest.raises(UserError, match="--output "):
        main(["determine", *arguments, "--held_out", "--overwrite", "--workers", "0"])
    assert before == {path: path.stat().st_mtime_ns for path in faulty.rglob("*")}


def test_volumes_of_one_slice_are_images_of_a_2d_task(tmp_path: Path) -> None:
    """Learned in mm2 and with holes, and applied to a folder as inference applies them to what it has loaded."""
    label = np.zeros((20, 20, 1), np.uint8)
    label[2:10, 2:10], label[14:18, 4:8], label[14:17, 12:15] = 1, 3, 3
    prediction = label.copy()
    prediction[5, 5], prediction[3, 15:17] = 0, 3
    for case in range(2):
        write(tmp_path / f"predictions/{case}.nii.gz", prediction)
        write(tmp_path / f"labels/{case}.nii.gz", label)
    (tmp_path / "task.json").write_text(json.dumps({"labels": LABELS, "spatial_dims": 2, "slice_axis": None}))
    folders = ["--predictions", str(tmp_path / "predictions"), "--workers", "0"]
    learn = ["--labels", str(tmp_path / "labels"), "--config_file", str(tmp_path / "task.json"), "--held_out"]
    main(["determine", *folders, *learn, "--output", str(tmp_path / "rules.json")])
    rules = load_rules(tmp_path / "rules.json")
    assert rules["classes"]["organ"]["fill_holes"] and rules["classes"]["lesion"]["min_size"]["unit"] == "mm2"

    main(["apply", *folders, "--rules", str(tmp_path / "rules.json"), "--output_dir", str(tmp_path / "clean")])
    cleaned = nib.load(tmp_path / "clean/0.nii.gz")
    assert cleaned.shape == label.shape and np.array_equal(np.asarray(cleaned.dataobj), label)
    loaded = {"pred": load_image(tmp_path / "predictions/0.nii.gz", 2, label=True)}
    inferred = ApplyPostprocessingd(["pred"], LABELS, str(tmp_path / "rules.json"))(loaded)["pred"]
    assert np.array_equal(inferred[0].numpy(), label[..., 0].T)  # rows and columns


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", 'needs "labels"'), ("{", "cannot be read"), ('{"labels": {"a": 1}, "regions": {"r": ["b"]}}', "name b")],
)
def test_bad_task(faulty: Path, content: str, message: str) -> None:
    (faulty / "task.json").write_text(content)
    with pytest.raises(UserError, match=message):
        arguments = ["--predictions", "p", "--labels", "l", "--config_file", str(faulty / "task.json"), "--output", "o"]
        main(["determine", *arguments])


def test_words() -> None:
    rules = rules_for(True, organ={"largest_component": True}, lesion={"min_size": {"value": 0.05, "unit": "ml"}})
    assert describe(rules) == (
        "largest component of the foreground; organ: largest component; lesion: no component under 0.05 ml"
    )
    assert "nothing is changed" in describe(no_rules(LABELS))
