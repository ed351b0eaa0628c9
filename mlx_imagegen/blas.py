"""On Linux, lets MLX's CPU backend find OpenBLAS: float32 matrix products run about 80x faster than with the
reference BLAS that the mlx-cpu wheel bundles.

Works only before `mlx.core` is imported, which is why the package's `__init__` calls it. Does nothing on macOS
(Accelerate) and nothing where the library is absent; the report and `doctor` say which BLAS runs.
"""

import ctypes
import sys

LIBRARY = "libopenblas.so.0"  # Debian and Ubuntu: package libopenblas0-pthread


def preload() -> str:
    """Loads OpenBLAS's symbols globally; gives the name of the BLAS that MLX will use."""
    if sys.platform == "darwin":
        return "Accelerate"
    if "mlx.core" in sys.modules:
        return "as MLX was imported before mlx_imagegen"
    try:
        ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL)
    except OSError:
        return "reference BLAS (slow; install libopenblas0-pthread)"
    return "OpenBLAS"
