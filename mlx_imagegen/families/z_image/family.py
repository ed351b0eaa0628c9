"""Z-Image, Z-Image-Turbo and Z-Image-Omni as a family.

Qwen3's states of the prompt, refined once -> rectified flow on packed 16-channel latents -> FLUX.1's VAE. The base
model is guided by a second branch; Turbo is distilled and takes none. The Omni edition reads reference pictures twice:
as latents and through SigLIP2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...autoencoders.kl import Decoder, Encoder
from ...image import cut_size
from ...layers.patches import Grid
from ...layers.rope import Rope, rope_table
from ...loading.component import Component
from ...precision import compute_dtype
from ...sampling import Schedule
from ...text.qwen import mrope, text_positions
from ...vision.siglip import Siglip2VisionModel
from ..base import Prompt, ReferenceTokens, Settings, cut_notes
from ..language import LanguageFamily, language_model
from ..latents import autoencoder
from ..schedule_tables import ScheduleTables
from .config import ZImageConfig
from .denoiser import ZImageCondition, ZImageDenoiser
from .files import ZImageFiles, open_files
from .keys import lora_names
from .modulation import ZImageModulators, steps, tabulate
from .positions import picture_positions, picture_times, pieces_positions
from .prompts import piece_ids
from .references import PADS, ReferenceEncoder, ShownReferences
from .transformer import (
    MULTIPLE,
    Clean,
    Modulation,
    PromptRefiner,
    ReferenceRefiner,
    ZImageTransformer,
    cuts,
    filled_length,
)


@dataclass(frozen=True)
class ZImageBranch:
    txt: mx.array  # [1, T, D], refined and filled up; what is seen of references on both sides of the prompt's
    positions: np.ndarray  # of those tokens
    time: int  # at which the picture stands
    clean: int = 0  # of those tokens, the first ones stand by references
    references: ShownReferences | None = None


class ZImage(LanguageFamily[ZImageBranch]):
    name = "z_image"
    files: ZImageFiles
    modulation: ScheduleTables[Modulation]
    open_files = staticmethod(open_files)
    lora_names = staticmethod(lora_names)
    stages = LanguageFamily.stages | {"encode": ("text_encoder", "prompt_refiner")}
    channels_last = True
    unfoldable = (
        "its modulation layers are 2% of its weights, are read once before the loop and do not stay in memory, so that "
        "tables in their place would save next to nothing"
    )

    def __init__(self, files: ZImageFiles):
        self.files = files
        config, vae, dtype = files.config, files.vae_config, compute_dtype()

        def part(build: Callable[[ZImageConfig], nn.Module]) -> Component:
            return Component(files.transformer, lambda: build(config), dtype, heads=config.n_heads, cuts=cuts(config))

        components = {
            "text_encoder": language_model(files),
            "prompt_refiner": part(PromptRefiner),
            "transformer": part(ZImageTransformer),
            **autoencoder(files.vae, vae, Decoder, Encoder, ("decoder", "encoder")),
        }
        super().__init__(components, vae.latent_channels, config.patch_size, vae.scale_factor)
        self.modulation = ScheduleTables(files.transformer, config, ZImageModulators(config), tabulate, steps)
        self.reference_encoder: ReferenceEncoder | None = None
        if (references := files.references) is not None:
            self.reference_encoder = ReferenceEncoder(references, config, components, self.encode_image)
            tower = references.tower_config
            components["image_encoder"] = Component(
                references.tower, lambda: Siglip2VisionModel(tower), dtype, heads=tower.num_attention_heads
            )
            components["reference_refiner"] = part(ReferenceRefiner)
            self.stages = ZImage.stages | {"references": ("vae_encoder", "image_encoder", "reference_refiner")}

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[ZImageBranch, list[str]]:
        length = settings.extras["max_sequence_length"]
        pieces, cut = piece_ids(self.tokenizer, prompt.text, length, len(prompt.references))
        lengths = [len(ids) for ids in pieces]
        shown = self._shown(prompt, settings, picture_times(lengths)) if prompt.references else None
        branch = self.refined(mx.concatenate([self.states(ids) for ids in pieces], axis=1), lengths, shown)
        return branch, cut_notes(cut, length)

    def _shown(self, prompt: Prompt, settings: Settings, times: Sequence[int]) -> ShownReferences:
        pictures, made = prompt.references, (settings.width, settings.height)
        assert self.reference_encoder is not None
        encode, times = self.reference_encoder.encode, tuple(times[: len(pictures)])
        return self._references.get(
            (prompt.references_key, made, times), lambda: encode(pictures, made, self.size_multiple, times)
        )

    def refined(self, states: mx.array, lengths: Sequence[int], shown: ShownReferences | None = None) -> ZImageBranch:
        """Of a prompt's pieces, one after another; with references the last two stand around the picture to be made,
        and those before them each before a reference."""
        positions = pieces_positions(lengths)
        txt = self.components["prompt_refiner"].load()(states, self._rope(positions), lengths)
        clean = 0
        if shown is not None:
            *before, time, _ = picture_times(lengths)
            clean = shown.seen.shape[1] - len(PADS) + sum(map(filled_length, lengths[: len(before)]))
            txt = mx.concatenate([shown.seen[:, : -len(PADS)], txt, shown.seen[:, -len(PADS) :]], axis=1)
            positions = np.concatenate([shown.seen_positions[: -len(PADS)], positions, PADS])
        else:
            time = 1 + (lengths[0] if self.files.config.is_omni else filled_length(lengths[0]))
        mx.eval(txt)
        return ZImageBranch(txt, positions, time, clean, shown)

    def states(self, ids: Sequence[int]) -> mx.array:
        """What the text encoder makes of token ids, [1, T, C]: no token sees those after it, so none are padded."""
        rope = mrope(text_positions(ids), self.files.text_config)
        return self.language_model.states(self.embedded(ids), rope, [self.files.text_depth])[0]

    def denoiser(self, branches: Sequence[ZImageBranch], schedule: Schedule, settings: Settings) -> "ZImageDenoiser":
        files, grid = self.files, self.grid(settings)
        times = [*schedule.timesteps, *([0.0] if files.config.is_omni else [])]  # the last one without noise
        tables, source = self.modulation.of(times)
        conditions = [self.condition(branch, grid, tables[-1]) for branch in branches]
        bounded = settings.extras.get("cfg_normalization", False)
        return ZImageDenoiser(self.transformer, conditions, settings.cfg, tables, bounded, tables_source=source)

    def condition(self, branch: ZImageBranch, grid: Grid, still: Modulation) -> ZImageCondition:
        own, shown = picture_positions(grid, branch.time), branch.references
        if shown is None:
            return ZImageCondition(branch.txt, self._rope(own, branch.positions))
        clean = Clean(shown.tokens, shown.lengths, branch.clean, still)
        return ZImageCondition(branch.txt, self._rope(own, shown.positions, branch.positions), clean)

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        if not prompt.references or (files := self.files.references) is None:
            return ReferenceTokens()
        given, multiple = [picture.size for picture in prompt.references], self.size_multiple
        scaled = files.scaled_sizes(given, (settings.width, settings.height), multiple)
        shown = sum(filled_length(math.prod(cut_size(size, multiple)) // multiple**2) for size in scaled)
        seen = sum(filled_length(math.prod(files.pixels.grid(size))) for size in scaled)
        return ReferenceTokens(MULTIPLE * (len(given) + 1), shown, adapted=seen + MULTIPLE)

    def _rope(self, *positions: np.ndarray) -> Rope:
        config = self.files.config
        table = rope_table(np.concatenate(positions), config.axes_dims, config.rope_theta, np.float32)
        mx.eval(table)
        return table
