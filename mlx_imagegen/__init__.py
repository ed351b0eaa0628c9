"""Native MLX image generation: FLUX.1, Qwen-Image and HiDream-O1-Image on Apple Silicon.

from mlx_imagegen import generate
generate("a lighthouse at dusk").save("lighthouse.png")
"""

from . import interrupts

if interrupts.is_program():  # before all that takes time
    interrupts.begin()

import importlib
from typing import TYPE_CHECKING

from . import runtime

if TYPE_CHECKING:
    from .api import generate
    from .errors import ImagegenError
    from .pipeline import Pipeline, load
    from .quantization.quantizer import quantize
    from .result import Result
    from .upsampling.api import upsample

__version__ = "0.1.0"
__all__ = ["ImagegenError", "Pipeline", "Result", "generate", "load", "quantize", "upsample"]
RUNTIME = runtime.prepare()  # before anything imports mlx.core; see runtime.py

# Where each public name lives. Modules are imported when a name is first used: importing the package stays cheap.
_HOMES = {
    "generate": "api",
    "load": "pipeline",
    "quantize": "quantization.quantizer",
    "upsample": "upsampling.api",
    "Pipeline": "pipeline",
    "Result": "result",
    "ImagegenError": "errors",
}


if not TYPE_CHECKING:  # type checkers have the names above, and report all others

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'mlx_imagegen' has no attribute '{name}'")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
