"""The smallest Triton kernel, to see whether any runs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def increment(number):
    tl.store(number, tl.load(number) + 1)
