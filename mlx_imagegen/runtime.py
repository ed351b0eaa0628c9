"""What has to be set before MLX's first product: it and its BLAS read these once, and never again.

- TF32 is turned off. MLX rounds the factors of float32 products to 10 bits of mantissa where the chip has matrix units
  (M5 and later, NVIDIA), and most 3x3 convolutions take the same way; precision.py says what that costs. Whoever sets
  MLX_ENABLE_TF32 keeps it. bfloat16 products use the matrix units either way.
- On Linux, MLX's CPU backend finds OpenBLAS: float32 products run about 80x faster than with the reference BLAS that
  the mlx-cpu wheel bundles. That works only before `mlx.core` is imported. macOS has Accelerate.

The package's `__init__` calls `prepare`; reports and `doctor` repeat what it gives.
"""

import ctypes
import os
import re
import resource
import sys
from typing import NamedTuple

LIBRARY = "libopenblas.so.0"  # Debian and Ubuntu: package libopenblas0-pthread
# What OpenBLAS takes for itself and for each processor. Where it gets none it ends the process, or asks for ever.
LIBRARY_BYTES, THREAD_BYTES = 2**29, 2**25
TF32 = "MLX_ENABLE_TF32"


class Runtime(NamedTuple):
    blas: str  # what the CPU backend multiplies with
    tf32: str  # "off", or why not


def prepare() -> Runtime:
    return Runtime(_load_blas(), _turn_off_tf32())


def _turn_off_tf32() -> str:
    """MLX reads the variable when it first multiplies; os.environ reaches the C library's environment."""
    value = os.environ.setdefault(TF32, "0")
    return f"on, by {TF32}={value}" if re.match(r"\s*[+-]?0*[1-9]", value) else "off"  # as C's atoi reads it


def _load_blas() -> str:
    """Loads OpenBLAS's symbols globally; gives the name of the BLAS that MLX will use."""
    if sys.platform == "darwin":
        return "Accelerate"
    if "mlx.core" in sys.modules:
        return "as MLX was imported before mlx_imagegen"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LIBRARY_BYTES + THREAD_BYTES * (os.cpu_count() or 1):
        return f"reference BLAS (slow; OpenBLAS needs more than {limit / 1e6:.0f} MB, the limit by ulimit -v)"
    try:
        ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL)
    except OSError:
        return "reference BLAS (slow; install libopenblas0-pthread)"
    return "OpenBLAS"
