"""The selective scan of Mamba: one public function, `selective_scan`, and the choice of its backend.

A backend is a file beside this one with two functions: `unavailable(device)`, which says why it cannot run on
that device (None: it can), and `scan(...)`, which takes the checked arguments of `selective_scan` and returns
the output and the last state. To add one, write the file and name it in `_BACKENDS`. `numba_conv` is none: it is
the convolution before the scan, with Numba like `numba_cpu`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import chunked, cuda_gpu, mamba_ssm, naive, numba_cpu, triton_gpu

__all__ = ["BackendError", "backend_report", "choose_backend", "selective_scan"]

# In the order in which "auto" prefers them.
# mamba_ssm stands last: it runs only when asked for, since it lacks float64 and initial states.
_BACKENDS = {
    "cuda": cuda_gpu,
    "triton": triton_gpu,
    "numba": numba_cpu,
    "chunked": chunked,
    "naive": naive,
    "mamba_ssm": mamba_ssm,
}
_NO_FLOAT64 = ("cuda", "triton")


class BackendError(RuntimeError):
    """The backend asked for is unknown or cannot run here; the message says why."""


def backend_report(device: torch.device | str) -> dict[str, str | None]:
    """For each backend, why it cannot run on `device`; None: it can. In the order "auto" prefers them."""
    return {name: backend.unavailable(torch.device(device)) for name, backend in _BACKENDS.items()}


# torch.compile cannot look into it (the search for NVRTC, say), and need not.
@torch.compiler.assume_constant_result
def choose_backend(device: torch.device | str, backend: str = "auto", dtype: torch.dtype = torch.float32) -> str:
    """The name of the backend that runs on `device` when the caller asks for `backend`.

    "auto" is the first backend in the order of `backend_report` that can run and computes in `dtype`; never
    Triton's interpreter (the "triton" backend on a CPU), which is for tests.

    Raises:
        BackendError: `backend` is unknown or cannot run on `device`.
    """
    if backend == "auto":
        return next(name for name in _BACKENDS if _automatic(name, torch.device(device), dtype))
    if backend not in _BACKENDS:
        raise BackendError(f"unknown selective scan backend {backend!r}: choose 'auto' or one of {list(_BACKENDS)}")
    reason = _BACKENDS[backend].unavailable(torch.device(device))
    if reason is not None:
        raise BackendError(f"selective scan backend {backend!r} cannot run on {device}: {reason}")
    return backend


def _automatic(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" may take a backend."""
    if (name in _NO_FLOAT64 and dtype == torch.float64) or (name == "triton" and device.type == "cpu"):
        return False
    return _BACKENDS[name].unavailable(device) is None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan, channels last (Mamba, Gu & Dao 2023, arXiv 2312.00752).

    With delta' = softplus(delta + delta_bias), for each channel and time step t::

        h_t = exp(delta'_t A) h_(t-1) + delta'_t B_t u_t
        y_t = (C_t . h_t + D u_t) SiLU(z_t)

    The state, delta, A and all sums are fp32 (fp64 if u is fp64), also under autocast: half precision in
    exp(delta A) destroys long memory. Differentiable in every tensor argument; in forward mode (torch.func.jvp)
    with the backend "naive" only.

    Args:
        u: input, (batch, length, channels), fp16, bf16, fp32 or fp64.
        delta: step sizes, (batch, length, channels).
        A: state matrix (its diagonal), (channels, state); negative for a state that decays.
        B: input projection, (batch, length, state).
        C: output projection, (batch, length, state).
        D: skip connection, (channels,).
        z: gate, (batch, length, channels).
        delta_bias: added to delta, (channels,).
        delta_softplus: whether softplus is applied to delta (after the bias).
        initial_state: state before the first step, (batch, channels, state); None: zero.
        return_last_state: whether the state after the last step is returned too.
        backend: "auto", or a name in `backend_report`; asked for by name, "cuda" and "triton" refuse fp64.

    Returns:
        y, (batch, length, channels) in u's dtype; with `return_last_state` the pair of y and the last state,
        (batch, channels, state) in fp32 (fp64 if u is fp64).

    Raises:
        ValueError: a shape does not fit, there are no elements, or u is not floating point; it names the argument.
        ValueError: the tensors are not all on one device.
        BackendError: `backend` is unknown or cannot run on u's device, or an argument carries a tangent of forward-mode
            differentiation, which all backends but "naive" would drop.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    name = choose_backend(u.device, backend, u.dtype)
    if name != "naive" and _carry_tangent(u, delta, A, B, C, D, z, delta_bias, initial_state):
        raise BackendError(
            f"selective scan backend {name!r} cannot differentiate in forward mode (torch.func.jvp, forward_ad): ask "
            "for backend='naive', as in LightMUNet(..., backend='naive')"
        )
    chosen = _BACKENDS[name]
    with _without_autocast(u.device):
        y, last_state = chosen.scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    return (y, last_state) if return_last_state else y


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if u.dim() != 3:
        raise ValueError(f"u: expected shape (batch, length, channels), got {tuple(u.shape)}")
    if A.dim() != 2:
        raise ValueError(f"A: expected shape (channels, state), got {tuple(A.shape)}")
    batch, length, channels = u.shape
    state = A.shape[1]
    if state == 0:
        raise ValueError(f"A: expected at least one state a channel, got shape {tuple(A.shape)}")
    if 0 in u.shape:
        raise ValueError(f"u: expected a length of at least 1, and a batch and channels, got shape {tuple(u.shape)}")
    if not u.is_floating_point():
        raise ValueError(f"u: expected a floating point dtype, got {u.dtype}")
    expected = {
        "delta": (delta, (batch, length, channels)),
        "A": (A, (channels, state)),
        "B": (B, (batch, length, state)),
        "C": (C, (batch, length, state)),
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, state)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != u.device:
            raise ValueError(f"{name}: expected on {u.device} like u, got on {tensor.device}")


def _carry_tangent(*tensors: Tensor | None) -> bool:
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, if it is on at all: an unneeded context would only clutter exported graphs.

    The meta device has none. torch.amp.is_autocast_available would say so, but torch 2.11 cannot compile it.
    """
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
