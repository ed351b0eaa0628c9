"""ColourField, open: a two-block transformer over 8x8 patches of pixels, conditioned on one vector a word."""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_imagegen.families.base import Denoiser, Family, Prompt, Settings
from mlx_imagegen.families.folder import DiffusersFolder
from mlx_imagegen.layers.attention import attend, split_heads
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.patches import patchified, unpatchified
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.names import RowRange
from mlx_imagegen.loading.weights import Weights
from mlx_imagegen.random import TorchGenerator
from mlx_imagegen.sampling import Schedule, timesteps_schedule

DIMS, HEADS, PATCH, VALUES = 128, 2, 8, 3 * 8 * 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = Linear(DIMS, DIMS), Linear(DIMS, DIMS), Linear(DIMS, DIMS)
        self.colour_mixer = Linear(DIMS, DIMS)

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (split_heads(layer(x), HEADS) for layer in (self.to_q, self.to_k, self.to_v))
        return x + self.colour_mixer(attend(q, k, v))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x_in, self.x_out = Linear(VALUES, DIMS), Linear(DIMS, VALUES)
        self.blocks = [Block(), Block()]

    def __call__(self, x: mx.array, words: mx.array) -> mx.array:
        x = mx.concatenate([words, self.x_in(x)], axis=1)
        for block in self.blocks:
            x = block(x)
        return self.x_out(x[:, words.shape[1] :])


class ColourDenoiser(Denoiser[mx.array]):
    def branch_velocity(self, x: mx.array, index: int, branch: mx.array) -> mx.array:
        return self.transformer.load()(x, branch)


class ColourField(Family[mx.array]):
    name = "colour_field"
    stages = {"encode": (), "denoise": ("transformer",), "decode": (), "encode_image": ()}

    def __init__(self, weights: Weights):
        super().__init__({"transformer": Component(weights, Transformer, mx.float32, heads=HEADS)})

    @staticmethod
    def open_files(folder: DiffusersFolder) -> Weights:
        return folder.weights("transformer", [Transformer()])

    @property
    def size_multiple(self) -> int:
        return PATCH

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[mx.array, list[str]]:
        words = [np.random.default_rng(zlib.crc32(word.encode())).standard_normal(DIMS) for word in prompt.text.split()]
        return mx.array(np.stack(words or [np.zeros(DIMS)])[None].astype(np.float32)), []

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        return 1, 3, settings.height, settings.width

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, PATCH)

    def schedule(self, settings: Settings) -> Schedule:
        return timesteps_schedule([1000 * (1 - index / settings.steps) for index in range(settings.steps)])

    def denoiser(self, branches: Sequence[mx.array], schedule: Schedule, settings: Settings) -> ColourDenoiser:
        return ColourDenoiser(self.transformer, branches, settings.cfg)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        return mx.tanh(unpatchified(x, self.grid(settings), PATCH)[0].transpose(1, 2, 0))

    def encode_image(self, picture: mx.array, stream: TorchGenerator | None = None) -> mx.array:
        return picture.transpose(2, 0, 1)[None]

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        return {module.replace("colour_mixer", "mix"): [RowRange(module)] for module in modules}


def draw(folder: Path) -> Path:
    """A checkpoint with random weights."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ColourFieldPipeline"}))
    (folder / "transformer" / "config.json").write_text("{}")
    dice = np.random.default_rng(0)

    def drawn(value: Any) -> mx.array:
        return mx.array((dice.standard_normal(value.shape) * 0.1).astype(np.float32))

    tensors = {name: drawn(value) for name, value in tree(Transformer())}
    mx.save_safetensors(str(folder / "transformer" / "model.safetensors"), tensors)
    return folder


def tree(module: nn.Module) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return tree_flatten(module.parameters())
