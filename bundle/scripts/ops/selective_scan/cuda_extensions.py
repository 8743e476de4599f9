"""Whether the reference's compiled CUDA packages really import, and if not, why and what helps.

They are built on the user's machine against one torch: after an update of torch they import no more, and the
message (an undefined symbol) does not say so.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from importlib import metadata
from typing import NamedTuple

__all__ = ["CAUSAL_CONV1D", "MAMBA_SSM", "CudaExtension", "ImportFailure", "import_failure", "is_installed"]


class CudaExtension(NamedTuple):
    """A package with a compiled part.

    Args:
        package: as pip calls it.
        modules: what has to import, the package's own name first.
        binary: its compiled module.
        variables: environment variables that make pip build it here, CUDA code included.
    """

    package: str
    modules: tuple[str, ...]
    binary: str
    variables: tuple[str, ...]


MAMBA_SSM = CudaExtension(
    "mamba-ssm",
    ("mamba_ssm", "mamba_ssm.ops.selective_scan_interface"),
    "selective_scan_cuda",
    # KEEP: source trees after 2.3.2 leave the CUDA code out without it; 2.3.2 itself does not know it.
    ("MAMBA_FORCE_BUILD", "MAMBA_KEEP_CUDA_BUILD"),
)
CAUSAL_CONV1D = CudaExtension("causal-conv1d", ("causal_conv1d",), "causal_conv1d_cuda", ("CAUSAL_CONV1D_FORCE_BUILD",))


class ImportFailure(NamedTuple):
    """Why a package does not import, in one line, and what helps."""

    reason: str
    cure: str


def is_installed(extension: CudaExtension) -> bool:
    """Whether any part of it is there, working or not."""
    return any(importlib.util.find_spec(name) is not None for name in (extension.modules[0], extension.binary))


@functools.cache
def import_failure(extension: CudaExtension) -> ImportFailure | None:
    """Try the import, once in a process; None if it works."""
    if not is_installed(extension):
        return ImportFailure(f"{extension.package} is not installed", build_command(extension))
    try:
        importlib.import_module("torch")  # the compiled part takes torch's libraries from there
        for name in (extension.binary, *extension.modules):
            importlib.import_module(name)
    except Exception as error:  # a package that is half there can raise anything
        return _explain(extension, error)
    return None


def build_command(extension: CudaExtension, again: bool = False) -> str:
    """How to build the package against the installed torch; `again`: in place of a build that does not fit."""
    variables = " ".join(f"{name}=TRUE" for name in extension.variables)
    # pip keeps the wheel that it once built, and would install it again for another torch.
    replace = "--no-cache-dir --force-reinstall --no-deps " if again else "--no-cache-dir "
    return f"{variables} pip install --no-build-isolation {replace}{_pinned(extension)}"


def _pinned(extension: CudaExtension) -> str:
    try:
        return f"{extension.package}=={metadata.version(extension.package)}"
    except metadata.PackageNotFoundError:
        return extension.package


def _explain(extension: CudaExtension, error: Exception) -> ImportFailure:
    text = " ".join(str(error).split()) or type(error).__name__
    symbol = re.search(r"undefined symbol: (\S+)", text)
    library = re.search(r"(\S+\.so[.\d]*): cannot open shared object file", text)
    if symbol:
        reason = f"{extension.binary} was built for another torch than the installed one: undefined symbol {symbol[1]}"
    elif library:
        reason = f"{extension.binary} was built for another torch or CUDA than the installed: {library[1]} is missing"
    elif isinstance(error, ModuleNotFoundError) and error.name == extension.binary:
        reason = f"only the Python part of {extension.package} is installed, without the CUDA extension {error.name}"
    elif isinstance(error, ModuleNotFoundError) and error.name not in extension.modules:
        return ImportFailure(f"{extension.package} needs the package {error.name}", f"pip install {error.name}")
    else:
        reason = f"{extension.package} cannot be imported ({type(error).__name__}: {text})"
    return ImportFailure(reason, build_command(extension, again=True))
