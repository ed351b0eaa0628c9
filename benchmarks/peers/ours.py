"""The blocks by this library: ours.py FAMILY FOLDER QUANT OUTPUT ROUNDS.

The modulation of all steps is computed before the loop, and timed apart.
"""

import sys
import time
from pathlib import Path
from typing import Any

from clock import measured, say

import mlx_imagegen  # noqa: F401  (OpenBLAS, before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np

from mlx_imagegen.families.flux1 import modulation as flux_modulation
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.families.qwen_image import modulation as qwen_modulation
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.positions import positions
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.layers.linear import Packing
from mlx_imagegen.layers.rope import rope_tables
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import WeightTransforms, open_weights
from mlx_imagegen.packing.affine import pack
from mlx_imagegen.packing.packer import Packer
from mlx_imagegen.precision import compute_dtype


def main(family: str, folder: Path, quant: str, output: Path, rounds: int) -> None:
    inputs = mx.load(str(folder / "inputs.safetensors"))
    path = folder / "transformer" / "config.json"
    data, dtype = read_json(path), compute_dtype()
    transforms = WeightTransforms()
    if quant != "none":  # every linear layer, as mflux has it, and by plain rounding
        packing = Packing(int(quant.removeprefix("q")), 64)
        transforms = WeightTransforms((Packer(pack, lambda *_: packing),))
    config, tree, modulators = _built(family, data, path)
    weights = open_weights(
        "transformer",
        open_checkpoint(path.parent),
        [tree(config), modulators(config)],
        config=data,
        transforms=transforms,
    )
    started = time.perf_counter()
    transformer: Any = Component(weights, lambda: tree(config), dtype).load()
    loaded, processor = time.perf_counter(), time.process_time()
    timesteps = inputs["timesteps"].tolist()
    if family == "flux":
        tables = flux_modulation.tabulate(config, weights.fill, timesteps, 0.0, [inputs["pooled"]], dtype)[0]
    else:
        tables = qwen_modulation.tabulate(config, weights.fill, timesteps, dtype).steps()
    before = time.process_time() - processor
    rope = rope_tables(_places(family, inputs), config.axes_dims_rope, 1e4)
    x, txt = inputs["x"].astype(dtype), inputs["txt"].astype(dtype)
    mx.reset_peak_memory()

    def step(index: int) -> mx.array:
        out = transformer(x, txt, rope, tables[index])
        mx.eval(out)
        return out

    steps, last = measured(step, len(timesteps), rounds)
    np.save(output, np.array(last.astype(mx.float32)))
    say(steps, load_seconds=loaded - started, before_seconds=before, mlx_peak_bytes=mx.get_peak_memory())


def _built(family: str, data: dict[str, Any], path: Path) -> tuple[Any, Any, Any]:
    if family == "flux":
        return FluxConfig.read(data, path), FluxTransformer, flux_modulation.FluxModulators
    return QwenImageConfig.read(data, path), QwenImageTransformer, qwen_modulation.QwenImageModulators


def _places(family: str, inputs: dict[str, mx.array]) -> np.ndarray:
    text, side = inputs["txt"].shape[1], int(inputs["x"].shape[1] ** 0.5)
    if family == "qwen_image":
        return positions(text, [(side, side)])
    rows, columns = np.mgrid[0:side, 0:side]
    image = np.stack([0 * rows, rows, columns], -1).reshape(-1, 3)
    return np.concatenate([np.zeros((text, 3)), image])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
