"""Peak memory and time of what is done to one large case on a CPU: preparation, scores, rules.

    python benchmarks/large_case.py                                  # 512x512x600 with 15 classes, 10 minutes
    python benchmarks/large_case.py --size 256 256 300 --jobs prepare scores
    python benchmarks/large_case.py --json benchmarks/results/large_case_cpu.json
    python benchmarks/large_case.py --from-json FILE.json

A CT (int16) and a label map (uint8) are written as compressed NIfTI of 0.78 x 0.78 x 1 mm, with organs as ellipsoids, a
thin shell around them and noise. Each job is done once, in a process of its own; its peak is the process's ru_maxrss,
which counts Python, PyTorch and MONAI too ("nothing": these alone, with everything imported). "prediction" is the label
map moved by two voxels.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from harness import Results, load_results, markdown_table, number

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))

from scripts.data.prepared import PreparedDataset
from scripts.data.transforms import Preparation
from scripts.images.pairs import Pair, read_pair
from scripts.images.task import Task
from scripts.metrics import case_scores
from scripts.postprocessing.apply import apply_rules, no_rules
from scripts.postprocessing.evidence import component_evidence, hole_evidence

BENCHMARK = "large_case"
SPACING = (0.78, 0.78, 1.0)
LABELS = {f"organ_{value}": value for value in range(1, 16)}
CT = [{"ct": {"lower": -900.0, "upper": 300.0, "mean": 40.0, "std": 120.0}}]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.from_json:
        print(table(load_results(options.from_json, BENCHMARK)["rows"]))
        return
    if options.job:
        work = partial(write_case, size=options.size) if options.job == "write" else JOBS[options.job]
        print(json.dumps(measure(work, options.folder)))
        return
    results = Results(options.json, BENCHMARK, torch.device("cpu"), {"size": options.size, "classes": len(LABELS)})
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        run_alone("write", folder, options.size)  # a process begins with the peak of the one that started it
        for job in options.jobs:
            row = results.row(job=job)
            row |= run_alone(job, folder, options.size)
            results.save()
    finally:
        shutil.rmtree(folder)
    print(table(results.content["rows"]))


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Peaks alone: the time depends on what else the machine does."""
    body = [[SAID[row["job"]], row.get("error") or number(row["peak_mib"], 3)] for row in rows]
    return markdown_table(["one case, alone in a process", "peak of the process, MiB"], body)


def run_alone(job: str, folder: Path, size: Sequence[int]) -> dict[str, Any]:
    """Seconds and peak of a job in a process of its own; {"error"} if it fails."""
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder), "--size", *map(str, size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(work: Callable[[Path], object], folder: Path) -> dict[str, float]:
    start = time.perf_counter()
    work(folder)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def write_case(folder: Path, size: Sequence[int]) -> None:
    """image.nii.gz, label.nii.gz and prediction.nii.gz, in the axis order LPS of most CTs."""
    rng = np.random.default_rng(0)
    across = np.meshgrid(*[np.linspace(-1, 1, length, dtype=np.float32) for length in size[:2]], indexing="ij")
    round_body = across[0] ** 2 + (1.3 * across[1]) ** 2
    centres, radii = rng.uniform(-0.6, 0.6, (14, 2)), rng.uniform(0.15, 0.4, 14)
    image, label = (np.zeros(size, dtype, order="F") for dtype in (np.int16, np.uint8))
    for z in range(size[2]):
        label[..., z][(round_body > 0.45) & (round_body < 0.5)] = 15
        for organ, (centre, radius) in enumerate(zip(centres, radii, strict=True)):
            flat = sum((axis - place) ** 2 for axis, place in zip(across, centre, strict=True)) / radius**2
            label[..., z][flat + ((z / size[2] - (organ + 0.5) / 14) / 0.2) ** 2 < 1] = organ + 1
        body = np.where(round_body < 0.8, 40 + 20 * label[..., z], -1000)
        image[..., z] = body + rng.integers(-60, 60, size[:2])
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    prediction = np.roll(label, 2, axis=0)
    for name, array in (("image", image), ("label", label), ("prediction", prediction)):
        with gzip.open(folder / f"{name}.nii.gz", "wb", compresslevel=1) as file:
            file.write(nib.Nifti1Image(array, affine).to_bytes())


def prepare(folder: Path, spacing: float | None, normalization: list, crop_nonzero: bool = False) -> None:
    """As training prepares a case; each voxel size in mm, None: as it is."""
    sizes = None if spacing is None else [spacing] * 3
    preparation = Preparation(3, 1, LABELS, spacing=sizes, normalization=normalization, crop_nonzero=crop_nonzero)
    keys = ["image", "label"]
    case = {"name": "case", **{key: str(folder / f"{key}.nii.gz") for key in keys}}
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        PreparedDataset([case], preparation.transforms(*keys), None, cache, preparation).prepare(0)


def pair(folder: Path) -> tuple[Pair, Task]:
    files = (folder / f"{name}.nii.gz" for name in ("prediction", "label"))
    return Pair("case", *files), Task(LABELS)


def scores(folder: Path) -> None:
    prediction, label = read_pair(*pair(folder))
    union = {"all": list(LABELS)}
    case_scores(prediction.array, label.array, LABELS, prediction.spacing, union)


def rules() -> dict:
    """Every kind of rule for every class."""
    content = no_rules(LABELS)
    content["largest_component_of_foreground"] = True
    for rule in content["classes"].values():
        rule |= {"largest_component": True, "min_size": {"value": 0.05, "unit": "ml"}, "fill_holes": True}
    return content


def clean(folder: Path) -> None:
    prediction, _ = read_pair(*pair(folder))
    apply_rules(prediction.array, rules(), prediction.spacing)


JOBS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda folder: None,
    "read": lambda folder: read_pair(*pair(folder)),
    "prepare": lambda folder: prepare(folder, 3.0, CT),
    "prepare_zscore": lambda folder: prepare(folder, 3.0, ["zscore"]),
    "prepare_nonzero": lambda folder: prepare(folder, 3.0, ["zscore_nonzero"], crop_nonzero=True),
    "prepare_fine": lambda folder: prepare(folder, None, CT),
    "scores": scores,
    "rules": clean,
    "component_evidence": lambda folder: component_evidence(*pair(folder)),
    "hole_evidence": lambda folder: hole_evidence(*pair(folder), rules()),
}
SAID = {
    "nothing": "nothing: Python, PyTorch, MONAI",
    "read": "a prediction and its label read",
    "prepare": "prepared to 3 mm, CT's normalisation",
    "prepare_zscore": "prepared to 3 mm, z-score",
    "prepare_nonzero": "prepared to 3 mm, z-score of what is not 0, cropped",
    "prepare_fine": "prepared, voxels as they are",
    "scores": "scored, with surface metrics and a region of everything",
    "rules": "cleaned by every rule",
    "component_evidence": "components counted for rules",
    "hole_evidence": "holes counted for rules",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 600], metavar="N", help="voxels along x, y, z")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the record there")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="print the table of a record")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the case is written meanwhile")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
