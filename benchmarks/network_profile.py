"""Which kernels a network's train step or forward pass spends its time in."""

from __future__ import annotations

from typing import Any

import torch
from harness import markdown_table, milliseconds
from network_candidates import Shape, Trial
from torch.profiler import ProfilerActivity

STEPS, ROWS, WIDTH = 3, 25, 90


def profile(spec: str, shape: Shape, device: torch.device, amp: bool, mode: str) -> str:
    """A Markdown table of the kernels (on a CPU: operators) that take longest; a failure becomes its text."""
    title = f"**{spec}, {shape}, {mode}{', bfloat16 autocast' if amp else ''}**"
    try:
        trial = Trial(spec, shape, device, amp)
        trial.ready(mode)
        trial.run(mode)
        wall = milliseconds(lambda: trial.run(mode), device, STEPS)
        rows = _kernels(trial, mode, device)
    except Exception as error:  # the next profile may work
        return f"{title}\n\nfailed: {type(error).__name__}: {error}\n"
    busy = sum(ms for _, _, ms in rows)
    cells = [[name, f"{calls:g}", f"{ms:.3f}", f"{100 * ms / busy:.1f} %"] for name, calls, ms in rows[:ROWS]]
    cells.append([f"all {len(rows)}", f"{sum(calls for _, calls, _ in rows):g}", f"{busy:.3f}", "100 %"])
    headers = ["kernel" if device.type == "cuda" else "operator", "calls a step", "ms a step", "share"]
    return f"{title}: {wall:.1f} ms a step without the profiler\n\n{markdown_table(headers, cells)}\n"


def _kernels(trial: Trial, mode: str, device: torch.device) -> list[tuple[str, float, float]]:
    """Name, calls and ms a step, the longest first."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(STEPS):
            trial.run(mode)
        if on_gpu:
            torch.cuda.synchronize(device)
    rows = []
    for event in profiler.key_averages():
        time = _own_time(event, on_gpu)
        if time > 0:
            rows.append((event.key[:WIDTH].replace("|", "/"), event.count / STEPS, time / 1e3 / STEPS))
    return sorted(rows, key=lambda row: -row[2])


def _own_time(event: Any, on_gpu: bool) -> float:
    """Microseconds that an event took itself: kernels on a GPU, operators on a CPU."""
    if not on_gpu:
        return event.self_cpu_time_total
    # Annotations such as "Optimizer.step" span kernels that are listed themselves.
    annotation = getattr(event, "is_user_annotation", False) or event.key.startswith("Optimizer.")
    if event.device_type != torch.autograd.DeviceType.CUDA or annotation:
        return 0.0
    if hasattr(event, "self_device_time_total"):
        return event.self_device_time_total
    return event.self_cuda_time_total  # torch before 2.5
