"""Compiles CUDA C++ at run time with NVRTC and launches it on torch's current stream.

NVRTC (libnvrtc) comes with CUDA builds of torch, the launcher (libcuda) with the driver; both are called through
ctypes, so that nothing needs to be installed.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["Kernel", "compile_kernels", "unavailable"]

MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...
# CU_LAUNCH_PARAM_...: the arguments come as one packed buffer.
BUFFER_POINTER, BUFFER_SIZE = ctypes.c_void_p(1), ctypes.c_void_p(2)


def unavailable() -> str | None:
    """Why kernels cannot be compiled here; None: they can."""
    try:
        _nvrtc()
        _driver()
    except OSError as error:
        return f"NVRTC, which comes with CUDA builds of torch, cannot be loaded ({error})"
    return None


class Kernel:
    """One compiled kernel on one device; call it with grid, threads per block, packed arguments, shared bytes."""

    def __init__(self, function: ctypes.c_void_p) -> None:
        self._function = function
        self._shared_limit = 48 * 1024

    def __call__(self, grid: tuple[int, int, int], threads: int, arguments: bytes, shared_bytes: int = 0) -> None:
        """Launch on the current device and stream.

        Raises:
            RuntimeError: the driver refused, with its reason.
        """
        driver = _driver()
        if shared_bytes > self._shared_limit:
            _check(driver.cuFuncSetAttribute(self._function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes))
            self._shared_limit = shared_bytes
        buffer = ctypes.create_string_buffer(arguments, len(arguments))
        size = ctypes.c_size_t(len(arguments))
        extra = (ctypes.c_void_p * 5)(
            BUFFER_POINTER, ctypes.addressof(buffer), BUFFER_SIZE, ctypes.addressof(size), None
        )
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(driver.cuLaunchKernel(self._function, *grid, threads, 1, 1, shared_bytes, stream, None, extra))


def compile_kernels(
    file: str, names: Sequence[str], defines: dict[str, int], device: torch.device
) -> dict[str, Kernel]:
    """Compile a file beside this one for `device`.

    Args:
        file: its name.
        names: of the kernels (extern "C") in it.
        defines: macros for the preprocessor.

    Raises:
        RuntimeError: the compiler's messages.
    """
    major, minor = torch.cuda.get_device_capability(device)
    options = [f"--gpu-architecture=sm_{major}{minor}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in defines.items()]
    binary = _compile(Path(__file__).with_name(file), options)
    driver = _driver()
    with torch.cuda.device(device):
        torch.empty(1, device=device)  # makes torch's context current, into which the module is loaded
        module = ctypes.c_void_p()
        _check(driver.cuModuleLoadData(ctypes.byref(module), binary))
        kernels = {}
        for name in names:
            function = ctypes.c_void_p()
            _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
            kernels[name] = Kernel(function)
    return kernels


def _compile(path: Path, options: list[str]) -> bytes:
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None)
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    what = "ProgramLog" if failed else "CUBIN"
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(f"NVRTC cannot compile {path.name} ({' '.join(options)}): {text.value.decode()}")
    return text.raw


def _check(result: int) -> None:
    if result:
        message = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(message))
        raise RuntimeError(f"CUDA driver error {result}: {(message.value or b'unknown').decode()}")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    major = (torch.version.cuda or "0").split(".")[0]
    windows = sys.platform == "win32"
    # torch has it loaded, or at least knows its folder.
    return ctypes.CDLL(f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
