"""`doctor`: what this machine and this installation are, and what should be changed about them.

Out: facts as names and values, and warnings as sentences.
Must not know: models, the command line.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from ..hub.download import HuggingFace
from ..kernels import cache_file
from ..limits import bound_cache
from ..machine import GB, machine, memory_limit, wheel_macos
from ..precision import compute_dtype, dtype_name, emulates_bfloat16, on_gpu
from .sheet import unwritable


def facts() -> dict[str, str]:
    """What there is to know about the machine and the installation."""
    limit, cache, is_mac = memory_limit(), Path(HuggingFace().cache), sys.platform == "darwin"
    room = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    files = [path for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]  # snapshots are links
    downloaded = sum(path.stat().st_size for path in files)
    emulated = "; FLUX.1's transformer float16, for this chip only emulates bfloat16" if emulates_bfloat16() else ""
    return {
        **machine(),
        "chip": _printed("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{limit.physical_bytes / GB:.1f} GB, of which {limit.usable_bytes / GB:.1f} GB are counted on",
        "GPU": _gpu(),
        "MLX's Metal wheel": f"for macOS {wheel_macos()} and later" if wheel_macos() else "none",
        "low-power mode": low_power_of(_printed("pmset", "-g").splitlines()) if is_mac else "unknown: only macOS says",
        "numbers": f"{dtype_name(compute_dtype())}{emulated} (precision.py says why)",
        "MLX's cache of freed buffers": f"up to {_cache_limit() / GB:.2f} GB",
        "measured kernels": f"{cache_file()}{'' if cache_file().is_file() else ', none yet'}",
        "downloads": f"{cache}: {downloaded / GB:.1f} GB, {room / GB:.0f} GB free there",
        "letters on sheets": "Latin only: no Chinese or Japanese font was found" if unwritable(["字"]) else "all",
        **{name: _version(name) for name in ("mlx-vlm", "numpy", "pillow")},
    }


def warnings(known: dict[str, str]) -> list[str]:
    """What should be changed about the machine."""
    found = []
    if "reference" in known["blas"]:
        found.append("MLX multiplies with its reference BLAS, about 80 times slower: install libopenblas0-pthread.")
    if sys.platform == "darwin" and platform.machine() != "arm64":
        found.append("this Python runs in translation or on an Intel Mac; MLX needs an arm64 Python on Apple Silicon.")
    if known["matrix units"].startswith("not used"):
        found.append(f"the GPU's matrix units are {known['matrix units']}; products take about four times as long.")
    if known["low-power mode"] == "on":
        found.append("low-power mode is on: the GPU runs slower. Turn it off in System Settings, Battery or Energy.")
    return found


def low_power_of(lines: list[str]) -> str:
    """By the lines of `pmset -g`, which a desktop's leaves it out of."""
    values = [line.split()[1] for line in lines if line.split()[:1] in (["lowpowermode"], ["powermode"])]
    return "unknown" if not values else "on" if values[0] == "1" else "off"


def _gpu() -> str:
    if not on_gpu():
        return "none that MLX uses; it runs on the CPU"
    info = mx.device_info(mx.gpu)
    limit = float(info.get("max_recommended_working_set_size", 0)) / GB
    wired = _printed("sysctl", "-n", "iogpu.wired_limit_mb")
    asked = f"set to {wired} MB" if wired and wired != "0" else "the system's own"
    return f"{info.get('device_name')}: may hold {limit:.1f} GB (wired limit: {asked})"


def _cache_limit() -> int:
    before = mx.set_cache_limit(0)  # there is no other way to read it
    bound_cache()
    limit = mx.set_cache_limit(before)
    return limit


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _printed(*command: str) -> str:
    """By a program of macOS; nothing elsewhere."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() if sys.platform == "darwin" else ""
