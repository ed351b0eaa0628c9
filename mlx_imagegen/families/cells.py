"""What families share whose loop runs on FLUX.2's latents: cells of 2 x 2, normed, a token each.

In: opened files, and how reference pictures are prepared. Out: the part of a `Family` that turns pictures into tokens
and tokens into pictures, and owns components, tokenizer and modulation tables.
Must not know: transformers' layers, prompts' templates.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ..autoencoders.flux2 import SIDE, Decoder, Encoder
from ..errors import QuantizationError
from ..folding import Fold
from ..image import to_pixels
from ..layers.patches import Grid, patchified, unpatchified
from ..layers.rope import Rope, rope_table
from ..layers.sharing import Cuts
from ..loading.component import Component
from ..masks import interpolated
from ..precision import VAE_DTYPE, compute_dtype
from ..random import TorchGenerator
from ..text.qwen import LanguageModel
from ..text.qwen import cuts as text_cuts
from ..text.tokenizer import Tokenizer, qwen_tokenizer
from .base import Family, LastValueCache, Prompt, Settings
from .cell_files import TABLE, CellFiles

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class EncodedReferences:
    """Reference pictures as the transformer takes them, one after another."""

    tokens: mx.array | None = None  # [1, R, C]
    grids: tuple[Grid, ...] = ()


class Preparation(Protocol):
    """How large reference pictures are encoded, and what of them."""

    def sizes(self, sizes: Sequence[Size], multiple: int) -> list[Size]: ...

    def prepared(self, pictures: Sequence[Image.Image], multiple: int) -> list[Image.Image]: ...


@dataclass(frozen=True)
class CellBranch:
    txt: mx.array  # [1, T, F]
    references: EncodedReferences


Modulation = TypeVar("Modulation")


class CellFamily(Family[CellBranch], Generic[Modulation]):
    """`Modulation`: what a step's blocks take."""

    stages = {
        "encode": ("text_encoder",),
        "references": ("vae_encoder",),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }

    def __init__(self, files: CellFiles, preparation: Preparation, transformer: Callable[[], nn.Module], cuts: Cuts):
        """`cuts`: how the transformer's layers are shared out over several machines."""
        dtype, text, vae = compute_dtype(), files.text_config, files.vae_config
        last = max(files.text_layers)
        self._files = files
        self._preparation = preparation
        self._references = LastValueCache[EncodedReferences]()  # the same for all branches
        self._tables = LastValueCache[tuple[tuple[Modulation, ...], str]]()  # the same for every prompt
        self.components = {
            "vae_decoder": Component(files.vae, lambda: Decoder(vae), VAE_DTYPE),
            "vae_encoder": Component(files.vae, lambda: Encoder(vae), VAE_DTYPE),
            "text_encoder": Component(
                files.text,
                lambda: LanguageModel(text, last),
                dtype,
                heads=text.num_attention_heads,
                cuts=text_cuts(text),
            ),
            "transformer": Component(
                files.transformer, transformer, dtype, heads=files.config.num_attention_heads, cuts=cuts
            ),
        }

    @property
    def size_multiple(self) -> int:
        return SIDE * self._files.vae_config.scale_factor

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        rows, columns = self.grid(settings)
        return 1, self._files.vae_config.cell_channels, rows, columns

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, 1)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder = self.components["vae_decoder"].load()
        pixels: mx.array = decoder.decode(unpatchified(x, self.grid(settings), SIDE))[0]
        return pixels

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        clean = unpatchified(self._tokens(picture), self.grid(settings), 1)
        return clean, TorchGenerator(seed).randn(self.shape(settings))

    def latent_mask(self, mask: mx.array, settings: Settings) -> mx.array:
        return interpolated(mask, self.grid(settings))

    def encoded_references(self, prompt: Prompt) -> EncodedReferences:
        return self._references.get(prompt.references_key, lambda: self._encode_references(prompt.references))

    def reference_count(self, prompt: Prompt) -> int:
        """The tokens of a prompt's reference pictures, by their sizes alone."""
        sizes = [picture.size for picture in prompt.references]
        return sum(math.prod(self._grid(size)) for size in self._preparation.sizes(sizes, self.size_multiple))

    def fold(self, settings: Settings) -> Fold:
        raise QuantizationError(
            f"--fold: all blocks of {self.spec.title} share their modulation, 4% of the weights, which is read once "
            "before the loop and does not stay in memory; there is little to gain. Leave --fold out."
        )

    def forget(self) -> None:
        self._references.forget()
        self._tables.forget()

    def encoded(
        self, states: list[mx.array], references: EncodedReferences, cut: str, length: int
    ) -> tuple[CellBranch, list[str]]:
        """The branch, evaluated, and a note on what of the prompt was `cut` off after `length` tokens."""
        txt = mx.concatenate(states, axis=-1)  # [1, T, F]
        mx.eval(txt)
        notes = [f"the prompt is longer than {length} tokens; cut off: '{cut}'"] if cut else []
        return CellBranch(txt, references), notes

    def embedded(self, ids: Sequence[int]) -> mx.array:
        return self._files.text.gather(TABLE, ids, compute_dtype())[None]

    @property
    def language_model(self) -> LanguageModel:
        model = self.components["text_encoder"].load()
        assert isinstance(model, LanguageModel)
        return model

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Its 150,000 words take half a second to read."""
        return self.open_tokenizer()

    def open_tokenizer(self) -> Tokenizer:
        return qwen_tokenizer(self._files.tokenizer)

    def rope_of(self, positions: np.ndarray) -> Rope:
        config = self._files.config
        return rope_table(positions, config.axes_dims_rope, config.rope_theta)

    def _encode_references(self, pictures: Sequence[Image.Image]) -> EncodedReferences:
        if not pictures:
            return EncodedReferences()
        prepared = self._preparation.prepared(pictures, self.size_multiple)
        tokens = mx.concatenate([self._tokens(mx.array(to_pixels(each) * 2 - 1)) for each in prepared], axis=1)
        mx.eval(tokens)
        return EncodedReferences(tokens, tuple(self._grid(each.size) for each in prepared))

    def _tokens(self, pixels: mx.array) -> mx.array:
        """[H, W, 3] -> [1, L, C] in the loop's scale; the posterior's mode, not a sample."""
        encoder = self.components["vae_encoder"].load()
        mean, _ = encoder.encode(pixels[None])
        return patchified(encoder.bn.normalise(mean), SIDE)

    def _grid(self, size: Size) -> Grid:
        return size[1] // self.size_multiple, size[0] // self.size_multiple
