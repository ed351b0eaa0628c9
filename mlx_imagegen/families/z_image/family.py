"""Z-Image and Z-Image-Turbo as a family.

Qwen3's states of the prompt, refined once -> rectified flow on packed 16-channel latents -> FLUX.1's VAE. The base
model is guided by a second branch; Turbo is distilled and takes none.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...autoencoders.kl import Decoder, Encoder, normalized
from ...errors import QuantizationError
from ...folding import Fold
from ...hub.manifest import Manifest
from ...layers.patches import patchified, unpatchified
from ...layers.posterior import sample_posterior
from ...layers.rope import Rope, rope_table
from ...loading.component import Component
from ...loading.names import RowRange
from ...loading.weights import WeightTransforms
from ...precision import VAE_DTYPE, compute_dtype
from ...sampling import Schedule, flow_match_schedule
from ...text.qwen import LanguageModel, mrope, text_positions
from ...text.qwen import cuts as text_cuts
from ...text.tokenizer import Tokenizer, qwen_tokenizer
from ..base import Family, LastValueCache, Prompt, Settings
from .denoiser import Condition, ZImageDenoiser
from .files import TABLE, ZImageFiles, open_files
from .keys import lora_names
from .modulation import tabulate
from .positions import picture_positions, prompt_positions
from .prompts import prompt_ids
from .transformer import Modulation, PromptRefiner, ZImageTransformer, cuts, filled_length


@dataclass(frozen=True)
class ZImageBranch:
    txt: mx.array  # [1, T, D], refined and filled up


class ZImage(Family[ZImageBranch]):
    name = "z_image"
    stages = {
        "encode": ("text_encoder", "prompt_refiner"),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }

    def __init__(self, files: ZImageFiles):
        self.files = files
        config, text, vae, dtype = files.config, files.text_config, files.vae_config, compute_dtype()
        shared = cuts(config)
        self.components = {
            "text_encoder": Component(
                files.text,
                lambda: LanguageModel(text, files.text_layer),
                dtype,
                heads=text.num_attention_heads,
                cuts=text_cuts(text),
            ),
            "prompt_refiner": Component(
                files.transformer, lambda: PromptRefiner(config), dtype, heads=config.n_heads, cuts=shared
            ),
            "transformer": Component(
                files.transformer, lambda: ZImageTransformer(config), dtype, heads=config.n_heads, cuts=shared
            ),
            "vae_decoder": Component(files.vae, lambda: Decoder(vae), VAE_DTYPE, "decoder"),
            "vae_encoder": Component(files.vae, lambda: Encoder(vae), VAE_DTYPE, "encoder"),
        }
        self._tables = LastValueCache[list[Modulation]]()  # the same for every prompt

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "ZImage":
        return cls(open_files(folder, manifest, transforms))

    @property
    def size_multiple(self) -> int:
        return self.files.config.patch_size * self.files.vae_config.scale_factor

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[ZImageBranch, list[str]]:
        length = settings.extras["max_sequence_length"]
        ids, cut = prompt_ids(self._tokenizer, prompt.text, length)
        states = self.states(ids)
        rope = self._rope(prompt_positions(filled_length(len(ids))))
        txt = self.components["prompt_refiner"].load()(states, rope)
        mx.eval(txt)
        return ZImageBranch(txt), [f"the prompt is longer than {length} tokens; cut off: '{cut}'"] if cut else []

    def states(self, ids: Sequence[int]) -> mx.array:
        """What the text encoder makes of token ids, [1, T, C]: no token sees those after it, so none are padded."""
        text_encoder = self.components["text_encoder"].load()
        x = self.files.text.gather(TABLE, ids, compute_dtype())[None]
        rope = mrope(text_positions(ids), self.files.text_config)
        states: mx.array = text_encoder.states(x, rope, [self.files.text_layer])[0]
        return states

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Its 150,000 words take half a second to read."""
        return qwen_tokenizer(self.files.tokenizer)

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        side, (rows, columns) = self.files.config.patch_size, self.grid(settings)
        return 1, self.files.config.in_channels, side * rows, side * columns

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, self.files.config.patch_size, channels_last=True)

    def schedule(self, settings: Settings) -> Schedule:
        return flow_match_schedule(self.files.scheduler, settings.steps, math.prod(self.grid(settings)))

    def denoiser(self, branches: Sequence[ZImageBranch], schedule: Schedule, settings: Settings) -> "ZImageDenoiser":
        files, grid = self.files, self.grid(settings)
        tables = self._tables.get(
            schedule, lambda: tabulate(files.config, files.transformer.fill, schedule.timesteps, compute_dtype())
        )
        conditions = [
            Condition(
                branch.txt,
                self._rope(picture_positions(grid, branch.txt.shape[1]), prompt_positions(branch.txt.shape[1])),
            )
            for branch in branches
        ]
        normalization = settings.extras.get("cfg_normalization", False)
        return ZImageDenoiser(self.transformer, conditions, settings.cfg, tables, normalization)

    def unpack(self, x: mx.array, settings: Settings) -> mx.array:
        return unpatchified(x, self.grid(settings), self.files.config.patch_size, channels_last=True)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder = self.components["vae_decoder"].load()
        pixels: mx.array = decoder.decode(self.unpack(x, settings))[0]
        return pixels

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        encoder = self.components["vae_encoder"].load()
        mean, logvar = encoder.encode(picture[None])
        sample, noise = sample_posterior(mean, logvar, seed)
        return normalized(sample, self.files.vae_config), noise

    def fold(self, settings: Settings) -> Fold:
        raise QuantizationError(
            "--fold: Z-Image's modulation layers are 2% of its weights, are read once before the loop and do not stay "
            "in memory, so that tables in their place would save next to nothing; leave --fold out."
        )

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        return lora_names(component, modules)

    def forget(self) -> None:
        self._tables.forget()

    def _rope(self, *positions: np.ndarray) -> Rope:
        config = self.files.config
        table = rope_table(np.concatenate(positions), config.axes_dims, config.rope_theta, np.float32)
        mx.eval(table)
        return table
