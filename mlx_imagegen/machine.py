"""This machine: its memory and how much of it a run may hold, its device, and the versions that run on it.

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
from typing import NamedTuple

import mlx.core as mx

from .precision import gpu_generation, on_gpu

GB = 1e9
GIB = 2**30
# Of a machine without a GPU, whose memory the system and every open window share.
USABLE_SHARE = 0.7
# What macOS lets the GPU hold of a Mac's memory: two thirds up to 32 GiB, three quarters above.
SMALL_BYTES, SMALL_SHARE, LARGE_SHARE = 32 * GIB, 2 / 3, 3 / 4
SPARE_ADDRESS_BYTES = 2**28  # for the stacks of threads and what else libraries take
STATM = Path("/proc/self/statm")  # Linux: how much a process has, in pages
# The first GPU generation with matrix units, and what MLX needs to use them.
MATRIX_GENERATION, MATRIX_MACOS, MATRIX_WHEEL = 17, (26, 2), 26


class MemoryLimit(NamedTuple):
    """How much a run may hold."""

    most_bytes: int  # one that needs more is refused
    usable_bytes: int  # what it takes without being asked to
    physical_bytes: int
    on_gpu: bool
    is_ulimit: bool = False  # less than the machine's, by a limit of this process

    def __str__(self) -> str:
        if self.is_ulimit:
            return f"this process may take {self.most_bytes / 1e6:.0f} MB more (ulimit -v)"
        if not self.on_gpu:
            return f"this machine has {self.physical_bytes / GB:.1f} GB"
        return f"this machine's GPU may hold {self.most_bytes / GB:.1f} of {self.physical_bytes / GB:.1f} GB"


def memory_limit() -> MemoryLimit:
    """On a GPU its working set, which `sysctl iogpu.wired_limit_mb` can raise: what is beyond it fails or is paged out
    in the middle of a step. On the CPU all of the memory, of which a share is used."""
    physical = physical_bytes()
    left = _address_bytes_left()
    if left is not None and left < physical:
        return MemoryLimit(left, left, physical, on_gpu(), True)
    if not on_gpu():
        return MemoryLimit(physical, int(physical * USABLE_SHARE), physical, False)
    working_set = _working_set_bytes() or working_set_of(physical)
    return MemoryLimit(working_set, working_set, physical, True)


def _address_bytes_left() -> int | None:
    """What `ulimit -v` leaves this process beyond what it has and MLX does not use; None without such a limit. Arrays
    beyond it end some libraries' threads, and the process with them."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or not STATM.is_file():  # macOS does not keep to it
        return None
    used = int(STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return max(most - used - SPARE_ADDRESS_BYTES + mx.get_active_memory() + mx.get_cache_memory(), 0)


def working_set_of(physical: int) -> int:
    """What macOS lets the GPU hold of so much memory, where it was not asked."""
    return int(physical * (SMALL_SHARE if physical <= SMALL_BYTES else LARGE_SHARE))


def _working_set_bytes() -> int:
    return int(mx.device_info(mx.gpu).get("max_recommended_working_set_size", 0))


@functools.cache  # on a Mac it takes a process to ask, and doctor asks for every model and quant
def physical_bytes() -> int:
    if sys.platform == "darwin":
        return int(subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, check=True).stdout)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
    generation = gpu_generation() if macos_version() else None
    # A phone's chip has them a generation later.
    if generation is None or generation[0] < MATRIX_GENERATION + (generation[1] == "p"):
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
