"""Qwen-Image-2.1 and -Turbo as a family: from text, and from up to ten reference pictures, with alpha or without.

Qwen3-VL's states of the prompt (before its last norm) and the references' latents stand in one line before the picture
-> rectified flow on 64-channel latents -> VAE with four colours. Guidance is the plain scale between two branches.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
from PIL import Image

from ...autoencoders.qwen_image_21 import Decoder, Encoder
from ...image import on_white
from ...layers.patches import Grid
from ...layers.rope import rope_table
from ...loading.component import Component
from ...loading.weights import WeightTransforms
from ...masks import sampled
from ...precision import compute_dtype
from ...random import TorchGenerator
from ...sampling import Schedule, flow_match_schedule
from ...text.qwen import mrope, text_positions
from ...vision.patches import merged_grid, to_patches
from ...vision.qwen3 import VISUAL, encode_patches, open_tower, placed
from ..base import EncodedReferences, Inputs, Prompt, ReferenceTokens, Settings, TextBranch
from ..controls import ControlNetwork, ControlPicture, FollowedPictures
from ..language import LanguageFamily, language_model
from ..latents import autoencoder
from ..schedule_tables import ScheduleTables
from .control import INPAINT, FunPass, QwenImage21ControlNetwork
from .denoiser import Condition, Prefix, QwenImage21Denoiser, Strengths
from .files import QwenImage21Files, open_files
from .keys import lora_names
from .modulation import QwenImage21Modulators, steps, tabulate
from .prompts import SLOT, read_prompt
from .sequence import length_of, positions
from .transformer import Modulation, QwenImage21Transformer, cuts

THETA = 10000.0  # diffusers fixes rope's base in code
COLOURS = 3


@dataclass(frozen=True, eq=False)
class QwenImage21Branch(TextBranch):
    segments: tuple[int | Grid, ...] = ()


class QwenImage21(LanguageFamily[QwenImage21Branch]):
    name = "qwen_image_21"
    files: QwenImage21Files
    modulation: ScheduleTables[Modulation]
    controls: Mapping[str, QwenImage21ControlNetwork]
    open_files = staticmethod(open_files)
    lora_names = staticmethod(lora_names)
    stages = LanguageFamily.stages | {"prepare": ("transformer",)}
    unfoldable = (
        "its modulation is one hundredth of its weights, and they are not kept in memory; a table in their place would "
        "save nothing"
    )

    def __init__(self, files: QwenImage21Files):
        self.files = files
        config, vae, dtype, heads = files.config, files.vae_config, compute_dtype(), files.config.num_attention_heads
        # The vision tower is not among them: without references it is neither loaded nor even imported.
        components = {
            "text_encoder": language_model(files),
            "transformer": Component(
                files.transformer, lambda: QwenImage21Transformer(config), dtype, heads=heads, cuts=cuts(config)
            ),
            **autoencoder(files.vae, vae, Decoder, Encoder),
        }
        super().__init__(components, vae.z_dim, side=1, scale=vae.scale_factor)
        self.modulation = ScheduleTables(files.transformer, config, QwenImage21Modulators(config), tabulate, steps)

    @property
    def size_multiple(self) -> int:
        return SLOT * self.files.vae_config.scale_factor

    def grid(self, settings: Settings) -> Grid:
        side = self.files.vae_config.scale_factor
        return settings.height // side, settings.width // side

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[QwenImage21Branch, list[str]]:
        encoded = self._references.get(prompt.references_key, lambda: self._encode_references(prompt.references))
        read, config = read_prompt(self.tokenizer, prompt.text, encoded.shown), self.files.text_config
        places = [index for index, token in enumerate(read.ids) if token == read.picture]
        x, deepstack = placed(self.embedded(read.ids), encoded.features, places)
        rope = mrope(text_positions(read.ids, read.picture, encoded.shown), config)
        (states,) = self.language_model.states(x, rope, [config.num_hidden_layers], deepstack=deepstack)
        words = [index for index, token in enumerate(read.ids) if token != read.picture and index >= read.system]
        txt = states[:, mx.array(words)]  # where pictures are seen, their latents will stand
        mx.eval(txt)
        return QwenImage21Branch(txt, encoded, read.segments), self._notes(prompt, settings)

    def _encode_references(self, pictures: Sequence[Image.Image]) -> EncodedReferences:
        """The vision tower is loaded for this and let go again, and so is the autoencoder if it is not there
        already."""
        if not pictures:
            return EncodedReferences()
        resized, encoder = [self.files.editing.resized(picture) for picture in pictures], self.components["vae_encoder"]
        stays = encoder.loaded
        encoded = self.encode_pictures(resized)
        if not stays:
            encoder.release()
        shown = [on_white(picture.convert("RGB"), picture.getchannel("A")) for picture in resized]
        patches = [to_patches(picture, self.files.patches) for picture in shown]
        tower = open_tower(self.files.vision, self.files.text)
        features = encode_patches(tower.load(), patches, compute_dtype())
        tower.release()
        return replace(encoded, features=features, shown=tuple(patch.merged for patch in patches))

    def schedule(self, settings: Settings) -> Schedule:
        config, tokens = self.scheduler(settings), math.prod(self.grid(settings))
        sigmas = () if "shift" in settings.extras else self.files.sigmas
        return flow_match_schedule(config, settings.steps, tokens, own_sigmas=sigmas)

    def denoiser(
        self, branches: Sequence[QwenImage21Branch], schedule: Schedule, settings: Settings
    ) -> QwenImage21Denoiser:
        (*table, clean), source = self.modulation.of(schedule.timesteps)
        conditions = [self._condition(branch, self.grid(settings), clean) for branch in branches]
        shown = self.controls, FollowedPictures(self.controls, schedule.steps)
        return QwenImage21Denoiser(self.transformer, conditions, settings.cfg, table, *shown, tables_source=source)

    def open_control(self, name: str, folder: Path, transforms: WeightTransforms) -> ControlNetwork:
        return QwenImage21ControlNetwork(name, folder, self.files.config, transforms)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        pixels = super().decode(x, settings)
        return pixels if settings.extras.get("transparent") else pixels[..., :COLOURS]

    def encode_image(self, picture: mx.array, stream: TorchGenerator | None = None) -> mx.array:
        """Opaque where it has no alpha."""
        if picture.shape[-1] == COLOURS:
            picture = mx.concatenate([picture, mx.ones_like(picture[..., :1])], axis=-1)
        return super().encode_image(picture, stream)

    def encode_control(self, control: ControlPicture, inputs: Inputs, stream: TorchGenerator) -> mx.array:
        """Tokens [1, L, 2 C + 1]: latents of the picture, 1 where there is no hole, and latents of what is around it;
        zero where nothing is given. All are modes."""
        around = control.pixels if control.kind == INPAINT else inputs.image
        latents = self.encode_image(control.pixels)
        nothing, kept = mx.zeros_like(latents), mx.zeros_like(latents[:, :1])
        hole = nothing
        if inputs.mask is not None and around is not None:
            hole = self.encode_image(around * (1 - inputs.mask[..., None]))
            kept = 1 - sampled(inputs.mask, (latents.shape[2], latents.shape[3]))[None, None]
        return self.pack(mx.concatenate([nothing if control.kind == INPAINT else latents, kept, hole], axis=1))

    @property
    def vision_param_count(self) -> int:
        tensors = self.files.text.checkpoint
        return sum(math.prod(tensors[name].shape) for name in tensors if name.startswith(f"{VISUAL}."))

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        sizes = [self.files.editing.size(picture.size) for picture in prompt.references]
        shown = sum(math.prod(merged_grid(size, self.files.patches)) for size in sizes)
        return ReferenceTokens(shown, prefix=(SLOT**2 - 1) * shown)

    def reference_pixels(self, prompt: Prompt, settings: Settings) -> int:
        return max((math.prod(self.files.editing.size(picture.size)) for picture in prompt.references), default=0)

    @property
    def prefix_values(self) -> int:
        return 2 * self.files.config.num_layers * self.files.config.inner_dim

    def _condition(self, branch: QwenImage21Branch, target: Grid, clean: Modulation) -> Condition:
        """The keys and values of all that stands before the picture are the same at every step in which the same
        networks follow."""
        rope = rope_table(positions((*branch.segments, target)), self.files.config.axes_dims_rope, THETA)
        length = sum(map(length_of, branch.segments))
        before, own = rope[:length], rope[length:]
        mx.eval(before, own)

        def make_prefix(strengths: Strengths) -> Prefix:
            passes: dict[str, FunPass] = {}

            def follow(name: str, x: mx.array) -> FunPass:
                module, modulation = self.controls[name].module, clean.block
                passes[name] = FunPass(x, module, None, strengths[name], before, modulation, segments=branch.segments)
                return passes[name]

            tokens = branch.references.tokens
            references = None if tokens is None else tokens.astype(compute_dtype())
            controls = [functools.partial(follow, name) for name in strengths]
            transformer = self.transformer.load()
            pairs = transformer.prefix(branch.txt, references, branch.segments, before, clean, controls)
            kept = {name: each.kept for name, each in passes.items()}
            mx.eval(kept)
            return Prefix(pairs, kept)

        return Condition(own, make_prefix)

    def _notes(self, prompt: Prompt, settings: Settings) -> list[str]:
        if not settings.extras.get("transparent") or "transparen" in prompt.text.lower():
            return []
        return [
            "transparent: the model leaves the background out where the prompt says so; write for example 'This is an "
            "RGBA image with transparency. … The image has alpha channel and the background is transparent.'"
        ]
