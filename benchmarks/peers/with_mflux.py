"""The blocks by mflux 0.24: with_mflux.py FAMILY FOLDER QUANT OUTPUT ROUNDS, in its own environment."""

import ctypes
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clock import measured, say

if sys.platform == "linux":  # the same BLAS as ours: MLX's bundled one would make this a comparison of BLASes
    ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.common.weights.mapping.weight_mapper import WeightMapper
from mflux.models.flux.model.flux_transformer.transformer import Transformer
from mflux.models.flux.weights.flux_weight_mapping import FluxWeightMapping
from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
from mflux.models.flux2.weights.flux2_weight_mapping import Flux2WeightMapping
from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer
from mflux.models.qwen.weights.qwen_weight_mapping import QwenWeightMapping
from mflux.models.z_image.model.z_image_transformer.transformer import ZImageTransformer
from mflux.models.z_image.weights.z_image_weight_mapping import ZImageWeightMapping


def main(family: str, folder: Path, quant: str, output: Path, rounds: int) -> None:
    ModelConfig.precision = mx.float32
    inputs = mx.load(str(folder / "inputs.safetensors"))
    started = time.perf_counter()
    model = _loaded(family, folder, quant)
    loaded = time.perf_counter()
    side = 8 * inputs["x"].shape[2] if family == "z_image" else 16 * int(inputs["x"].shape[1] ** 0.5)
    sigmas = inputs["timesteps"] / 1000
    config: Any = SimpleNamespace(
        scheduler=SimpleNamespace(sigmas=sigmas, timesteps=inputs["timesteps"]), num_train_steps=1000,
        precision=mx.float32, guidance=0.0, height=side, width=side,
    )  # fmt: skip
    mx.reset_peak_memory()

    def step(index: int) -> mx.array:
        if family == "z_image":  # in its sign; the prompt is given without a batch
            clean = 1 - sigmas[index : index + 1]
            out = model(inputs["x"][0][:, None], clean, sigmas, inputs["txt"][0])[:, 0][None]
        elif family == "flux2":
            out = model(inputs["x"], inputs["txt"], inputs["timesteps"][index], *_places(inputs))
        elif family == "flux":
            out = model(index, config, inputs["x"], inputs["txt"], inputs["pooled"])
        else:
            out = model(index, config, inputs["x"], inputs["txt"], mx.ones(inputs["txt"].shape[:2], mx.int32))
        mx.eval(out)
        return out

    steps, last = measured(step, len(sigmas), rounds)
    np.save(output, np.array(last.astype(mx.float32)))
    say(steps, load_seconds=loaded - started, before_seconds=0.0, mlx_peak_bytes=mx.get_peak_memory())


def _places(inputs: Any) -> tuple[mx.array, mx.array]:
    """FLUX.2's four axes, of the picture and of the text."""
    count, text = inputs["x"].shape[1], inputs["txt"].shape[1]
    side, none = int(count**0.5), mx.zeros((count,), mx.int32)
    places = mx.arange(count)
    picture = mx.stack([none, places // side, places % side, none], axis=-1)
    return picture, mx.stack([*[mx.zeros((text,), mx.int32)] * 3, mx.arange(text)], axis=-1)


def _loaded(family: str, folder: Path, quant: str) -> Any:
    tensors = mx.load(str(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    tensors = {name: value.astype(mx.float32) for name, value in tensors.items()}
    if family == "flux":
        model: Any = Transformer(ModelConfig.schnell(), num_transformer_blocks=1, num_single_transformer_blocks=1)
        mapping = FluxWeightMapping.get_transformer_mapping()
    elif family == "flux2":
        model = Flux2Transformer(num_layers=1, num_single_layers=1)
        mapping = Flux2WeightMapping.get_transformer_mapping()
    elif family == "z_image":
        model = ZImageTransformer(n_layers=1, n_refiner_layers=1)
        mapping = ZImageWeightMapping.get_transformer_mapping()
    else:
        model = QwenTransformer(num_layers=1)
        mapping = QwenWeightMapping.get_transformer_mapping()
    model.update(WeightMapper.apply_mapping(tensors, mapping, num_blocks=1, num_layers=1), strict=False)
    if quant != "none":
        bits = int(quant.removeprefix("q"))
        nn.quantize(model, group_size=64, bits=bits, class_predicate=lambda _, module: hasattr(module, "to_quantized"))
    mx.eval(model.parameters())
    return model


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
