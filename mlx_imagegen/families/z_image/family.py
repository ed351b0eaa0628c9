"""Z-Image, Z-Image-Turbo and Z-Image-Omni as a family.

Qwen3's states of the prompt, refined once -> rectified flow on packed 16-channel latents -> FLUX.1's VAE. The base
model is guided by a second branch; Turbo is distilled and takes none. The Omni edition reads reference pictures twice:
as latents and through SigLIP2.
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
from ...image import cut_size
from ...layers.patches import Grid, patchified, unpatchified
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
from ...vision.siglip import Siglip2VisionModel
from ..base import Family, LastValueCache, Prompt, ReferenceTokens, Settings
from .denoiser import ZImageCondition, ZImageDenoiser
from .files import TABLE, ZImageFiles, open_files
from .keys import lora_names
from .modulation import tabulate
from .positions import picture_positions, picture_times, pieces_positions
from .prompts import piece_ids
from .references import PADS, EncodedReferences, ReferenceEncoder
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
    references: EncodedReferences | None = None


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
        self._references = LastValueCache[EncodedReferences]()  # the same for all branches
        self.reference_encoder: ReferenceEncoder | None = None
        if (references := files.references) is not None:
            self.reference_encoder = ReferenceEncoder(references, config, vae, self.components)
            tower = references.tower_config
            self.components |= {
                "image_encoder": Component(
                    references.tower, lambda: Siglip2VisionModel(tower), dtype, heads=tower.num_attention_heads
                ),
                "reference_refiner": Component(
                    files.transformer, lambda: ReferenceRefiner(config), dtype, heads=config.n_heads, cuts=shared
                ),
            }
            self.stages = ZImage.stages | {"references": ("vae_encoder", "image_encoder", "reference_refiner")}

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "ZImage":
        return cls(open_files(folder, manifest, transforms))

    @property
    def size_multiple(self) -> int:
        return self.files.config.patch_size * self.files.vae_config.scale_factor

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[ZImageBranch, list[str]]:
        length = settings.extras["max_sequence_length"]
        pieces, cut = piece_ids(self._tokenizer, prompt.text, length, len(prompt.references))
        lengths = [len(ids) for ids in pieces]
        shown = self._shown(prompt, settings, picture_times(lengths)) if prompt.references else None
        branch = self.refined(mx.concatenate([self.states(ids) for ids in pieces], axis=1), lengths, shown)
        return branch, [f"the prompt is longer than {length} tokens; cut off: '{cut}'"] if cut else []

    def _shown(self, prompt: Prompt, settings: Settings, times: Sequence[int]) -> EncodedReferences:
        pictures, made = prompt.references, (settings.width, settings.height)
        assert self.reference_encoder is not None
        encode, times = self.reference_encoder.encode, tuple(times[: len(pictures)])
        return self._references.get(
            (prompt.references_key, made, times), lambda: encode(pictures, made, self.size_multiple, times)
        )

    def refined(self, states: mx.array, lengths: Sequence[int], shown: EncodedReferences | None = None) -> ZImageBranch:
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
        times = [*schedule.timesteps, *([0.0] if files.config.is_omni else [])]  # the last one without noise
        tables = self._tables.get(
            schedule, lambda: tabulate(files.config, files.transformer.fill, times, compute_dtype())
        )
        conditions = [self.condition(branch, grid, tables[-1]) for branch in branches]
        normalization = settings.extras.get("cfg_normalization", False)
        return ZImageDenoiser(self.transformer, conditions, settings.cfg, tables, normalization)

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
        self._references.forget()

    def _rope(self, *positions: np.ndarray) -> Rope:
        config = self.files.config
        table = rope_table(np.concatenate(positions), config.axes_dims, config.rope_theta, np.float32)
        mx.eval(table)
        return table
