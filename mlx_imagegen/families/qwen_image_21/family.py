"""Qwen-Image-2.1 and -Turbo as a family: from text, and from up to ten reference pictures, with alpha or without.

Qwen3-VL's states of the prompt (before its last norm) and the references' latents stand in one line before the picture
-> rectified flow on 64-channel latents -> VAE with four colours. Guidance is the plain scale between two branches.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from ...autoencoders.qwen_image import normalised
from ...autoencoders.qwen_image_21 import Decoder, Encoder
from ...errors import QuantizationError
from ...folding import Fold
from ...hub.manifest import Manifest
from ...layers.patches import Grid, patchified, unpatchified
from ...layers.posterior import sample_posterior
from ...layers.rope import rope_table
from ...loading.component import Component
from ...loading.names import RowRange
from ...loading.weights import WeightTransforms
from ...masks import sampled
from ...precision import VAE_DTYPE, compute_dtype
from ...sampling import Schedule, flow_match_schedule
from ...text.qwen import LanguageModel, mrope, text_positions
from ...text.qwen import cuts as text_cuts
from ...text.tokenizer import Tokenizer, qwen_tokenizer
from ...vision.patches import merged_grid
from ...vision.qwen3 import VISUAL, placed
from ..base import EncodedInputs, Family, Inputs, LastValueCache, Prompt, ReferenceTokens, Settings
from ..controls import ControlNetwork, ControlPicture, EncodedControl, FollowedPictures
from ..schedule_tables import find_tables
from .control import INPAINT, FunPass, QwenImage21ControlNetwork
from .denoiser import Condition, Prefix, QwenImage21Denoiser, Strengths
from .files import LANGUAGE, TABLE, QwenImage21Files, open_files
from .keys import lora_names
from .modulation import Tables, modulators, tabulate
from .prompts import SLOT, read_prompt
from .references import EncodedReferences, ReferenceRules, encode_references
from .sequence import length_of, positions
from .transformer import Modulation, QwenImage21Transformer, cuts

THETA = 10000.0  # diffusers fixes rope's base in code
COLOURS = 3


@dataclass(frozen=True)
class QwenImage21Branch:
    txt: mx.array  # [1, T, D]
    segments: tuple[int | Grid, ...]
    references: mx.array | None  # latents, [1, R, C]


class QwenImage21(Family[QwenImage21Branch]):
    name = "qwen_image_21"
    stages = {
        "encode": ("text_encoder",),
        "prepare": ("transformer",),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }

    def __init__(self, files: QwenImage21Files, rules: ReferenceRules):
        self.files = files
        self.rules = rules
        dtype = compute_dtype()
        text, config, vae = files.text_config, files.config, files.vae_config
        # The vision tower is not among them: without references it is neither loaded nor even imported.
        self.components = {
            "text_encoder": Component(
                files.text,
                lambda: LanguageModel(text),
                dtype,
                LANGUAGE,
                heads=text.num_attention_heads,
                cuts=text_cuts(text),
            ),
            "transformer": Component(
                files.transformer,
                lambda: QwenImage21Transformer(config),
                dtype,
                heads=config.num_attention_heads,
                cuts=cuts(config),
            ),
            "vae_decoder": Component(files.vae, lambda: Decoder(vae), VAE_DTYPE),
            "vae_encoder": Component(files.vae, lambda: Encoder(vae), VAE_DTYPE),
        }
        self._references = LastValueCache[EncodedReferences]()  # the same for all branches
        self._tables = LastValueCache[tuple[tuple[Modulation, ...], str]]()  # the same for every prompt

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "QwenImage21":
        return cls(open_files(folder, manifest, transforms), ReferenceRules.of(manifest))

    @property
    def size_multiple(self) -> int:
        return SLOT * self.files.vae_config.scale_factor

    def grid(self, settings: Settings) -> Grid:
        side = self.files.vae_config.scale_factor
        return settings.height // side, settings.width // side

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[QwenImage21Branch, list[str]]:
        encoded = self._references.get(
            prompt.references_key,
            lambda: encode_references(prompt.references, self.rules, self.files, self.components["vae_encoder"]),
        )
        read, config = read_prompt(self._tokenizer, prompt.text, encoded.shown), self.files.text_config
        places = [index for index, token in enumerate(read.ids) if token == read.picture]
        x = self.files.text.gather(TABLE, read.ids, compute_dtype())[None]  # [1, T, D]
        x, deepstack = placed(x, encoded.features, places)
        rope = mrope(text_positions(read.ids, read.picture, encoded.shown), config)
        text_encoder = self.components["text_encoder"].load()
        (states,) = text_encoder.states(x, rope, [config.num_hidden_layers], deepstack=deepstack)
        words = [index for index, token in enumerate(read.ids) if token != read.picture and index >= read.system]
        txt = states[:, mx.array(words)]  # where pictures are seen, their latents will stand
        mx.eval(txt)
        return QwenImage21Branch(txt, read.segments, encoded.latents), self._notes(prompt, settings)

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        return 1, self.files.vae_config.z_dim, *self.grid(settings)

    def pack(self, x: mx.array) -> mx.array:
        return patchified(x, side=1)

    def schedule(self, settings: Settings) -> Schedule:
        config, sigmas = self.files.scheduler, self.files.sigmas
        if "shift" in settings.extras:
            config = replace(config, use_dynamic_shifting=False, shift=settings.extras["shift"], shift_terminal=None)
            sigmas = ()
        return flow_match_schedule(config, settings.steps, math.prod(self.grid(settings)), own_sigmas=sigmas)

    def denoiser(
        self, branches: Sequence[QwenImage21Branch], schedule: Schedule, settings: Settings
    ) -> QwenImage21Denoiser:
        (*steps, clean), source = self._tables.get(schedule, lambda: self.tables(schedule))
        conditions = [self._condition(branch, self.grid(settings), clean) for branch in branches]
        shown = self._networks, FollowedPictures(self._networks, schedule.steps)
        return QwenImage21Denoiser(self.transformer, conditions, settings.cfg, steps, *shown, tables_source=source)

    @property
    def _networks(self) -> dict[str, QwenImage21ControlNetwork]:
        return {
            name: network for name, network in self.controls.items() if isinstance(network, QwenImage21ControlNetwork)
        }

    def open_control(self, name: str, folder: Path, transforms: WeightTransforms) -> ControlNetwork:
        return QwenImage21ControlNetwork(name, folder, self.files.config, transforms)

    def unpack(self, x: mx.array, settings: Settings) -> mx.array:
        return unpatchified(x, self.grid(settings), side=1)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder = self.components["vae_decoder"].load()
        pixels: mx.array = decoder.decode(self.unpack(x, settings))[0]
        return pixels if settings.extras.get("transparent") else pixels[..., :COLOURS]

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        mean, logvar = self.components["vae_encoder"].load().encode(_with_alpha(picture)[None])
        sample, noise = sample_posterior(mean, logvar, seed)
        return normalised(sample, self.files.vae_config), noise

    def encode_inputs(self, inputs: Inputs, seed: int, settings: Settings) -> EncodedInputs:
        """A control network is shown the hole: nothing of the picture has to be kept in the loop."""
        if not inputs.controls:
            return super().encode_inputs(inputs, seed, settings)
        controls = tuple(EncodedControl(each, self._shown(each, inputs)) for each in inputs.controls)
        mx.eval([each.condition for each in controls])
        if inputs.mask is not None:
            return EncodedInputs(self.noise(seed, settings), controls=controls)
        return replace(super().encode_inputs(inputs, seed, settings), controls=controls)

    def _shown(self, control: ControlPicture, inputs: Inputs) -> mx.array:
        """Tokens [1, L, 2 C + 1]: latents of the picture, 1 where there is no hole, and latents of what is around it;
        zero where nothing is given."""
        around = control.pixels if control.kind == INPAINT else inputs.image
        latents = self._mode(control.pixels)
        nothing, kept = mx.zeros_like(latents), mx.zeros_like(latents[:, :1])
        hole = nothing
        if inputs.mask is not None and around is not None:
            hole = self._mode(around * (1 - inputs.mask[..., None]))
            kept = 1 - sampled(inputs.mask, (latents.shape[2], latents.shape[3]))[None, None]
        return self.pack(mx.concatenate([nothing if control.kind == INPAINT else latents, kept, hole], axis=1))

    def _mode(self, picture: mx.array) -> mx.array:
        """Pixels [H, W, 3 or 4] in -1..1 -> [1, C, h, w] in the loop's scale: the posterior's mode, not a sample."""
        mean, _ = self.components["vae_encoder"].load().encode(_with_alpha(picture)[None])
        return normalised(mean, self.files.vae_config)

    @property
    def vision_param_count(self) -> int:
        tensors = self.files.text.checkpoint
        return sum(math.prod(tensors[name].shape) for name in tensors if name.startswith(f"{VISUAL}."))

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        sizes = [self.rules.size(picture.size) for picture in prompt.references]
        shown = sum(math.prod(merged_grid(size, self.files.patches)) for size in sizes)
        return ReferenceTokens(shown, prefix=(SLOT**2 - 1) * shown)

    def reference_pixels(self, prompt: Prompt, settings: Settings) -> int:
        return max((math.prod(self.rules.size(picture.size)) for picture in prompt.references), default=0)

    @property
    def prefix_values(self) -> int:
        return 2 * self.files.config.num_layers * self.files.config.inner_dim

    def fold(self, settings: Settings) -> Fold:
        raise QuantizationError(
            "--fold: Qwen-Image-2.1's modulation is one hundredth of its weights, and they are not kept in memory; a "
            "table in their place would save nothing. Leave it out."
        )

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        return lora_names(component, modules)

    def forget(self) -> None:
        self._references.forget()
        self._tables.forget()

    def tables(self, schedule: Schedule) -> tuple[tuple[Modulation, ...], str]:
        """A modulation a step, the one at t = 0 last, and where they came from."""
        config, dtype, timesteps = self.files.config, compute_dtype(), schedule.timesteps
        arrays, source = find_tables(
            self.files.transformer,
            modulators(config),
            (config, tuple(timesteps), str(dtype)),
            timesteps,
            lambda fill: tabulate(config, fill, timesteps, dtype)._asdict(),
        )
        return Tables(**arrays).steps(), source

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
                module, modulation = self._networks[name].module, clean.block
                passes[name] = FunPass(x, module, None, strengths[name], before, modulation, segments=branch.segments)
                return passes[name]

            references = None if branch.references is None else branch.references.astype(compute_dtype())
            controls = [functools.partial(follow, name) for name in strengths]
            transformer = self.transformer.load()
            pairs = transformer.prefix(branch.txt, references, branch.segments, before, clean, controls)
            kept = {name: each.kept for name, each in passes.items()}
            mx.eval(kept)
            return Prefix(pairs, kept)

        return Condition(own, make_prefix)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Its 150,000 words take half a second to read."""
        return qwen_tokenizer(self.files.tokenizer)

    def _notes(self, prompt: Prompt, settings: Settings) -> list[str]:
        if not settings.extras.get("transparent") or "transparen" in prompt.text.lower():
            return []
        return [
            "transparent: the model leaves the background out where the prompt says so; write for example 'This is an "
            "RGBA image with transparency. … The image has alpha channel and the background is transparent.'"
        ]


def _with_alpha(picture: mx.array) -> mx.array:
    """[H, W, 4], opaque where it had none."""
    if picture.shape[-1] > COLOURS:
        return picture
    return mx.concatenate([picture, mx.ones_like(picture[..., :1])], axis=-1)
