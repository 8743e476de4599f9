"""Everything that can be wrong with a data set is found in one go, with the file's name."""

from __future__ import annotations

import json
import multiprocessing.popen_forkserver
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from generators import HARD_CASES, hard_case, oblique, straight, write_image, write_msd, write_nnunet
from PIL import Image

from scripts.common.errors import UserError
from scripts.planning.integrity import DatasetReport, Problem, _run, check_dataset, problem_lines

BUNDLE = Path(__file__).parents[2] / "bundle"


def check(root: Path) -> DatasetReport:
    return check_dataset(root, workers=0, progress=False)


def messages(problems: list[Problem], file: str) -> str:
    return "\n".join(problem.message for problem in problems if Path(problem.file).name == file)


@pytest.mark.parametrize("name", HARD_CASES)
@pytest.mark.parametrize("write", [write_msd, write_nnunet])
def test_hard_data_sets_have_no_errors(tmp_path: Path, name: str, write: object) -> None:
    data = hard_case(name, 3)
    report = check(write(tmp_path, data))
    assert report.errors == [] and len(report.cases) == 3
    assert report.channel_names == data.channels
    assert report.image_dims == (2 if name in ("rgb_pictures", "flat_volumes") else 3)
    warned = [problem for problem in report.warnings if "rotated affine" in problem.message]
    assert len(warned) == len(report.warnings) == (3 if name == "rotated" else 0)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".tif"])
def test_other_formats_have_no_errors(tmp_path: Path, ending: str) -> None:
    report = check(write_nnunet(tmp_path, hard_case("label_gap", 2), ending))
    assert report.errors == report.warnings == []


def test_every_problem_is_named_in_one_go(tmp_path: Path) -> None:
    """One problem a case, each of another kind."""
    data = hard_case("label_gap", 14)
    root = write_nnunet(tmp_path, data, ending=".nii")
    affine = straight((1, 1, 1))

    def image(index: int, array: np.ndarray, affine: np.ndarray = affine) -> None:
        write_image(root / f"imagesTr/gap_{index}_0000.nii", array, affine)

    def label(index: int, array: np.ndarray, affine: np.ndarray = affine) -> None:
        write_image(root / f"labelsTr/gap_{index}.nii", array[None], affine)

    nan = data.cases[0].image.copy()
    nan[0, 3, 3, 3] = np.nan
    image(0, nan)
    image(1, np.zeros_like(data.cases[1].image))
    image(2, data.cases[2].image[:, :-1])
    label(3, data.cases[3].label, straight((1, 1, 2)))
    strange = data.cases[4].label.copy()
    strange[0, 0, :3] = 7
    label(4, strange)
    (root / "labelsTr/gap_5.nii").unlink()
    (root / "imagesTr/gap_6_0000.nii").write_bytes(b"no image")
    image(7, np.concatenate([data.cases[7].image] * 2))
    image(8, data.cases[8].image[..., 0])
    label(8, data.cases[8].label[..., 0])
    header = bytearray((root / "imagesTr/gap_9_0000.nii").read_bytes())
    header[296:312] = bytes(16)  # srow_y, the affine's second row
    (root / "imagesTr/gap_9_0000.nii").write_bytes(header)
    image(10, data.cases[11].image[..., : data.cases[10].image.shape[-1]])
    image(11, data.cases[11].image[..., : data.cases[10].image.shape[-1]])
    label(11, data.cases[11].label[..., : data.cases[10].image.shape[-1]])
    label(12, np.zeros_like(data.cases[12].label))
    label(13, data.cases[13].label, oblique((1, 1, 1), 4))
    write_image(root / "labelsTr/stray.nii", data.cases[0].label[None], affine)
    (root / "labelsTr/stray.nii").rename(root / "labelsTr/stray.nii.gz")

    report = check(root)
    expected = {
        "gap_0_0000.nii": "NaN or infinite",
        "gap_1_0000.nii": "is constant",
        "gap_2.nii": "must have the same size",
        "gap_3.nii": "spacing 1 x 1 x 2 mm against 1 x 1 x 1 mm",
        "gap_4.nii": "holds the label value(s) 7 in 3 voxel(s); declared are [0, 1, 5]",
        "gap_5.nii": "is missing",
        "gap_6_0000.nii": "cannot be read as an image",
        "gap_7_0000.nii": "has 2 channel(s), the data set has 1",
        "gap_8_0000.nii": "has 2 dimensions in a data set of 3D images",
        "gap_9_0000.nii": "has a spacing of zero",
    }
    for file, text in expected.items():
        assert text in messages(report.errors, file), file
    assert len(report.errors) == len(expected)
    assert "gap_10_0000.nii: if they fall into different folds" in messages(report.warnings, "gap_11_0000.nii")
    assert "no foreground" in messages(report.warnings, "gap_12.nii")
    assert "another position or rotation" in messages(report.warnings, "gap_13.nii")
    assert "belongs to no case" in messages(report.warnings, "stray.nii.gz")


def test_channels_and_declarations(tmp_path: Path) -> None:
    data = hard_case("four_channels", 3)
    root = write_nnunet(tmp_path, data)
    write_image(root / "imagesTr/brain_0_0002.nii.gz", data.cases[0].image[2:3], oblique((1, 1, 1)))
    write_image(root / "imagesTr/brain_1_0003.nii.gz", np.zeros_like(data.cases[1].image[:1]), data.cases[1].affine)
    (root / "imagesTr/brain_2_0001.nii.gz").unlink()
    write_image(root / "imagesTr/brain_2_0004.nii.gz", data.cases[2].image[:1], data.cases[2].affine)
    content = json.loads((root / "dataset.json").read_text())
    content |= {"labels": content["labels"] | {"never": 9}, "numTraining": 7}
    (root / "dataset.json").write_text(json.dumps(content))
    report = check(root)
    assert "brain_0_0000.nii.gz (positions that differ" in messages(report.errors, "brain_0_0002.nii.gz")
    assert messages(report.errors, "brain_2_0001.nii.gz") == "is missing" and len(report.errors) == 2
    assert "constant in channel 3" in messages(report.warnings, "brain_1_0000.nii.gz")
    assert "belongs to no case" in messages(report.warnings, "brain_2_0004.nii.gz")
    assert "declares labels that no case has: never (9)" in messages(report.warnings, "dataset.json")
    assert "numTraining 7" in messages(report.warnings, "dataset.json")


def test_wrong_declarations_are_said_once(tmp_path: Path) -> None:
    root = write_msd(tmp_path, hard_case("four_channels", 2))
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"modality": {"0": "MRI"}}))
    (problem,) = check(root).errors
    assert "declares 1 channel(s) (MRI), but most images have 4" in problem.message
    (root / "dataset.json").write_text(json.dumps(content | {"labels": {"0": "background"}}))
    assert "declares no label" in messages(check(root).errors, "dataset.json")


def test_grey_pictures_in_colour_have_one_channel_where_one_is_declared(tmp_path: Path) -> None:
    """As training and inference read them."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "imagesTr/a_0000.png")
    Image.fromarray(pixels // 128).save(tmp_path / "labelsTr/a.png")
    content = {"labels": {"background": 0, "bright": 1}, "numTraining": 1, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "X-ray"}}))
    report = check(tmp_path)
    assert report.errors == [] and report.cases[0].channels == 1
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "R", "1": "G", "2": "B"}}))
    assert check(tmp_path).cases[0].channels == 3


def test_values_that_float32_does_not_hold(tmp_path: Path) -> None:
    data = hard_case("label_gap", 2)
    data.cases[1].image = data.cases[1].image.astype(np.float64)
    data.cases[1].image[0, 0, 0, 0] = -1e300
    (problem,) = check(write_msd(tmp_path, data)).errors
    assert problem.file.endswith("gap_1.nii.gz") and "beyond 3.4e+38" in problem.message


def test_an_image_in_place_of_a_label(tmp_path: Path) -> None:
    data = hard_case("label_gap", 2)
    root = write_msd(tmp_path, data)
    noise = np.random.default_rng(0).normal(size=(1, 120, 100, 90)).astype(np.float32)
    write_image(root / "imagesTr/gap_1.nii.gz", noise, data.cases[1].affine)
    write_image(root / "labelsTr/gap_1.nii.gz", noise, data.cases[1].affine)
    (problem,) = check(root).errors
    assert problem.file.endswith("labelsTr/gap_1.nii.gz") and "over 10,000 different values" in problem.message


@pytest.mark.parametrize("size", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["label_gap", "flat_volumes", "one_slice"])
def test_a_voxel_size_far_from_the_others(tmp_path: Path, name: str, size: float) -> None:
    data = hard_case(name, 4)
    data.cases[2].affine = data.cases[2].affine @ np.diag([size, 1, 1, 1])
    root = write_msd(tmp_path, data)
    (problem,) = check(root).errors
    assert problem.file.endswith(f"{data.cases[2].name}.nii.gz") and "mend its header" in problem.message


def test_processes_find_the_same(tmp_path: Path) -> None:
    root = write_msd(tmp_path, hard_case("rotated", 4))
    (root / "labelsTr/oblique_1.nii.gz").write_bytes(b"")
    here, there = check(root), check_dataset(root, workers=2, progress=False)
    assert (here.errors, here.warnings) == (there.errors, there.warnings) and len(here.errors) == 1
    assert [case.digest for case in here.cases] == [case.digest for case in there.cases]
    assert np.array_equal(here.cases[3].samples, there.cases[3].samples)


def test_a_file_that_takes_its_reader_down_costs_only_its_case() -> None:
    results = dict(_run(die_on_three, [(i,) for i in range(6)], workers=2))
    assert results == {0: 0, 1: 1, 2: 4, 3: None, 4: 16, 5: 25}


def test_a_helper_that_is_killed_as_it_starts_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """multiprocessing then waits for the number of its process, and says EOFError."""
    start, killed = multiprocessing.popen_forkserver.Popen._launch, [EOFError("unexpected EOF"), BrokenPipeError()]

    def launch(*arguments: object) -> None:
        if killed:
            raise killed.pop()
        start(*arguments)

    monkeypatch.setattr(multiprocessing.popen_forkserver.Popen, "_launch", launch)
    assert dict(_run(abs, [(-1,), (-2,)], workers=2)) == {0: 1, 1: 2}
    killed += [EOFError("unexpected EOF")] * 9
    with pytest.raises(UserError, match=r"workers that read cases are killed .*--workers 1"):
        list(_run(abs, [(-1,), (-2,)], workers=2))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_the_server_of_the_workers_ends_with_its_starter(tmp_path: Path) -> None:
    """At once, although it may be busy with imports, and with what it has forked."""
    server = "import os, time; from scripts.planning import fork_server; print(os.getpid(), os.fork(), flush=True)"
    starter = f"""
import subprocess, sys
from scripts.planning.fork_server import ending_with_this_process
with ending_with_this_process():
    subprocess.run([sys.executable, "-c", {server + "; time.sleep(60)"!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=BUNDLE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first, _ = process.stdout.readline(), process.stdout.readline()
    assert len(first.split()) == 2
    process.kill()
    began = time.monotonic()
    process.stdout.read()  # ends when nobody is left who could write
    assert time.monotonic() - began < 10


def die_on_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_equal_problems_share_a_line() -> None:
    problems = [Problem("a", "is flat"), Problem("b", "is round"), Problem("c", "is flat")]
    assert problem_lines(problems) == ["2 files: is flat: a, c", "b is round"]


def test_masks_of_0_and_255_get_one_line_and_the_hint(tmp_path: Path) -> None:
    data = hard_case("rgb_pictures", 24)
    for case in data.cases:
        case.label = case.label * np.uint8(255)
    (line,) = problem_lines(check(write_nnunet(tmp_path, data)).errors)
    assert line.startswith("24 files: holds the label value(s) 255; declared are [0, 1]; masks often have 255")
    assert "write 1 into the files" in line and line.endswith("… and 4 more")
