"""`python -m mlx_imagegen.quantize`: the same as `mlx-imagegen quantize`. The function of that name is in
quantization/quantizer.py."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(["quantize", *sys.argv[1:]]))
