"""Reference pictures of Qwen-Image-2.1: what the language model sees of them, and their latents.

In: a `Prompt` with references, with alpha or without. Out: `EncodedReferences`. Both readers are shown a picture at one
size: the language model on white, the autoencoder with its alpha.
Must not know: the prompt's words, the transformer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
from PIL import Image

from ...autoencoders.qwen_image import normalised
from ...hub.manifest import Manifest
from ...image import proportioned, to_pixels
from ...layers.patches import Grid, patchified
from ...loading.component import Component
from ...loading.config import Config
from ...precision import compute_dtype
from ...vision.patches import to_patches
from ...vision.qwen3 import Features, encode_patches, open_tower
from .files import QwenImage21Files

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class ReferenceRules(Config):
    """[references] of a manifest."""

    area: int  # pixels of a reference as it is read, about
    multiple: int  # its sides are multiples of this many pixels

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls.read(manifest.extras["references"], f"weights/{manifest.name}.toml")

    def size(self, size: Size) -> Size:
        return proportioned(size, self.area, self.multiple)

    def resized(self, picture: Image.Image) -> Image.Image:
        """RGBA"""
        return picture.convert("RGBA").resize(self.size(picture.size), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class EncodedReferences:
    shown: tuple[Grid, ...] = ()  # merged grids, as the language model sees them
    features: Features | None = None
    latents: mx.array | None = None  # packed, in the loop's scale, one picture after another: [1, R, C]


def encode_references(
    pictures: Sequence[Image.Image], rules: ReferenceRules, files: QwenImage21Files, encoder: Component
) -> EncodedReferences:
    """The vision tower is loaded for this and let go again, and so is the autoencoder if it is not there already."""
    if not pictures:
        return EncodedReferences()
    resized = [rules.resized(picture) for picture in pictures]
    stays = encoder.loaded
    latents = [_latents(picture, files, encoder) for picture in resized]
    if not stays:
        encoder.release()
    patches = [to_patches(on_white(picture), files.patches) for picture in resized]
    tower = open_tower(files.vision, files.text)
    features = encode_patches(tower.load(), patches, compute_dtype())
    tower.release()
    return EncodedReferences(tuple(patch.merged for patch in patches), features, mx.concatenate(latents, axis=1))


def on_white(picture: Image.Image) -> Image.Image:
    """RGBA -> RGB"""
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def _latents(picture: Image.Image, files: QwenImage21Files, encoder: Component) -> mx.array:
    """[1, tokens, C], evaluated; the posterior's mode, not a sample."""
    mean, _ = encoder.load().encode(mx.array(to_pixels(picture) * 2 - 1)[None])
    latents = patchified(normalised(mean, files.vae_config), side=1)
    mx.eval(latents)
    return latents
