"""This machine: its memory and how much of it a run may take, its device, the versions that run on it.

Must not know: models, what a run needs (planning/).
"""

import functools
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from .precision import on_gpu

GB = 1e9
# A Mac shares its memory with the system and every open window; macOS itself lets the GPU wire about 3/4 of it.
USABLE_SHARE = 0.7
# Freed buffers that MLX keeps for reuse. On Metal its own default is the whole memory limit: the next stage starves.
CACHE_LIMIT_BYTES = 2 * 2**30
CPU_CACHE_LIMIT_BYTES = 256 * 2**20  # there the buffers are larger (float32) and the system hands out new ones quickly
# The first GPU generation with matrix units, and what MLX needs to use them.
MATRIX_GENERATION, MATRIX_MACOS, MATRIX_WHEEL = 17, (26, 2), 26


@functools.cache  # on a Mac it takes a process to ask, and doctor asks for every model and quant
def physical_bytes() -> int:
    if sys.platform == "darwin":
        return int(subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, check=True).stdout)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def process_peak_bytes() -> int:
    """The most this process ever held. Linux's ru_maxrss begins with what the parent held: VmHWM does not."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bound_cache() -> None:
    mx.set_cache_limit(CACHE_LIMIT_BYTES if on_gpu() else CPU_CACHE_LIMIT_BYTES)


def machine() -> dict[str, str]:
    from . import RUNTIME, __version__

    device = mx.device_info(mx.default_device())
    return {
        "device": str(device.get("device_name") or device.get("architecture") or mx.default_device()),
        "platform": platform.platform(),
        "system": system(),
        "python": sys.version.split()[0],
        "blas": RUNTIME.blas,
        "TF32": RUNTIME.tf32,
        "matrix units": matrix_units(),
        "mlx-imagegen": __version__,
        "mlx": importlib.metadata.version("mlx"),
    }


def system() -> str:
    """The part of the platform that kernels depend on."""
    version = ".".join(map(str, macos_version()))
    return f"macOS {version}" if version else platform.system()


@functools.cache
def macos_version() -> tuple[int, ...]:
    """Empty elsewhere."""
    return tuple(int(part) for part in platform.mac_ver()[0].split(".") if part.isdigit())


def matrix_units() -> str:
    """Whether MLX multiplies on the GPU's matrix units: its generation, the system and MLX's wheel decide."""
    if not on_gpu() or not macos_version():
        return "none"
    found = re.fullmatch(r"applegpu_g(\d+)(\w)", str(mx.device_info(mx.gpu).get("architecture", "")))
    # A phone's chip has them a generation later.
    if found is None or int(found[1]) < MATRIX_GENERATION + (found[2] == "p"):
        return "none"
    if macos_version() < MATRIX_MACOS:
        return f"not used: they need macOS {'.'.join(map(str, MATRIX_MACOS))}"
    wheel = wheel_macos()
    if wheel is not None and wheel < MATRIX_WHEEL:
        return f"not used: MLX's wheel is for macOS {wheel}, and they need the one for {MATRIX_WHEEL}"
    return "in use"


@functools.cache
def wheel_macos() -> int | None:
    """The oldest macOS that the installed wheel of MLX's Metal backend is for; None if that is not known."""
    try:
        text = importlib.metadata.distribution("mlx-metal").read_text("WHEEL") or ""
    except importlib.metadata.PackageNotFoundError:
        return None
    tag = re.search(r"^Tag: .*-macosx_(\d+)_", text, re.MULTILINE)
    return int(tag[1]) if tag else None
