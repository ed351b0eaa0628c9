"""`python -m mlx_imagegen.quantize` is the command `mlx-imagegen quantize`.

Imported, this module is the function `mlx_imagegen.quantize`: an import binds the module to the function's name in the
package, and would hide it.
"""

import sys

if __name__ == "__main__":
    from .cli import entry

    entry("quantize")

from .quantization.quantizer import quantize

quantize.__spec__ = __spec__  # type: ignore[attr-defined]  # importlib asks every entry of sys.modules for it
sys.modules[__name__] = quantize  # type: ignore[assignment]
