"""FLUX.1-Redux: pictures as further tokens of the prompt.

SigLIP's features of a picture, put through two linear layers, stand after T5's in the prompt; of several pictures their
tokens are added up, each times its scale, and so is the text.
In: a folder with image_encoder/ and image_embedder/; pictures. Out: tokens, and a prompt with them.
Must not know: the transformer, requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import silu
from ...layers.linear import Linear
from ...loading.component import Component
from ...loading.config import Config
from ...loading.weights import check_tensors
from ...precision import compute_dtype
from ...vision.pixels import read_fixed_size
from ...vision.siglip import OF_THE_WHOLE, UNUSED, SiglipConfig, SiglipVisionModel
from ...vision.tower import without_prefix
from ..image_prompts import ImageAdapter, ImagePrompt, check_width, open_part
from .config import FluxConfig
from .prompts import PromptPictures

EXPANSION = 3  # of the layer in between, in widths of the text; fixed in diffusers' code


@dataclass(frozen=True)
class ReduxConfig(Config):
    """image_embedder/config.json"""

    CLASSES: ClassVar[frozenset[str]] = frozenset({"ReduxImageEncoder"})

    redux_dim: int
    txt_in_features: int


class ReduxEmbedder(nn.Module):
    def __init__(self, config: ReduxConfig):
        super().__init__()
        inner = EXPANSION * config.txt_in_features
        self.redux_up = Linear(config.redux_dim, inner)
        self.redux_down = Linear(inner, config.txt_in_features)

    def __call__(self, x: mx.array) -> mx.array:
        return self.redux_down(silu(self.redux_up(x)))


class FluxRedux(ImageAdapter[PromptPictures]):
    def __init__(self, name: str, folder: Path, model: FluxConfig):
        """`model`: the transformer's config, in whose text the pictures stand."""
        self.name = name
        path, embedder = open_part(name, folder, "image_embedder")
        config = ReduxConfig.read(dict(embedder.config), path)
        check_width(path, "txt_in_features", config.txt_in_features, model.joint_attention_dim, "this model's text")
        path, encoder = open_part(name, folder, "image_encoder", without_prefix)
        tower = SiglipConfig.read(dict(encoder.config), path)
        check_width(path, "hidden_size", tower.hidden_size, config.redux_dim, "its image_embedder")
        self._pixels = read_fixed_size(folder / "feature_extractor/preprocessor_config.json", tower.image_size)
        self.prompt_tokens = tower.patches
        dtype = compute_dtype()
        self._encoder = Component(
            check_tensors(encoder, [SiglipVisionModel(tower)], (*UNUSED, *OF_THE_WHOLE)),
            lambda: SiglipVisionModel(tower),
            dtype,
            heads=tower.num_attention_heads,
        )
        self._embedder = Component(
            check_tensors(embedder, [ReduxEmbedder(config)]), lambda: ReduxEmbedder(config), dtype
        )
        self.components = {each.weights.component: each for each in (self._encoder, self._embedder)}
        self.tokens = dict.fromkeys(self.components, tower.patches)

    def encode(self, images: Sequence[ImagePrompt]) -> PromptPictures:
        tokens = mx.array(0.0)
        for image in images:  # one after the other: an activation is as large as the sum
            tokens = tokens + image.scale * self._tokens(image)
            mx.eval(tokens)
        return PromptPictures(tokens, sum(image.scale for image in images))

    def _tokens(self, image: ImagePrompt) -> mx.array:
        pixels = mx.array(self._pixels.prepared(image.picture))[None].astype(compute_dtype())
        features = self._encoder.load()(pixels)
        tokens: mx.array = self._embedder.load()(features)
        return tokens.astype(mx.float32)
