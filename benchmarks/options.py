"""Command-line options that several benchmarks have."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def argument_parser(description: str) -> argparse.ArgumentParser:
    """With --json and --from-json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go, each as it is known")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing, print earlier figures again")
    return parser


def comparison_parser(description: str) -> argparse.ArgumentParser:
    """Of a benchmark that runs for long on either device: it can be resumed, and prints several records at once."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--cuda-graph", action="store_true", help="GPU: replay each call as one CUDA graph")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU (default 2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget-s", type=float, default=1200, help="stop after so many seconds (default 1200)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="CPU: do not measure memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, at once as it is known")
    parser.add_argument("--from-json", nargs="+", type=Path, metavar="FILE", help="measure nothing, print these again")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --json FILE holds")
    return parser
