"""Draws small weights in ComfyUI's quantized formats, with the numbers that ComfyUI's own library makes of them.

    python tests/references/comfy_quant.py FILE

FILE gets, for each format, the tensors as ComfyUI saves them (`nvfp4.weight`, `nvfp4.weight_scale` …, and the layer's
description in `nvfp4.comfy_quant`) and the last rows of the dequantized weight in float32 (`nvfp4.expected`). Needs
torch and comfy-kitchen.
"""

import argparse
import json
from pathlib import Path

import comfy_kitchen as ck
import torch
from comfy_kitchen.tensor.int8 import TensorWiseINT8Layout
from safetensors.torch import save_file

# More than one tile of scales (128 rows, 4 blocks) in both directions, and not a whole number of them.
TILED_ROWS, MXFP8_COLUMNS, NVFP4_COLUMNS = 136, 160, 80
ROWS, COLUMNS = 8, 256
KEPT = 12  # rows of what is expected


def draw(seed: int, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, said: dict[str, object], expected: torch.Tensor, **parts: torch.Tensor) -> None:
        text = json.dumps(said).encode()
        tensors[f"{name}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        tensors[f"{name}.expected"] = expected[-KEPT:].float().contiguous()
        tensors.update({f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()})

    for number, dtype in enumerate((torch.float8_e4m3fn, torch.float8_e5m2)):
        weight = draw(number)
        scale = weight.abs().max() / torch.finfo(dtype).max
        codes = ck.quantize_per_tensor_fp8(weight, scale, dtype)
        expected = ck.dequantize_per_tensor_fp8(codes, scale, torch.float32)
        name = str(dtype).removeprefix("torch.")
        add(name, {"format": name}, expected, weight=codes, weight_scale=scale)
    codes, scale = ck.quantize_mxfp8(draw(2, TILED_ROWS, MXFP8_COLUMNS))
    expected = ck.dequantize_mxfp8(codes, scale, torch.float32)
    add("mxfp8", {"format": "mxfp8"}, expected, weight=codes, weight_scale=scale)
    weight = draw(3, TILED_ROWS, NVFP4_COLUMNS)
    factor = weight.abs().max() / (448 * 6)
    codes, scale = ck.quantize_nvfp4(weight, factor)
    expected = ck.dequantize_nvfp4(codes, factor, scale, torch.float32)
    add("nvfp4", {"format": "nvfp4"}, expected, weight=codes, weight_scale=scale, weight_scale_2=factor)
    for name, options in (
        ("int8", {"per_channel": False}),
        ("int8_rows", {"per_channel": True}),
        ("int8_convrot", {"per_channel": True, "convrot": True, "convrot_groupsize": 256}),
        ("int8_convrot64", {"per_channel": True, "convrot": True, "convrot_groupsize": 64}),
    ):
        codes, params = TensorWiseINT8Layout.quantize(draw(len(tensors)), **options)
        said = {"format": "int8_tensorwise", **{key: value for key, value in options.items() if key != "per_channel"}}
        add(name, said, TensorWiseINT8Layout.dequantize(codes, params), weight=codes, weight_scale=params.scale)
    save_file(tensors, parser.parse_args().file)


if __name__ == "__main__":
    main()
