"""HiDream-O1-Image, full, Dev and Dev-2604, as a family.

There is no VAE and no text encoder: one decoder reads the prompt and the picture's raw pixels, 32 by 32 to a token, and
says what the clean pixels are. Encoding gives ids and positions, decoding puts the patches back together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ...image import to_pixels
from ...layers.patches import patchified, unpatchified
from ...loading.component import Component
from ...loading.names import RowRange
from ...precision import RESIDUAL_DTYPE, compute_dtype
from ...random import TorchGenerator
from ...sampling import (
    Schedule,
    Solver,
    UniPC,
    euler,
    flash,
    shifted_schedule,
    timesteps_schedule,
    twice_shifted_schedule,
)
from ...text.qwen import cuts, mrope
from ...vision.patches import merged_grid, to_patches
from ...vision.qwen3 import encode_patches, open_tower, placed
from ..base import EncodedReferences, Family, Prompt, ReferenceTokens, Settings, cut_notes
from .denoiser import Condition, HiDreamO1Denoiser
from .files import TABLE, VISION, HiDreamFiles, open_files
from .references import Rules
from .tokens import positions, prompt_ids
from .transformer import HiDreamTransformer


@dataclass(frozen=True)
class HiDreamBranch:
    txt: mx.array  # [1, T, D], the causal part, the references' features in it
    positions: np.ndarray  # [3, T + 1 + L + R]
    deepstack: tuple[mx.array, ...] = ()  # [1, T, D] each
    references: mx.array | None = None  # [1, R, C p p]


class HiDreamO1(Family[HiDreamBranch]):
    name = "hidream_o1"
    open_files = staticmethod(open_files)
    stages = {"encode": (), "prepare": ("transformer",), "denoise": ("transformer",), "decode": (), "encode_image": ()}

    def __init__(self, files: HiDreamFiles):
        self.files = files
        self.patch = files.config.patch
        config, text = files.config, files.config.text
        transformer = Component(
            files.weights,
            lambda: HiDreamTransformer(config),
            compute_dtype(),
            "model",
            heads=text.num_attention_heads,
            cuts=cuts(text),
        )
        # The vision tower is not among them: without references it is neither loaded nor even imported.
        super().__init__({"transformer": transformer})

    @property
    def size_multiple(self) -> int:
        return self.patch.patch_size

    @property
    def seam_pixels(self) -> int:
        return self.patch.patch_size

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[HiDreamBranch, list[str]]:
        text, notes = self._fitting(prompt.text, settings.extras["max_sequence_length"])
        config, encoded = self.files.config, self._encoded(prompt, settings)
        ids = prompt_ids(text, config, self.files.tokenizer, encoded.shown)
        # The last id stands for the timestep, which each step embeds itself.
        txt = self.files.weights.gather(TABLE, ids[:-1], RESIDUAL_DTYPE)[None]  # [1, T, D]
        places = [index for index, token in enumerate(ids) if token == config.image_token]
        txt, deepstack = placed(txt, encoded.features, places)
        where = positions(ids, config, self.grid(settings), encoded.shown, encoded.grids)
        return HiDreamBranch(txt, where, deepstack, encoded.tokens), notes

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        return 1, self.patch.in_channels, settings.height, settings.width

    def stream(self, seed: int) -> TorchGenerator:
        """Upstream seeds the generator with seed + 1."""
        return super().stream(seed + 1)

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, self.patch.patch_size)

    def schedule(self, settings: Settings) -> Schedule:
        extras = settings.extras
        if "timesteps" in extras:
            return timesteps_schedule(extras["timesteps"])
        if extras["sampler"] == "unipc":
            return twice_shifted_schedule(settings.steps, extras["shift"])
        return shifted_schedule(settings.steps, extras["shift"])

    def denoiser(
        self, branches: Sequence[HiDreamBranch], schedule: Schedule, settings: Settings
    ) -> "HiDreamO1Denoiser":
        conditions = [self._condition(branch) for branch in branches]
        return HiDreamO1Denoiser(self.transformer, conditions, settings.cfg, schedule.timesteps, self.patch.t_eps)

    def _condition(self, branch: HiDreamBranch) -> Condition:
        """The prefix's keys and values, and the references' embeddings: both are the same at every step."""
        cos, sin = mrope(branch.positions, self.files.config.text)
        length = branch.txt.shape[1]
        transformer = self.transformer.load()
        references = None if branch.references is None else transformer.embed(branch.references)
        prefix = transformer.prefix(branch.txt, (cos[:length], sin[:length]), branch.deepstack)
        rope = cos[length:], sin[length:]
        mx.eval(references, rope)
        return Condition(rope, tuple(prefix), references)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        return unpatchified(x, self.grid(settings), self.patch.patch_size)[0].transpose(1, 2, 0)

    def encode_image(self, picture: mx.array, stream: TorchGenerator | None = None) -> mx.array:
        return picture.transpose(2, 0, 1)[None]

    def start(self, x: mx.array, settings: Settings) -> mx.array:
        scale: float = settings.extras["noise_scale"][0]
        return scale * x

    @property
    def prefix_values(self) -> int:
        text = self.files.config.text
        return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_size

    @property
    def vision_param_count(self) -> int:
        tensors = self.files.weights.checkpoint
        return sum(math.prod(tensors[name].shape) for name in tensors if name.startswith(VISION))

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        if not prompt.references:
            return ReferenceTokens()
        found = self._rules(prompt, settings).sizes([picture.size for picture in prompt.references])
        return ReferenceTokens(
            sum(math.prod(merged_grid(shown, self.files.vision[1])) for _, shown in found),
            sum(math.prod(read) for read, _ in found) // self.patch.patch_size**2,
        )

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        """ai-toolkit leaves the checkpoint's outermost name off."""
        return {module.removeprefix("model."): [RowRange(module)] for module in modules}

    def solver(
        self, schedule: Schedule, seed: int, settings: Settings, step_noise: Sequence[mx.array] | None = None
    ) -> Solver:
        extras = settings.extras
        if extras["sampler"] == "unipc":
            return UniPC(schedule)
        if extras["sampler"] == "flow_match":
            return euler(schedule)
        # A stream of its own, of another kind: upstream's is the starting noise's, which it would repeat on the CPU.
        keys = mx.random.split(mx.random.key(seed), schedule.steps)
        shape = self.shape(settings)

        def noise(index: int) -> mx.array:
            return self.pack(mx.random.normal(shape, key=keys[index]) if step_noise is None else step_noise[index])

        return flash(schedule, noise, extras["noise_scale"], extras["noise_clip"])

    def _encoded(self, prompt: Prompt, settings: Settings) -> EncodedReferences:
        if not prompt.references:
            return EncodedReferences()
        rules = self._rules(prompt, settings)
        return self._references.get((prompt.references_key, rules), lambda: self._encode_references(prompt, rules))

    def _encode_references(self, prompt: Prompt, rules: Rules) -> EncodedReferences:
        """The vision tower is loaded for this and let go again."""
        vision, cut = self.files.vision
        tower = open_tower(vision, self.files.weights)
        references = rules.prepared(prompt.references)
        shown = [to_patches(reference.shown, cut) for reference in references]
        features = encode_patches(tower.load(), shown, compute_dtype())
        tower.release()
        pixels = [self.encode_image(mx.array(to_pixels(reference.pixels) * 2 - 1)) for reference in references]
        patches, side = mx.concatenate([self.pack(x) for x in pixels], axis=1), self.patch.patch_size
        mx.eval(patches)
        grids = tuple((x.shape[2] // side, x.shape[3] // side) for x in pixels)
        return EncodedReferences(patches, grids, features, tuple(picture.merged for picture in shown))

    def _rules(self, prompt: Prompt, settings: Settings) -> Rules:
        vision, keeps = self.files.vision[0], settings.extras.get("keep_original_aspect")
        return Rules(
            (settings.width, settings.height),
            self.patch.patch_size,
            self.patch.condition_image_size,
            vision.patch_size * vision.spatial_merge_size,
            # As upstream: the reference that gives the picture its shape has all of it.
            () if keeps else dict(prompt.options).get("layout", ()),
            self.files.kept_side if keeps else None,
        )

    def _fitting(self, text: str, length: int) -> tuple[str, list[str]]:
        """The words that fit into `length` tokens, and a note about those that do not."""
        cut = self.files.tokenizer.encode(text, length).cut
        return text[: text.rindex(cut)].rstrip() if cut else text, cut_notes(cut, length)
