"""Native MLX image generation: FLUX.1, Qwen-Image and HiDream-O1-Image on Apple Silicon.

from mlx_imagegen import generate
generate("a lighthouse at dusk").save("lighthouse.png")
"""

import importlib
from typing import Any

from . import blas

__version__ = "0.1.0"
BLAS = blas.preload()  # before anything imports mlx.core; see blas.py

# Where each public name lives. Modules are imported when a name is first used: importing the package stays cheap.
_HOMES = {
    "generate": "api",
    "load": "pipeline",
    "quantize": "quantization.quantizer",
    "Pipeline": "pipeline",
    "Result": "pipeline",
    "ImagegenError": "errors",
}
__all__ = [*sorted(_HOMES)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mlx_imagegen' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
