"""FLUX.1 schnell and dev as a family.

CLIP's pooled vector and T5's features -> rectified flow on packed 16-channel latents -> VAE. Guidance is a number the
dev transformer reads; a second branch for a negative prompt (true CFG) is possible on top.
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
from ...text.clip import ClipTextModel
from ...text.t5 import T5Encoder
from ...text.tokenizer import Tokenizer, clip_tokenizer, t5_tokenizer
from ..base import Family, Prompt, Settings
from .denoiser import Condition, Flux1Denoiser
from .files import CLIP_TABLE, T5_TABLE, FluxFiles, open_files
from .keys import lora_names
from .modulation import tabulate
from .transformer import FluxTransformer

# Both are fixed in diffusers' code: a token's side in latents, and rope's base.
SIDE = 2
THETA = 10000.0


@dataclass(frozen=True)
class FluxBranch:
    txt: mx.array  # [1, T, D]
    pooled: mx.array  # [1, P]


class Flux1(Family[FluxBranch]):
    name = "flux1"
    stages = {
        "encode": ("text_encoder", "text_encoder_2"),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }

    def __init__(self, files: FluxFiles):
        self.files = files
        dtype = compute_dtype()
        self.components = {
            "text_encoder": Component(
                files.clip, lambda: ClipTextModel(files.clip_config), dtype, heads=files.clip_config.num_attention_heads
            ),
            "text_encoder_2": Component(
                files.t5, lambda: T5Encoder(files.t5_config), dtype, heads=files.t5_config.num_heads
            ),
            "transformer": Component(
                files.transformer, lambda: FluxTransformer(files.config), dtype, heads=files.config.num_attention_heads
            ),
            "vae_decoder": Component(files.vae, lambda: Decoder(files.vae_config), VAE_DTYPE, "decoder"),
            "vae_encoder": Component(files.vae, lambda: Encoder(files.vae_config), VAE_DTYPE, "encoder"),
        }

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "Flux1":
        return cls(open_files(folder, manifest, transforms))

    @property
    def size_multiple(self) -> int:
        return SIDE * self.files.vae_config.scale_factor

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[FluxBranch, list[str]]:
        clip_ids, clip_cut = self._clip_tokenizer.encode(prompt.text)
        t5_ids, t5_cut = self._t5_tokenizer.encode(prompt.text, settings.extras["max_sequence_length"])
        dtype = compute_dtype()
        clip = self.components["text_encoder"].load()
        _, pooled = clip(self.files.clip.gather(CLIP_TABLE, clip_ids, dtype)[None], mx.array(clip_ids)[None])
        t5 = self.components["text_encoder_2"].load()
        txt = t5(self.files.t5.gather(T5_TABLE, t5_ids, dtype)[None])  # padding attends, as in the reference
        mx.eval(pooled, txt)
        notes = []
        if t5_cut:
            notes.append(f"the prompt is longer than the {len(t5_ids)} tokens T5 reads; cut off: '{t5_cut}'")
        elif clip_cut:
            notes.append(
                f"CLIP reads the first {len(clip_ids)} tokens only (T5 reads all); it does not see: '{clip_cut}'"
            )
        return FluxBranch(txt, pooled), notes

    @functools.cached_property
    def _clip_tokenizer(self) -> Tokenizer:
        return clip_tokenizer(self.files.tokenizer)

    @functools.cached_property
    def _t5_tokenizer(self) -> Tokenizer:
        """Its words take half a second to read, as all large vocabularies do."""
        return t5_tokenizer(self.files.tokenizer_2)

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        rows, columns = self.grid(settings)
        return 1, self.files.vae_config.latent_channels, SIDE * rows, SIDE * columns

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, SIDE)

    def schedule(self, settings: Settings) -> Schedule:
        return flow_match_schedule(self.files.scheduler, settings.steps, math.prod(self.grid(settings)))

    def denoiser(self, branches: Sequence[FluxBranch], schedule: Schedule, settings: Settings) -> "Flux1Denoiser":
        tables = tabulate(
            self.files.config,
            self.files.transformer.fill,
            schedule.timesteps,
            settings.guidance,
            [branch.pooled for branch in branches],
            compute_dtype(),
        )
        conditions = [
            Condition(branch.txt, self._rope(branch.txt.shape[1], settings), table)
            for branch, table in zip(branches, tables, strict=True)
        ]
        return Flux1Denoiser(self.transformer, conditions, settings.cfg)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder = self.components["vae_decoder"].load()
        pixels: mx.array = decoder.decode(unpatchified(x, self.grid(settings), SIDE))[0]
        return pixels

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        encoder = self.components["vae_encoder"].load()
        mean, logvar = encoder.encode(picture[None])
        sample, noise = sample_posterior(mean, logvar, seed)
        return normalized(sample, self.files.vae_config), noise

    def fold(self, settings: Settings) -> Fold:
        """SiLU stands between the sum of time, guidance and pooled prompt and the layers that read it, so that their
        outputs are no sum: nothing that depends on the schedule alone is left to be tabulated but 0.2% of the weights.
        """
        raise QuantizationError(
            "--fold: FLUX.1's modulation depends on the prompt (CLIP's vector) and on guidance as well as on the "
            "schedule, so that no table made beforehand could take its place; leave --fold out. These weights are read "
            "once a prompt, before the loop, and do not stay in memory."
        )

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        return lora_names(component, modules)

    def _rope(self, text_length: int, settings: Settings) -> Rope:
        """Every text token stands at (0, 0, 0), image tokens at (0, row, column)."""
        rows, columns = np.indices(self.grid(settings)).reshape(2, -1)
        image = np.stack([np.zeros_like(rows), rows, columns], axis=-1)
        positions = np.concatenate([np.zeros((text_length, 3), image.dtype), image])
        return rope_table(positions, self.files.config.axes_dims_rope, THETA)
