"""The blocks by this library: ours.py FAMILY FOLDER QUANT OUTPUT ROUNDS.

The modulation of all steps, and what depends only on the prompt, is computed before the loop and timed separately.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clock import measured, say

import mlx_imagegen  # noqa: F401  (OpenBLAS, before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np

from mlx_imagegen.families.flux1 import modulation as flux_modulation
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.families.flux2 import modulation as flux2_modulation
from mlx_imagegen.families.flux2 import positions as flux2_positions
from mlx_imagegen.families.flux2.config import Flux2Config
from mlx_imagegen.families.flux2.transformer import Flux2Transformer
from mlx_imagegen.families.qwen_image import modulation as qwen_modulation
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.positions import positions
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.families.z_image import modulation as z_modulation
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.positions import picture_positions, prompt_positions
from mlx_imagegen.families.z_image.transformer import PromptRefiner, ZImageTransformer, filled_length
from mlx_imagegen.layers.linear import Packing
from mlx_imagegen.layers.patches import patchified, unpatchified
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import Weights, WeightTransforms, open_weights
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
    prepared = PREPARED[family](data, path)
    weights = open_weights(
        "transformer", open_checkpoint(path.parent), prepared.trees, config=data, transforms=transforms
    )
    started = time.perf_counter()
    transformer: Any = Component(weights, lambda: prepared.trees[0], dtype).load()
    loaded, processor = time.perf_counter(), time.process_time()
    step_of = prepared.steps(weights, inputs, dtype)
    before = time.process_time() - processor
    mx.reset_peak_memory()

    def step(index: int) -> mx.array:
        out = step_of(transformer, index)
        mx.eval(out)
        return out

    steps, last = measured(step, inputs["timesteps"].size, rounds)
    np.save(output, np.array(last.astype(mx.float32)))
    say(steps, load_seconds=loaded - started, before_seconds=before, mlx_peak_bytes=mx.get_peak_memory())


class Prepared(NamedTuple):
    trees: list[Any]  # the transformer first
    steps: Callable[[Weights, Any, mx.Dtype], Callable[[Any, int], mx.array]]  # what comes before the loop -> a step


def flux(data: dict[str, Any], path: Path) -> Prepared:
    config = FluxConfig.read(data, path)

    def steps(weights: Weights, inputs: Any, dtype: mx.Dtype) -> Callable[[Any, int], mx.array]:
        timesteps = inputs["timesteps"].tolist()
        tables = flux_modulation.tabulate(config, weights.fill, timesteps, 0.0, [inputs["pooled"]], dtype)[0]
        side = int(inputs["x"].shape[1] ** 0.5)
        rows, columns = np.mgrid[0:side, 0:side]
        image = np.stack([0 * rows, rows, columns], -1).reshape(-1, 3)
        places = np.concatenate([np.zeros((inputs["txt"].shape[1], 3)), image])
        rope = rope_table(places, config.axes_dims_rope, 1e4)
        x, txt = inputs["x"].astype(dtype), inputs["txt"].astype(dtype)
        return lambda transformer, index: transformer(x, txt, rope, tables[index])

    return Prepared([FluxTransformer(config), flux_modulation.FluxModulators(config)], steps)


def flux2(data: dict[str, Any], path: Path) -> Prepared:
    config = Flux2Config.read(data, path)

    def steps(weights: Weights, inputs: Any, dtype: mx.Dtype) -> Callable[[Any, int], mx.array]:
        tables = flux2_modulation.steps(
            flux2_modulation.tabulate(config, weights.fill, inputs["timesteps"].tolist(), dtype)
        )
        side = int(inputs["x"].shape[1] ** 0.5)
        text = flux2_positions.text_positions(inputs["txt"].shape[1])
        places = np.concatenate([text, flux2_positions.picture_positions((side, side))])
        rope = rope_table(places, config.axes_dims_rope, config.rope_theta)
        x, txt = inputs["x"].astype(dtype), inputs["txt"].astype(dtype)
        return lambda transformer, index: transformer(x, txt, rope, tables[index])

    return Prepared([Flux2Transformer(config), flux2_modulation.Flux2Modulators(config)], steps)


def qwen_image(data: dict[str, Any], path: Path) -> Prepared:
    config = QwenImageConfig.read(data, path)

    def steps(weights: Weights, inputs: Any, dtype: mx.Dtype) -> Callable[[Any, int], mx.array]:
        tables = qwen_modulation.steps(
            qwen_modulation.tabulate(config, weights.fill, inputs["timesteps"].tolist(), dtype)
        )
        side = int(inputs["x"].shape[1] ** 0.5)
        rope = rope_table(positions(inputs["txt"].shape[1], [(side, side)]), config.axes_dims_rope, 1e4)
        x, txt = inputs["x"].astype(dtype), inputs["txt"].astype(dtype)
        return lambda transformer, index: transformer(x, txt, rope, tables[index])

    return Prepared([QwenImageTransformer(config), qwen_modulation.QwenImageModulators(config)], steps)


def z_image(data: dict[str, Any], path: Path) -> Prepared:
    config = ZImageConfig.read(data, path)

    def steps(weights: Weights, inputs: Any, dtype: mx.Dtype) -> Callable[[Any, int], mx.array]:
        tables = z_modulation.steps(z_modulation.tabulate(config, weights.fill, inputs["timesteps"].tolist(), dtype))
        x, grid = patchified(inputs["x"], 2, channels_last=True).astype(dtype), (inputs["x"].shape[2] // 2,) * 2
        length = filled_length(inputs["txt"].shape[1])
        prompt, picture = prompt_positions(length), picture_positions(grid, length + 1)
        ropes = [
            rope_table(places, config.axes_dims, config.rope_theta, np.float32)
            for places in (prompt, np.concatenate([picture, prompt]))
        ]
        txt = weights.fill(PromptRefiner(config), dtype=dtype)(inputs["txt"].astype(dtype), ropes[0])
        mx.eval(txt)
        return lambda transformer, index: unpatchified(
            -transformer(x, txt, ropes[1], tables[index]), grid, 2, channels_last=True
        )

    return Prepared([ZImageTransformer(config), PromptRefiner(config), z_modulation.ZImageModulators(config)], steps)


PREPARED = {"flux": flux, "flux2": flux2, "qwen_image": qwen_image, "z_image": z_image}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
