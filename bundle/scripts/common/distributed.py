"""Rank and number of processes, before or without a process group: torchrun tells them in the environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .errors import UserError

__all__ = [
    "gather_objects",
    "is_main_process",
    "rank",
    "shard",
    "shard_held_out",
    "start_process_group",
    "world_size",
]


def rank() -> int:
    """Index of this process, 0 where there is only one."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and logs."""
    return rank() == 0


def start_process_group(device: torch.device | str) -> None:
    """Join torchrun's processes: NCCL between GPUs, gloo between CPUs.

    Raises:
        UserError: not started by torchrun.
    """
    if "WORLD_SIZE" not in os.environ:
        raise UserError("the multi_gpu configs need torchrun: torchrun --nproc_per_node=N -m monai.bundle run …")
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def shard(items: Sequence[Any]) -> list[Any]:
    """This process's share of ``items``: every world_size-th, none twice, none left out."""
    return list(items[rank() :: world_size()])


def shard_held_out(items: Sequence[Any]) -> list[Any]:
    """This process's share of the cases that all processes score together.

    Raises:
        UserError: torchrun's processes were not told to work together, or there are fewer cases than processes (one
            without a case would leave the others waiting).
    """
    if world_size() > 1 and not (dist.is_available() and dist.is_initialized()):
        raise UserError(
            "torchrun needs a config that joins its processes: add configs/multi_gpu_train.json in training, "
            "configs/multi_gpu_evaluate.json in evaluation"
        )
    if len(items) < world_size():
        raise UserError(
            f"{len(items)} held-out case(s) for {world_size()} processes: use --nproc_per_node={len(items)}"
        )
    return shard(items)


def gather_objects(items: list[Any], patience: timedelta | None = None) -> list[Any]:
    """The lists of all processes joined in rank order, on every process.

    Args:
        patience: how long to wait for the slowest process, if that may be longer than PyTorch's ten minutes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return items
    group = dist.new_group(backend="gloo", timeout=patience) if patience else None
    gathered: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, items, group=group)
    return [item for part in gathered for item in part]
