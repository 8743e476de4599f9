"""Seconds and peak memory of predicting one large image: this bundle, MONAI's transforms and nnU-Net's predictor.

    python benchmarks/inference.py --nnunet-python /path/to/python --json benchmarks/results/inference_cpu.json
    python benchmarks/inference.py --shape 512x512x600 --grid coarse --tta off --chain ours
    python benchmarks/inference.py --device cuda --network default --json FILE.json
    python benchmarks/inference.py --from-json FILE.json

One volume of 1 mm voxels as .nii.gz, 15 classes, and the same network for all chains: "conv", a single convolution, so
that what is measured is what happens around it, or "default", LightM-UNet as planning sets it up. "full": windows over
the image's own grid; "coarse": over one of 4 mm, and the logits back to the image's. With mirroring (--tta on) along
all axes, eight passes a window.

- ours: `python -m monai.bundle run inference` with configs/inference.json and an overlay
- before: the same with the bundle of another checkout, --before FOLDER/bundle
- monai: LoadImaged, Orientationd, Spacingd, NormalizeIntensityd; SlidingWindowInferer; Invertd, AsDiscreted, SaveImaged
- nnunet: nnUNetPredictor.predict_single_npy_array, in the Python that --nnunet-python names (`pip install nnunetv2`;
  for the default network also monai and numba)

Each prediction is a process of its own, the chains take turns, and a figure is the median over --rounds. Seconds are
from the image's file to the label map's, in a process that has imported and loaded everything else; a part of them is
spent in the network's forward passes. CPU seconds are those of all threads, which a busy machine disturbs less. Peak:
the most memory that the process ever held (Linux). One that takes more than --limit-gib is stopped. "Same labels":
share of voxels with the label of ours; grids and interpolations differ a little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from harness import Budget, Results, Row, environment_line, load_results, markdown_table, number
from inference_case import NAME, Case, write_image, write_weights

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "bundle"
BENCHMARK = "inference"
SHAPES = ("256x256x300", "512x512x600")
COARSE = 4  # times
LARGEST_PATCH = 128
CHAINS = {
    "ours": "this bundle",
    "before": "this bundle, before",
    "monai": "MONAI's transforms",
    "nnunet": "nnU-Net's predictor",
}
GIB = 2**30


class Failed(Exception):
    """Why there is no figure, in one line."""


class Setting(NamedTuple):
    """What all chains predict."""

    shape: tuple[int, ...]
    grid: str
    tta: str

    @property
    def spacing(self) -> tuple[float, ...]:
        return (float(COARSE if self.grid == "coarse" else 1),) * len(self.shape)

    @property
    def patch(self) -> tuple[int, ...]:
        """As planning would have it: no larger than the image, of sizes that three poolings divide."""
        lengths = (length // int(size) for length, size in zip(self.shape, self.spacing, strict=True))
        return tuple(max(8, min(LARGEST_PATCH, length // 8 * 8)) for length in lengths)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    content = load_results(args.from_json, BENCHMARK) if args.from_json else measure(args)
    print(report(content))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every chain in every setting. What --resume finds measured is not measured again."""
    names = ("classes", "batch", "threads", "limit_gib")
    device, budget = torch.device(args.device), Budget(args.budget_s)
    results = Results(args.json, BENCHMARK, device, {name: getattr(args, name) for name in names}, args.resume)
    results.content["environment"]["threads"] = args.threads
    with tempfile.TemporaryDirectory(dir=args.temporary) as temporary:
        for shape in args.shape:
            image = Path(temporary) / "x".join(map(str, shape)) / NAME
            image.parent.mkdir()
            for grid, tta in product(args.grid, args.tta):
                setting = Setting(shape, grid, tta)
                rows = {name: results.row(**key(setting, args.network, name)) for name in args.chain}
                rows = {name: row for name, row in rows.items() if not {"failed", "seconds"} & row.keys()}
                if rows and not image.exists():
                    write_image(image, shape)
                take_turns(rows, setting, image, args, budget, results)
    return results.content


def key(setting: Setting, network: str, chain: str) -> dict[str, str]:
    shape = "x".join(map(str, setting.shape))
    return {"shape": shape, "grid": setting.grid, "tta": setting.tta, "network": network, "chain": chain}


def take_turns(
    rows: dict[str, Row], setting: Setting, image: Path, args: argparse.Namespace, budget: Budget, results: Results
) -> None:
    """Fill the rows of one setting, a chain each."""
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
    ours: np.ndarray | None = None
    for _, (name, row) in product(range(args.rounds), rows.items()):
        if "failed" in row:
            continue
        print(
            f"{' '.join(v for v in row.values() if isinstance(v, str))} ({budget.left():.0f} s left)", file=sys.stderr
        )
        try:
            with tempfile.TemporaryDirectory(dir=image.parent) as folder:
                outcome, label_map = predict(name, setting, image, Path(folder), args, budget)
        except Failed as reason:
            row["failed"] = str(reason)
        else:
            ours = label_map if name == "ours" else ours
            outcomes[name].append(outcome)
            row.update(summary(outcomes[name]))
            if ours is not None and name != "ours":
                row["same_labels"] = float((label_map == ours).mean())
        results.save()


def summary(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the seconds, the highest of the peaks."""
    times = {name: [round(o[name], 4) for o in outcomes] for name in outcomes[0] if name.endswith("seconds")}
    for clock in ("seconds", "cpu_seconds"):
        times[f"outside_{clock}"] = [a - b for a, b in zip(times[clock], times[f"network_{clock}"], strict=True)]
    peaks = ("loading_peak_bytes", "peak_bytes", "gpu_peak_bytes")
    return {
        **{name: value for name, value in outcomes[-1].items() if name not in (*times, *peaks)},
        **{name: max((o[name] for o in outcomes if o[name] is not None), default=None) for name in peaks},
        **{name: round(statistics.median(values), 4) for name, values in times.items()},
        "times": {name: values for name, values in times.items() if not name.startswith("outside")},
    }


def predict(
    chain: str, setting: Setting, image: Path, folder: Path, args: argparse.Namespace, budget: Budget
) -> tuple[dict[str, Any], np.ndarray]:
    """What one prediction in a process of its own took, and its label map.

    Raises:
        Failed: it did not come to an end, or to none that is right.
    """
    options = network_options() if args.network == "default" else {}
    case = Case(
        image=str(image), weights=str(folder / "model.pt"), output=str(folder / "out"), spacing=setting.spacing,
        patch=setting.patch, classes=args.classes, mirror=setting.tta == "on", network=args.network, options=options,
        batch=args.batch, device=args.device,
    )  # fmt: skip
    case.write(folder / "case.json")
    write_weights(case)
    Path(case.output).mkdir()
    printed = run(command(chain, case, folder, args), folder, args, budget)
    label_map = np.asarray(nib.load(Path(case.output) / NAME).dataobj).astype(np.uint8)
    if label_map.shape != setting.shape:
        raise Failed(f"a label map of {label_map.shape}")
    return json.loads(printed.splitlines()[-1]), label_map


def command(chain: str, case: Case, folder: Path, args: argparse.Namespace) -> list[str]:
    """The program of a chain."""
    case_file = str(folder / "case.json")
    if chain == "nnunet":
        return [str(args.nnunet_python), str(HERE / "inference_nnunet.py"), case_file]
    if chain == "monai":
        return [sys.executable, str(HERE / "inference_monai.py"), case_file]
    (folder / "task.json").write_text(json.dumps(overlay(case, case_file)), encoding="utf-8")
    bundle = (args.before if chain == "before" else BUNDLE).resolve()
    configs = [str(bundle / "configs/inference.json"), str(folder / "task.json")]
    words = {"config_file": str(configs), "bundle_root": str(bundle), "input_dir": case.image}
    words |= {"output_dir": case.output, "checkpoint": case.weights, "tta": str(case.mirror).lower()}
    options = [word for name, value in words.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "monai.bundle", "run", "inference", *options]


def overlay(case: Case, case_file: str) -> dict[str, Any]:
    """A task as planning writes it, with the network that is watched in the place of its own."""
    return {
        "name": "benchmark",
        "spatial_dims": 3,
        "slice_axis": None,
        "rows_first": True,
        "in_channels": 1,
        "labels": case.labels,
        "spacing": list(case.spacing),
        "normalization": ["zscore"],
        "crop_nonzero": False,
        "patch_size": list(case.patch),
        "strides": None,
        "conv_stages": 3,
        "mirror_axes": [0, 1, 2],
        "sw_batch_size": case.batch,
        "device": case.device,
        "network_def": {"_target_": "inference_case.watched", "case_file": case_file},
        "dataset#_target_": "inference_case.watched_dataset",
        "dataset#network": "@network",
    }


def network_options() -> dict[str, Any]:
    """Arguments of LightMUNet as planning and configs/train.json choose them."""
    from network_candidates import FILTERS, default_options

    return default_options() | {"init_filters": FILTERS}


def run(words: Sequence[str], folder: Path, args: argparse.Namespace, budget: Budget) -> str:
    """What a program prints; it is stopped where it takes too much memory or time.

    Raises:
        Failed: it was stopped or failed.
    """
    threads = str(args.threads)
    own = {"OMP_NUM_THREADS": threads, "nnUNet_def_n_proc": threads, "PYTHONPATH": str(HERE)}
    own["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(words, stdout=out, stderr=err, cwd=folder, env={**os.environ, **own})
        try:
            for resident in watch(process):
                if resident > args.limit_gib * GIB:
                    raise Failed(f"stopped above {args.limit_gib:g} GiB")
                if budget.spent():
                    raise Failed("stopped: the time budget was spent")
        finally:
            process.kill()
            process.wait()
    if process.returncode < 0:
        raise Failed(f"killed by signal {-process.returncode}")
    printed, errors = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
    if process.returncode:
        lines = [line.strip() for line in (printed + errors).splitlines() if line.strip()] or ["no message"]
        raise Failed(next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])[:200])
    return printed.strip()


def watch(process: subprocess.Popen) -> Iterator[int]:
    """The resident bytes of a process every fifth of a second, until it ends."""
    page = os.sysconf("SC_PAGE_SIZE")
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()
        yield int(fields[1]) * page if fields else 0
        time.sleep(0.2)


def report(content: dict[str, Any]) -> str:
    """A table for each network and shape."""
    settings = content["settings"]
    limit = f"stopped above {settings['limit_gib']:g} GiB"
    parts = [f"{environment_line(content['environment'])}; {settings['classes']} classes; {limit}"]
    for network, shape in dict.fromkeys((row["network"], row["shape"]) for row in content["rows"]):
        rows = [row for row in content["rows"] if (row["network"], row["shape"]) == (network, shape)]
        parts.append(f"**{shape}, {network}**\n\n{table(rows)}")
    return "\n\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """One line a setting and chain."""
    on_gpu = any(row.get("gpu_peak_bytes") is not None for row in rows)
    headers = ["grid", "mirroring", "chain", "s", "s, of nnU-Net's", "outside the network, s", "of MONAI's"]
    headers += ["outside, CPU s", "of MONAI's", "peak GiB", *["GPU's peak GiB"] * on_gpu, "same labels"]
    body = []
    for row in rows:
        others = {other["chain"]: other for other in rows if (other["grid"], other["tta"]) == (row["grid"], row["tta"])}
        cells = [row["grid"], row["tta"], CHAINS[row["chain"]]]
        cells += [row["failed"] if "failed" in row else number(row.get("seconds"), 3)]
        cells += [_ratio(row, others.get("nnunet"), "seconds")]
        for name in ("outside_seconds", "outside_cpu_seconds"):
            cells += [number(row.get(name), 3), _ratio(row, others.get("monai"), name)]
        peaks = ["peak_bytes", "gpu_peak_bytes"] if on_gpu else ["peak_bytes"]
        cells += [f"{row[name] / GIB:.2f}" if row.get(name) is not None else "-" for name in peaks]
        body.append([*cells, f"{row['same_labels']:.2%}" if "same_labels" in row else "-"])
    return markdown_table(headers, body, text_columns=3)


def _ratio(row: Row, base: Row | None, name: str) -> str:
    return f"{row[name] / base[name]:.2f}" if base is not None and name in base and name in row else "-"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", type=parse_shape, default=list(map(parse_shape, SHAPES)), help="XxYxZ")
    parser.add_argument("--grid", nargs="+", choices=("coarse", "full"), default=["coarse", "full"])
    parser.add_argument("--tta", nargs="+", choices=("off", "on"), default=["off", "on"], help="mirroring")
    parser.add_argument("--network", choices=("conv", "default"), default="conv")
    parser.add_argument("--chain", nargs="+", choices=list(CHAINS), help="default: all that can run")
    parser.add_argument("--nnunet-python", type=Path, metavar="PYTHON", help="one that has nnunetv2")
    parser.add_argument("--before", type=Path, metavar="BUNDLE", help="another checkout's bundle, for comparison")
    parser.add_argument("--classes", type=int, default=15, help="with the background")
    parser.add_argument("--batch", type=int, default=4, help="windows at once (default 4); nnU-Net takes one")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=2, help="(default 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-gib", type=float, default=9, help="most memory of a process (default 9)")
    parser.add_argument("--budget-s", type=float, default=3600, help="stop after so many seconds (default 3600)")
    parser.add_argument("--temporary", type=Path, help="where image and label maps go for the time being")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, at once as it is known")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --json FILE holds")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing, print this again")
    args = parser.parse_args(arguments)
    there = {"before": args.before, "nnunet": args.nnunet_python}
    args.chain = args.chain or [name for name in CHAINS if there.get(name, True)]
    for name in args.chain:
        if not there.get(name, True):
            parser.error(f"--chain {name} needs {'--before' if name == 'before' else '--nnunet-python'}")
    return args


def parse_shape(text: str) -> tuple[int, ...]:
    try:
        x, y, z = (int(length) for length in text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not XxYxZ, such as {SHAPES[0]}") from error
    return x, y, z


if __name__ == "__main__":
    main()
