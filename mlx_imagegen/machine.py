"""This machine: its memory and how much of it a run may take, its device, the versions that run on it.

Must not know: models, what a run needs (planning/).
"""

import functools
import importlib.metadata
import os
import platform
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
    from . import BLAS, __version__

    device = mx.device_info(mx.default_device())
    return {
        "device": str(device.get("device_name") or device.get("architecture") or mx.default_device()),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "blas": BLAS,
        "mlx-imagegen": __version__,
        "mlx": importlib.metadata.version("mlx"),
    }
