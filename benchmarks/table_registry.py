"""Every figure of the documents by the name that its markers give it: see tables.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import accuracy_rows as rows
from accuracy_networks import count_parameters
from accuracy_tables import all_records, comparison_table, dice, fold_table, score_table, size
from harness import markdown_table
from speed_tables import (
    large_case,
    machine,
    memory_lines,
    milliseconds,
    networks,
    postprocessing,
    precisions,
    scan_ratios,
    scan_shape,
    table_of,
)


def headline() -> str:
    """The new default, the network of the shipped weights and nnU-Net's in eight rows: size, accuracy, time."""
    five, ten = rows.AGAINST_NNUNET.values()
    minute, lungs = (rows.MINUTE[0], rows.MINUTE[2]), (rows.LUNG, rows.LUNG_PLAIN)
    body = [
        ["parameters, hippocampus", _default_parameters(3, 1), *map(size, five)],
        ["parameters, lung X-rays", _default_parameters(2, 1), *map(size, lungs)],
        ["hippocampus, five folds, 5,000 iterations: Dice", "-", *map(dice, five)],
        ["hippocampus, five folds, 10,000 iterations: Dice", "-", *map(dice, ten)],
        ["hippocampus, fold 0, a minute of an H100 (before 0.5): Dice", "-", *map(dice, minute)],
        ["lung X-rays, test cases, 5,000 iterations (before 0.5): Dice", "-", *map(dice, lungs)],
        ["train step, 2x1x80x128x128, one H200: ms", *_passes("train")],
        ["forward, 2x1x80x128x128, one H200: ms", *_passes("forward")],
    ]
    header = ["", "LightM-UNet, the new default", "LightM-UNet of the shipped weights", "nnU-Net's PlainConvUNet"]
    return markdown_table(header, body)


def _default_parameters(dims: int, channels: int) -> str:
    from network_candidates import Shape, default

    return f"{count_parameters(lambda: default(Shape(1, channels, (64,) * dims))):,}"


def _passes(mode: str) -> list[str]:
    networks = ("default", "lightm_unet:scan_order=axes,stem=full", "plain_conv_unet")
    return [milliseconds("networks_h200_bfloat16", "2x1x80x128x128", network, mode) for network in networks]


def parameters() -> str:
    """Of the paper's network, by building it."""
    from scripts.networks import LightMUNet

    def count(dims: int, channels: int, classes: int, filters: int) -> str:
        return f"{count_parameters(lambda: LightMUNet(dims, channels, classes, init_filters=filters)):,}"

    filters = (8, 16, 32)
    body = [
        ["2D, 3 channels, 2 classes", *(count(2, 3, 2, width) for width in filters)],
        ["3D, 1 channel, 3 classes", *(count(3, 1, 3, width) for width in filters)],
    ]
    return markdown_table(["", "8 filters", "16 filters", "32 filters (default)"], body)


def shipped() -> str:
    """The weights in bundle/models, with the record of the training that they come from."""
    body = []
    for path, line in rows.SHIPPED.items():
        (run,) = line.runs()
        log = f"`docs/training_{line.task if path == 'models/model.pt' else path.split('/')[1]}.log`"
        cells = [size(line), f"{run['iterations']:,}", f"{run['train_seconds'] / 60:.0f}", dice(line)]
        body.append([f"`{path}`", line.label, log, *cells])
    header = ["weights", "data", "log", "parameters", "iterations", "minutes", "Dice of held-out cases"]
    return markdown_table(header, body, text_columns=3)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "parameters": parameters,
    "shipped weights": shipped,
    "memory of a train step": memory_lines,
    # Accuracy
    "hippocampus": partial(score_table, rows.HIPPOCAMPUS),
    "hippocampus by folds": partial(fold_table, rows.AGAINST_NNUNET),
    "hippocampus, differences": partial(comparison_table, rows.COMPARISONS),
    "hippocampus before 0.5": partial(score_table, rows.BEFORE),
    "hippocampus before 0.5, differences": partial(comparison_table, rows.COMPARISONS_BEFORE),
    "a minute of training": partial(score_table, rows.MINUTE, hd95=False),
    "two seeds": partial(score_table, rows.SEEDS, about=("no longer there",), hd95=False),
    "lungs": partial(score_table, rows.LUNGS, about=("parameters", "iterations")),
    "lungs, differences": partial(comparison_table, rows.COMPARISONS_LUNGS, folds=False),
    "lungs, convolutions": partial(comparison_table, rows.CONVOLUTIONS_LUNGS, folds=False),
    "changes": partial(score_table, rows.CHANGES, about=("no longer there",), hd95=False),
    "changes with clipped gradients": partial(
        score_table, rows.CLIPPED_CHANGES, about=("no longer there",), hd95=False
    ),
    "all trainings": all_records,
    # The scan
    "scan on a GPU": partial(scan_ratios, "selective_scan_h200_graphs", "float32"),
    "scan on a GPU, one shape": partial(scan_shape, "selective_scan_h200_graphs", "2x262144x64x16"),
    "scan on a GPU, machine": partial(machine, "selective_scan_h200_graphs"),
    "scan on a GPU without graphs": partial(scan_ratios, "selective_scan_h200", "float32"),
    "scan on a GPU without graphs, bfloat16": partial(scan_ratios, "selective_scan_h200", "bfloat16"),
    "scan on a GPU without graphs, machine": partial(machine, "selective_scan_h200"),
    "scan on a CPU": partial(scan_shape, "selective_scan_cpu", "1x65536x64x16"),
    "scan on a CPU, machine": partial(machine, "selective_scan_cpu"),
    # Whole networks
    "networks on a GPU, 2D": partial(networks, "networks_h200", "2x3x512x512"),
    "networks on a GPU, 3D": partial(networks, "networks_h200", "2x1x80x128x128"),
    "networks on a GPU, machine": partial(machine, "networks_h200"),
    "the default on a GPU, 2D": partial(networks, "networks_h200_bfloat16", "2x3x512x512"),
    "the default on a GPU, 3D": partial(networks, "networks_h200_bfloat16", "2x1x80x128x128"),
    "the default on a GPU, small": partial(networks, "networks_h200_bfloat16", "9x1x40x56x40"),
    "the default on a GPU, machine": partial(machine, "networks_h200_bfloat16"),
    "whole iterations": partial(table_of, "iterations", "iterations_h200"),
    "whole iterations, machine": partial(machine, "iterations_h200"),
    "precisions": precisions,
    "recomputation": partial(table_of, "recompute", "recompute_h200"),
    "recomputation, machine": partial(machine, "recompute_h200"),
    "the default on a CPU, 3D": partial(networks, "networks_cpu_default", "1x1x64x64x64"),
    "the default on a CPU, 2D": partial(networks, "networks_cpu_default", "1x3x512x512"),
    "the default on a CPU, training in 3D": partial(networks, "networks_train_cpu_default", "2x1x40x56x40"),
    "the default on a CPU, training in 2D": partial(networks, "networks_train_cpu_default", "4x1x128x128"),
    "the default on a CPU, machine": partial(machine, "networks_train_cpu_default"),
    "inference on a CPU, 2D": partial(networks, "networks_cpu", "1x3x512x512"),
    "inference on a CPU, 3D": partial(networks, "networks_cpu", "1x1x64x64x64"),
    "inference on a CPU, machine": partial(machine, "networks_cpu"),
    "training on a CPU, 2D": partial(networks, "networks_train_cpu", "2x3x256x256"),
    "training on a CPU, 3D": partial(networks, "networks_train_cpu", "1x1x64x64x64"),
    "training on a CPU, machine": partial(machine, "networks_train_cpu"),
    # Around them
    "loading": partial(table_of, "dataloading", "dataloading_cpu"),
    "loading, machine": partial(machine, "dataloading_cpu"),
    "largest components": partial(postprocessing, "largest"),
    "holes": partial(postprocessing, "holes"),
    "surface metrics": partial(postprocessing, "surface"),
    "postprocessing, machine": partial(machine, "postprocessing_cpu"),
    "large case": large_case,
    "large case, machine": partial(machine, "large_case_cpu"),
    "export": partial(table_of, "export", "export_cpu"),
    "export, machine": partial(machine, "export_cpu"),
}
