"""One case of inference.py, as every chain finds it: the image, the network with its weights, and the stopwatch.

Imports no more than nnU-Net's own environment has, as long as the network is not LightM-UNet (which needs MONAI).
"""

from __future__ import annotations

import atexit
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
import torch.nn as nn
from harness import peak_of_process, synchronize

__all__ = ["Case", "OneConvolution", "Stopwatch", "build", "watched", "watched_dataset", "write_image", "write_weights"]

NAME = "image.nii.gz"  # of the image, and in the output folder of the label map


class Case(NamedTuple):
    """What is predicted, and how.

    Args:
        image: the file.
        weights: file of the network's state_dict.
        output: folder of the label map.
        spacing: voxel size of the network's grid in mm.
        patch: of the sliding window; neighbours overlap by half.
        classes: of the network, with the background.
        mirror: whether to average over the images mirrored along each combination of axes.
        network: "conv" or "default".
        options: of LightMUNet where it is "default".
        batch: windows that the network gets at once, for chains that can.
        device: cpu, cuda or cuda:N.
    """

    image: str
    weights: str
    output: str
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    classes: int
    mirror: bool
    network: str
    options: dict[str, Any]
    batch: int
    device: str

    @classmethod
    def read(cls, path: str | Path) -> Case:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self._asdict(), indent=1), encoding="utf-8")

    @property
    def labels(self) -> dict[str, int]:
        """Name -> value of the foreground."""
        return {f"organ_{value}": value for value in range(1, self.classes)}


def write_image(path: Path, shape: Sequence[int]) -> None:
    """A smooth random volume, int16 as a CT, of 1 mm voxels in RAS; nowhere constant."""
    coarse = np.random.default_rng(0).standard_normal([max(2, length // 16) for length in shape], dtype=np.float32)
    fine = nn.functional.interpolate(torch.from_numpy(coarse)[None, None], list(shape), mode="trilinear")[0, 0]
    nib.save(nib.Nifti1Image(fine.mul_(300).to(torch.int16).numpy(), np.eye(4)), path)


class OneConvolution(nn.Conv3d):
    """1 -> classes with a kernel of 3x3x3: a network that takes next to no time.

    Its kernels look alike along all axes and both ways, so that it computes the same however a chain turns the image.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(1, classes, 3, padding=1)
        distance = (torch.stack(torch.meshgrid(*[torch.arange(-1, 2)] * 3, indexing="ij")) ** 2).sum(0)
        with torch.no_grad():
            self.weight.copy_(torch.randn(classes, 4)[:, distance][:, None] / 27)
            self.bias.copy_(torch.randn(classes) / 4)


def build(case: Case) -> nn.Module:
    """The network in eval mode with random weights, the same at each call."""
    torch.manual_seed(0)
    if case.network == "conv":
        return OneConvolution(case.classes).eval()
    sys.path.append(str(Path(__file__).resolve().parents[1] / "bundle"))
    from scripts.networks import LightMUNet

    return LightMUNet(3, 1, case.classes, **case.options).eval()


def write_weights(case: Case) -> None:
    torch.save(build(case).state_dict(), case.weights)


class Stopwatch:
    """Seconds of a prediction and, of these, of the network's forward passes; the process's and the GPU's peak.

    By the clock, and CPU seconds of all threads, which other programs on the machine disturb less. On a GPU a forward
    pass counts as long as the GPU has it at hand, without being waited for.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self._passes: list[tuple[Any, Any]] = []
        self._loaded = self._windows = 0
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave)

    def _enter(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._loaded = self._loaded or peak_of_process()
        self._windows += len(inputs[0])
        self._begin = self._now()

    def _leave(self, *_: Any) -> None:
        self._passes.append((self._begin, self._now()))

    def _now(self) -> tuple[Any, float]:
        if self.device.type != "cuda":
            return time.perf_counter(), time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event, time.process_time()

    def start(self) -> None:
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._passes.clear()
        self._loaded = self._windows = 0
        self._start = time.perf_counter(), time.process_time()

    def outcome(self) -> dict[str, Any]:
        """Since the start; "network_cpu_seconds" on a GPU are those of starting its kernels."""
        synchronize(self.device)
        seconds, cpu_seconds = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        on_gpu = self.device.type == "cuda"
        return {
            "seconds": seconds,
            "network_seconds": sum(a[0].elapsed_time(b[0]) / 1e3 if on_gpu else b[0] - a[0] for a, b in self._passes),
            "cpu_seconds": cpu_seconds,
            "network_cpu_seconds": sum(b[1] - a[1] for a, b in self._passes),
            "windows": self._windows,  # mirrored ones too
            "loading_peak_bytes": self._loaded,  # up to the network's first pass
            "peak_bytes": peak_of_process(),
            "gpu_peak_bytes": torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
        }


def warm(network: nn.Module, case: Case, batch: int, amp: torch.dtype | None) -> None:
    """On a GPU, what a first pass compiles and chooses belongs to no case."""
    device = torch.device(case.device)
    if device.type != "cuda":
        return
    context: AbstractContextManager = torch.autocast("cuda", amp) if amp else nullcontext()
    with torch.inference_mode(), context:
        for _ in range(2):
            network(torch.zeros(batch, 1, *case.patch, device=device))


def watched(case_file: str) -> nn.Module:
    """`network_def` of a run of the bundle: the case's network. The program's last line is what its watch found."""
    case = Case.read(case_file)
    network = build(case).to(case.device)
    warm(network, case, case.batch, torch.bfloat16)
    network.stopwatch = Stopwatch(network, torch.device(case.device))
    atexit.register(lambda: print(json.dumps(network.stopwatch.outcome()), flush=True))
    return network


def watched_dataset(network: nn.Module, **arguments: Any) -> Any:
    """`dataset` of such a run, whose watch starts when the case is asked for: imports are behind it then."""
    from scripts.engines.prediction import CaseDataset

    class Watched(CaseDataset):
        def __getitem__(self, index: int) -> Any:
            network.stopwatch.start()
            return super().__getitem__(index)

    return Watched(**arguments)
