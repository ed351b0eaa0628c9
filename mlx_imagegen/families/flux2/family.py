"""FLUX.2 klein and dev as a family.

States after three layers of a language model -> rectified flow on cells of 2 x 2 latents, beside which reference
pictures' own stand -> VAE. klein's guidance is the scale between two branches, dev's a number that the transformer is
given.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from ...autoencoders.flux2 import SIDE, Decoder, Encoder
from ...errors import QuantizationError
from ...folding import Fold
from ...hub.manifest import Manifest
from ...image import to_pixels
from ...layers.attention import KeyValues
from ...layers.patches import Grid, patchified, unpatchified
from ...layers.rope import Rope, rope_table
from ...loading.component import Component
from ...loading.modules import layers
from ...loading.names import RowRange
from ...loading.weights import WeightTransforms
from ...precision import VAE_DTYPE, compute_dtype
from ...random import TorchGenerator
from ...sampling import Schedule, empirical_mu, flow_match_schedule
from ...text.qwen import LanguageModel, mrope, padded_mask
from ...text.tokenizer import Tokenizer, qwen_tokenizer, tekken_tokenizer
from ..base import Family, LastValueCache, Prompt, ReferenceTokens, Settings
from ..schedule_tables import find_tables
from .denoiser import Condition, Flux2Denoiser
from .files import TABLE, Flux2Files, open_files
from .keys import lora_names
from .modulation import Flux2Modulators, Tables, tabulate
from .positions import picture_positions, reference_positions, text_positions
from .prompts import read_dev, read_klein
from .transformer import Flux2Transformer, Modulation


@dataclass(frozen=True)
class EncodedReferences:
    """Reference pictures as the transformer takes them, one after another."""

    tokens: mx.array | None = None  # [1, R, C]
    grids: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class Flux2Branch:
    txt: mx.array  # [1, T, F]
    references: EncodedReferences


class Flux2(Family[Flux2Branch]):
    name = "flux2"
    stages = {
        "encode": ("text_encoder",),
        "references": ("vae_encoder",),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }

    def __init__(self, files: Flux2Files):
        self.files = files
        dtype = compute_dtype()
        self.components = {
            "text_encoder": Component(
                files.text,
                lambda: LanguageModel(files.text_config, max(files.text_layers)),
                dtype,
                heads=files.text_config.num_attention_heads,
            ),
            "transformer": Component(
                files.transformer, lambda: Flux2Transformer(files.config), dtype, heads=files.config.num_attention_heads
            ),
            "vae_decoder": Component(files.vae, lambda: Decoder(files.vae_config), VAE_DTYPE),
            "vae_encoder": Component(files.vae, lambda: Encoder(files.vae_config), VAE_DTYPE),
        }
        if files.keeps_references:  # their keys and values are computed when a denoiser is made
            self.stages = Flux2.stages | {"prepare": ("transformer",)}
        self._references = LastValueCache[EncodedReferences]()  # the same for all branches
        self._tables = LastValueCache[tuple[tuple[Modulation, ...], str]]()  # the same for every prompt

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "Flux2":
        return cls(open_files(folder, manifest, transforms))

    @property
    def size_multiple(self) -> int:
        return SIDE * self.files.vae_config.scale_factor

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[Flux2Branch, list[str]]:
        references = self._references.get(prompt.references_key, lambda: self._encode_references(prompt.references))
        length, mistral = settings.extras["max_sequence_length"], self._mistral
        read = (read_dev if mistral else read_klein)(self._tokenizer, prompt.text, length)
        states = (self._states_after_pads if mistral else self._states_before_pads)(read.ids, read.pad, length)
        txt = mx.concatenate(states, axis=-1)  # [1, T, F]
        mx.eval(txt)
        notes = [f"the prompt is longer than {length} tokens; cut off: '{read.cut}'"] if read.cut else []
        return Flux2Branch(txt, references), notes

    def _states_before_pads(self, ids: list[int], pad: int, length: int) -> list[mx.array]:
        """Padding follows the prompt, and attends to it: its states differ from place to place."""
        x = self._embedded([*ids, *[pad] * (length - len(ids))])
        rope = mrope(np.tile(np.arange(length), (3, 1)), self.files.text_config)
        return self._language_model.states(x, rope, self.files.text_layers, mask=padded_mask(len(ids), length))

    def _states_after_pads(self, ids: list[int], pad: int, length: int) -> list[mx.array]:
        """Padding stands before the prompt; with nothing before it to attend to, each of its rows is the same."""
        model, chosen, count = self._language_model, self.files.text_layers, length - len(ids)
        rope = mrope(np.tile(np.arange(count, length), (3, 1)), self.files.text_config)
        states = model.states(self._embedded(ids), rope, chosen)
        pads = model.unattended_states(self._embedded([pad]), chosen)
        return [
            mx.concatenate([mx.repeat(alone, count, axis=1), state], axis=1)
            for alone, state in zip(pads, states, strict=True)
        ]

    def _embedded(self, ids: list[int]) -> mx.array:
        return self.files.text.gather(TABLE, ids, compute_dtype())[None]

    @property
    def _language_model(self) -> LanguageModel:
        model = self.components["text_encoder"].load()
        assert isinstance(model, LanguageModel)
        return model

    @property
    def _mistral(self) -> bool:
        return self.files.text_config.model_type == "mistral"

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Its 150,000 words take half a second to read."""
        return (tekken_tokenizer if self._mistral else qwen_tokenizer)(self.files.tokenizer)

    def _encode_references(self, pictures: Sequence[Image.Image]) -> EncodedReferences:
        if not pictures:
            return EncodedReferences()
        prepared = [self.files.editing.prepared(picture, self.size_multiple) for picture in pictures]
        packed = [self._latents(mx.array(to_pixels(picture) * 2 - 1)) for picture in prepared]
        tokens = mx.concatenate(packed, axis=1)
        mx.eval(tokens)
        return EncodedReferences(tokens, tuple(self._grid(picture.size) for picture in prepared))

    def _latents(self, pixels: mx.array) -> mx.array:
        """[H, W, 3] -> tokens [1, L, C] in the loop's scale; the posterior's mode, not a sample."""
        encoder = self.components["vae_encoder"].load()
        mean, _ = encoder.encode(pixels[None])
        return patchified(encoder.bn.normalise(mean), SIDE)

    def _grid(self, size: tuple[int, int]) -> Grid:
        return size[1] // self.size_multiple, size[0] // self.size_multiple

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        sizes = [self.files.editing.size(picture.size, self.size_multiple) for picture in prompt.references]
        count = sum(math.prod(self._grid(size)) for size in sizes)
        if not self.files.keeps_references:
            return ReferenceTokens(image=count)
        config = self.files.config
        blocks = config.num_layers + config.num_single_layers
        return ReferenceTokens(kept=count, kept_values=2 * blocks * config.inner_dim)

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        rows, columns = self.grid(settings)
        return 1, self.files.config.in_channels, rows, columns

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, 1)

    def schedule(self, settings: Settings) -> Schedule:
        tokens = math.prod(self.grid(settings))
        mu = empirical_mu(tokens, settings.steps)
        return flow_match_schedule(self.files.scheduler, settings.steps, tokens, mu)

    def denoiser(self, branches: Sequence[Flux2Branch], schedule: Schedule, settings: Settings) -> Flux2Denoiser:
        references = branches[0].references  # all branches show the same pictures
        table, source = self._tables.get(
            (schedule, settings.guidance), lambda: self.tables(schedule, settings.guidance)
        )
        keeps = self.files.keeps_references and references.tokens is not None
        beside = () if keeps else references.grids
        conditions = [
            Condition(branch.txt, self._rope(branch.txt.shape[1], self.grid(settings), beside), table)
            for branch in branches
        ]
        tokens, kept = (None, self._keys_values(references)) if keeps else (references.tokens, ())
        return Flux2Denoiser(self.transformer, conditions, settings.cfg, tokens, kept, source)

    def _keys_values(self, references: EncodedReferences) -> list[KeyValues]:
        """Of reference pictures that are modulated as at time 0, and attend to one another alone."""
        assert references.tokens is not None
        files, dtype = self.files, compute_dtype()
        (modulation,) = tabulate(files.config, files.transformer.fill, [0.0], 0.0, dtype).steps()
        rope = self._rope_of(reference_positions(references.grids))
        model = self.transformer.load()
        assert isinstance(model, Flux2Transformer)
        return model.keys_values(references.tokens.astype(dtype), rope, modulation)

    def _rope(self, text: int, grid: Grid, references: Sequence[Grid]) -> Rope:
        placed = (text_positions(text), picture_positions(grid), reference_positions(references))
        return self._rope_of(np.concatenate(placed))

    def _rope_of(self, positions: np.ndarray) -> Rope:
        config = self.files.config
        return rope_table(positions, config.axes_dims_rope, config.rope_theta)

    def tables(self, schedule: Schedule, guidance: float) -> tuple[tuple[Modulation, ...], str]:
        """A modulation a step, and where they came from."""
        config, weights, dtype = self.files.config, self.files.transformer, compute_dtype()
        guidance = guidance if config.guidance_embeds else 0.0
        arrays, source = find_tables(
            weights,
            frozenset(path for path, _ in layers(Flux2Modulators(config))),
            (config, tuple(schedule.timesteps), guidance, str(dtype)),
            schedule.timesteps,
            lambda fill: tabulate(config, fill, schedule.timesteps, guidance, dtype)._asdict(),
        )
        return Tables(**arrays).steps(), source

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder = self.components["vae_decoder"].load()
        pixels: mx.array = decoder.decode(unpatchified(x, self.grid(settings), SIDE))[0]
        return pixels

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        clean = unpatchified(self._latents(picture), self.grid(settings), 1)
        return clean, TorchGenerator(seed).randn(self.shape(settings))

    def fold(self, settings: Settings) -> Fold:
        raise QuantizationError(
            "--fold: all blocks of FLUX.2 share their modulation, 4% of the weights, which is read once before the "
            "loop and does not stay in memory; there is little to gain. Leave --fold out."
        )

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        return lora_names(component, modules)

    def forget(self) -> None:
        self._references.forget()
        self._tables.forget()
