"""What families share whose loop runs on FLUX.2's latents: cells of 2 x 2, normed, a token each.

In: opened files, and how reference pictures are prepared. Out: the part of a `Family` that turns pictures into cells
and cells into pictures, and owns components.
Must not know: transformers' layers, prompts' templates.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ..autoencoders.flux2 import SIDE, Decoder, Encoder
from ..layers.patches import patchified, unpatchified
from ..layers.rope import Rope, rope_table
from ..layers.sharing import Cuts
from ..loading.component import Component
from ..masks import interpolated
from ..precision import compute_dtype
from ..random import TorchGenerator
from .base import EncodedReferences, Prompt, Settings, TextBranch, cut_notes
from .cell_files import CellFiles
from .language import LanguageFamily, language_model
from .latents import autoencoder

Size = tuple[int, int]  # width, height


class Preparation(Protocol):
    """How large reference pictures are encoded, and what of them."""

    def sizes(self, sizes: Sequence[Size], multiple: int) -> list[Size]: ...

    def prepared(self, pictures: Sequence[Image.Image], multiple: int) -> list[Image.Image]: ...


class CellFamily(LanguageFamily[TextBranch]):
    files: CellFiles
    stages = LanguageFamily.stages | {"references": ("vae_encoder",)}
    unfoldable = (
        "all blocks share their modulation, 4% of the weights, which is read once before the loop and does not stay in "
        "memory; there is little to gain"
    )

    def __init__(self, files: CellFiles, preparation: Preparation, transformer: Callable[[], nn.Module], cuts: Cuts):
        """`cuts`: how the transformer's layers are shared out over several machines."""
        heads, vae = files.config.num_attention_heads, files.vae_config
        components = {
            **autoencoder(files.vae, vae, Decoder, Encoder),
            "text_encoder": language_model(files),
            "transformer": Component(files.transformer, transformer, compute_dtype(), heads=heads, cuts=cuts),
        }
        super().__init__(components, vae.cell_channels, side=1, scale=SIDE * vae.scale_factor)
        self._preparation = preparation

    def unpack(self, x: mx.array, settings: Settings) -> mx.array:
        """Its cells taken apart; still normalised."""
        return unpatchified(x, self.grid(settings), SIDE)

    def encode_image(self, picture: mx.array, stream: TorchGenerator | None = None) -> mx.array:
        """In cells; the posterior's mode, not a sample."""
        latents = super().encode_image(picture)
        return unpatchified(patchified(latents, SIDE), (latents.shape[2] // SIDE, latents.shape[3] // SIDE), 1)

    def latent_mask(self, mask: mx.array, settings: Settings) -> mx.array:
        return interpolated(mask, self.grid(settings))

    def encoded_references(self, prompt: Prompt) -> EncodedReferences:
        pictures, multiple = prompt.references, self.size_multiple
        prepared = self._preparation.prepared
        return self._references.get(
            prompt.references_key, lambda: self.encode_pictures(prepared(pictures, multiple) if pictures else ())
        )

    def reference_count(self, prompt: Prompt) -> int:
        """The tokens of a prompt's reference pictures, by their sizes alone."""
        sizes = [picture.size for picture in prompt.references]
        encoded = self._preparation.sizes(sizes, self.size_multiple) if sizes else ()
        return sum(map(math.prod, encoded)) // self.size_multiple**2

    def encoded(
        self, states: list[mx.array], references: EncodedReferences, cut: str, length: int
    ) -> tuple[TextBranch, list[str]]:
        """The branch, evaluated, and a note on what of the prompt was `cut` off after `length` tokens."""
        txt = mx.concatenate(states, axis=-1)  # [1, T, F]
        mx.eval(txt)
        return TextBranch(txt, references), cut_notes(cut, length)

    def rope_of(self, positions: np.ndarray) -> Rope:
        return rope_table(positions, self.files.config.axes_dims_rope, self.files.config.rope_theta)
