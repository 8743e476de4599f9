"""The report command from folders to page, and its errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_cases import AFFINE, cube, write, write_volumes

from scripts.common.errors import UserError
from scripts.images.task import Task
from scripts.report import figures
from scripts.report.__main__ import main
from scripts.report.pairing import pair_cases
from scripts.report.writing import write_report

BUNDLE = Path(__file__).parents[2] / "bundle"


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    write_volumes(tmp_path)
    return tmp_path


def report(folder: Path, *options: str, kinds: str = "predictions labels images postprocessed") -> Path:
    names = {"predictions": "pred", "labels": "labels", "images": "images", "postprocessed": "post"}
    given = [part for kind in kinds.split() for part in (f"--{kind}", str(folder / names[kind]))]
    main([*given, "--output_dir", str(folder / "report"), "--workers", "0", *options])
    return folder / "report"


class Page(HTMLParser):
    """Checks that tags close, and gathers what a browser would load, alternative texts and the table's data."""

    VOID = ("meta", "img", "source", "input", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.images = 0
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.sources += [attributes[name] for name in ("src", "srcset") if name in attributes]
        if tag == "img":
            self.images += 1
            assert "alt" in attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"] and data.lstrip().startswith("{"):
            self.data = data


def test_whole_report_of_volumes(volumes: Path) -> None:
    run = volumes / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"epoch": 1, "loss": 0.5, "lr": 0.1}\n{"epoch": 2, "loss": 0.4, "lr": 0.1}\n')
    out = report(volumes, "--config_file", str(volumes / "task.json"), "--run_dir", str(run), "--panels", "2")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cases"] == 3
    assert summary["classes"] == {"large": 1, "small <b>": 5}
    assert summary["worst_first"] == ["a", "b", "c"]
    assert summary["postprocessing"]["cases"]["improved"] == 1
    assert len(summary["training"]) == 2
    assert list(summary["figures"]["cases"]) == ["a", "b"]
    listed = [*summary["figures"]["charts"], *(path for own in summary["figures"]["cases"].values() for path in own)]
    assert sorted(listed) == sorted(path.relative_to(out).as_posix() for path in out.glob("figures/**/*.png"))
    for path in listed:
        with Image.open(out / path) as image:
            image.verify()

    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|file://", text)
    assert str(volumes) not in text
    assert "small <b>" not in text.replace(page.data, "")
    data = json.loads(page.data)
    assert [case["figure"] for case in data["cases"]] == ["case-0", "case-1", None]
    assert data["columns"] == ["large", "small <b>"]


def test_without_references_sizes_only(volumes: Path) -> None:
    out = report(volumes, kinds="predictions")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["units"] == {"volume_ml": "ml"}
    volume = summary["results"]["prediction"]["label 1"]["volume_ml"]["mean"]
    assert volume == pytest.approx((125 * 3 + 1) / 3 * 3 / 1000)
    assert summary["postprocessing"] is None
    assert "Without references" in (out / "report.html").read_text()


def test_cases_are_drawn_from_the_whole_order(tmp_path: Path) -> None:
    for size in range(2, 9):
        write(tmp_path / f"pred/{size}.nii.gz", cube((12, 12, 12), 1, 1 + size))
    (tmp_path / "report").mkdir()
    cases = pair_cases(tmp_path / "pred", None, None, None)
    for count, drawn in ((4, "2468"), (9, "2345678")):
        summary = write_report(cases, tmp_path / "report", Task(), panels=count, workers=0, spread=True)
        assert "".join(summary["figures"]["cases"]) == drawn, "smallest to largest, at even distances"


def test_pictures_in_pixels_and_one_case_without_sd(tmp_path: Path) -> None:
    for kind, mask in (("labels", cube((20, 30), 5, 15)), ("pred", cube((20, 30), 6, 15))):
        write(tmp_path / kind / "a.png", mask * 255)
    write(tmp_path / "images" / "a.png", np.zeros((20, 30, 3), np.uint8))
    out = report(tmp_path, kinds="predictions labels images")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["classes"] == {"label 255": 255}
    assert summary["results"]["prediction"]["label 255"]["area_px"] | {"sd": None} == {
        "mean": 81, "sd": None, "median": 81, "defined": 1, "cases": 1,
    }  # fmt: skip
    assert summary["results"]["prediction"]["label 255"]["dice"]["sd"] is None
    assert summary["figures"]["cases"] == {"a": ["figures/cases/a.png"]}
    assert any("standard deviation is undefined" in note for note in summary["notes"])


def test_an_image_on_another_grid_is_named(volumes: Path) -> None:
    write(volumes / "labels" / "b.nii.gz", cube((16, 14, 11), 1, 5))
    write(volumes / "images" / "c.nii.gz", np.zeros((16, 14, 12), np.float32), np.diag([-1.0, -1.0, 2.0, 1.0]) + AFFINE)
    with pytest.raises(UserError) as caught:
        report(volumes)
    assert "2 of 3 cases" in str(caught.value)
    assert "labels/b.nii.gz does not lie on the grid of" in str(caught.value)
    assert "images/c.nii.gz does not lie on the grid of" in str(caught.value)
    assert not (volumes / "report" / "report.html").exists()


def test_unknown_values_and_no_foreground(volumes: Path) -> None:
    (volumes / "other.json").write_text('{"labels": {"x": 1}}')
    with pytest.raises(UserError, match=r"a\.nii\.gz holds the label value\(s\) 5"):
        report(volumes, "--config_file", str(volumes / "other.json"))
    for kind in ("pred", "labels"):
        for name in "abc":
            write(volumes / kind / f"{name}.nii.gz", cube((16, 14, 12), 0, 0))
    with pytest.raises(UserError, match="no foreground anywhere: all 3 predictions and references are empty"):
        report(volumes, kinds="predictions labels")


def test_overwrites_only_when_asked_and_only_its_own_figures(volumes: Path) -> None:
    out = report(volumes, "--panels", "1", kinds="predictions labels")
    own = out / "figures" / "own.png"
    own.touch()
    with pytest.raises(UserError, match=r"already holds report\.html, summary\.json, figures: add --overwrite"):
        report(volumes, kinds="predictions labels")
    report(volumes, "--overwrite", "--panels", "0", kinds="predictions labels")
    assert own.exists()
    assert not list((out / "figures" / "cases").glob("*.png"))


@pytest.mark.parametrize("folder", ["labels", "images", "pred", "data/labelsTr"])
def test_a_report_goes_nowhere_among_the_images(volumes: Path, folder: str) -> None:
    (volumes / "data/labelsTr").mkdir(parents=True)
    (volumes / "data/dataset.json").write_text("{}")
    before = sorted(volumes.rglob("*"))
    with pytest.raises(UserError, match="--output_dir "):
        report(volumes, "--output_dir", str(volumes / folder), "--overwrite")
    assert sorted(volumes.rglob("*")) == before


def test_no_picture_of_a_case_is_another_s(tmp_path: Path) -> None:
    """The montage of a case is called CASE_slices."""
    names = ["a", "a_slices", "a b", "a_b", "../a"]
    files = [f"{figures._file_name(name)}{kind}.png" for name in names for kind in ("", "_slices")]
    assert len(set(files)) == len(files) and not any("/" in file for file in files)


def test_unwritable_output(volumes: Path) -> None:
    (volumes / "report").touch()
    with pytest.raises(UserError, match="report"):
        report(volumes, "--overwrite", kinds="predictions")


def test_command_line_in_worker_processes(volumes: Path) -> None:
    command = [sys.executable, "-m", "scripts.report", "--predictions", str(volumes / "pred"), "--panels", "1"]
    command += ["--output_dir", str(volumes / "out"), "--workers", "2"]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 cases:" in done.stdout
    again = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.strip().startswith("error:")
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    "option",
    [("--run_dir", "nowhere"), ("--tolerance", "nan"), ("--tolerance", "-1"), ("--panels", "-1"), ("--workers", "1.5")],
)
def test_an_option_that_means_nothing_is_refused_at_once(
    volumes: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((UserError, SystemExit)) as caught:
        report(volumes, *option, kinds="predictions")
    assert option[0] in str(caught.value) + capsys.readouterr().err
    assert not (volumes / "report").exists()


def test_cases_in_different_units_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "pred/flat.png", cube((8, 8), 2, 6))
    write_volumes(tmp_path)
    with pytest.raises(UserError, match="a is measured in ml, but flat in px: report on them apart"):
        report(tmp_path, kinds="predictions")
