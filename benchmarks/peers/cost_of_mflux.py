"""A step of mflux's transformer, counted as ours is: cost_of_mflux.py FAMILY, in its own environment.

FLUX.1's time and guidance layers run in its step, so they count. Quantized, every layer that it packs has 4 bits.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

import mlx_graph

mlx_graph.pretend_gpu()  # before mflux is imported

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mflux.models.common.config.model_config import ModelConfig
from mflux.models.flux.model.flux_transformer.transformer import Transformer
from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer
from mflux.models.z_image.model.z_image_transformer.transformer import ZImageTransformer
from mlx.utils import tree_flatten, tree_unflatten


def flux1() -> tuple[nn.Module, Any]:
    model = Transformer(ModelConfig.dev())
    return model, lambda config, x, txt, pooled: model(0, config, x, txt, pooled)


def qwen_image() -> tuple[nn.Module, Any]:
    model = QwenTransformer()
    return model, lambda config, x, txt, pooled: model(0, config, x, txt, mx.ones(txt.shape[:2], mx.int32))


def z_image() -> tuple[nn.Module, Any]:
    model = ZImageTransformer()
    return model, lambda config, x, txt, pooled: model(x, mx.array([0.5]), mx.array([0.5, 0.0]), txt[0])


# Family -> how its model is made, and the shapes of x and of the prompt.
FAMILIES = {
    "flux1": (flux1, (1, 4096, 64), (1, 512, 4096)),
    "qwen_image": (qwen_image, (1, 4096, 64), (1, 64, 3584)),
    "z_image": (z_image, (16, 1, 128, 128), (1, 64, 2560)),
}


def cost_of(family: str, bits: int | None) -> dict[str, Any]:
    make, x, txt = FAMILIES[family]
    model, run = make()
    if bits:
        nn.quantize(model, 64, bits, class_predicate=lambda _, module: hasattr(module, "to_quantized"))
    config = SimpleNamespace(
        scheduler=SimpleNamespace(sigmas=np.array([1.0, 0.0]), timesteps=np.array([500.0])), num_train_steps=1000,
        precision=mx.bfloat16, guidance=3.5, height=1024, width=1024, model_config=ModelConfig.dev(),
    )  # fmt: skip
    kept = [(name, mx.zeros(value.shape, _dtype(value))) for name, value in tree_flatten(model.parameters())]
    names = [name for name, _ in kept]
    inputs = [mx.zeros(shape, mx.bfloat16) for shape in (x, txt, (1, 768))]

    def step(*arrays: mx.array) -> mx.array:
        model.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        out: mx.array = run(config, *arrays[len(names) :])
        return out

    return vars(mlx_graph.count(step, [*(value for _, value in kept), *inputs]))


def _dtype(value: mx.array) -> mx.Dtype:
    return value.dtype if value.dtype == mx.uint32 else mx.bfloat16


if __name__ == "__main__":
    family = sys.argv[1]
    ways = {"": None, ", q4": 4} if family in FAMILIES else {}
    print(json.dumps({name: cost_of(family, bits) for name, bits in ways.items()}))
