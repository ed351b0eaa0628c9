"""Qwen-Image, its Lightning and editing checkpoints, and the one that takes a picture apart, as a family.

Qwen2.5-VL's features of the prompt (and, for editing, of reference pictures) -> rectified flow on packed 16-channel
latents, followed by the latents of reference pictures -> VAE. Guidance is the scale between two branches, with the
length of every token's velocity kept at the positive branch's.
Qwen-Image-Layered draws the picture put together and its layers at once, each with alpha, followed by the latents of
the picture that is taken apart; the picture put together is not decoded.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from ... import machine as memory
from ...autoencoders.qwen_image import Decoder, Encoder, normalised
from ...folding import Fold, Folded
from ...hub.manifest import Manifest
from ...image import ALPHA, to_pixels
from ...layers.patches import Grid, patchified, unpatchified
from ...layers.posterior import sample
from ...layers.rope import rope_table
from ...loading.component import Component
from ...loading.weights import WeightTransforms
from ...masks import sampled
from ...precision import VAE_DTYPE, compute_dtype, on_gpu
from ...random import TorchGenerator
from ...sampling import Schedule, flow_match_schedule
from ...text.qwen import LanguageModel, mrope, text_positions
from ...text.qwen import cuts as text_cuts
from ...text.tokenizer import Tokenizer, qwen_tokenizer
from ...vision.patches import merged_grid, to_patches
from ...vision.qwen2_5 import encode_patches, vision_shapes, vision_tower
from ..base import Condition, EncodedInputs, Family, Inputs, LastValueCache, Prompt, ReferenceTokens, Settings
from ..controls import ControlNetwork, ControlPicture, Controls, EncodedControl
from ..schedule_tables import find_tables
from .control import ControlPass, QwenImageControlNetwork
from .denoiser import QwenImageDenoiser
from .editing import resized
from .files import TABLE, QwenImageFiles, columns, open_files
from .lightning import lightning_notes
from .modulation import Tables, fold_inputs, modulators, tabulate, unfold
from .positions import positions
from .prompts import ids_of
from .transformer import Modulation, QwenImageTransformer, cuts

THETA = 10000.0  # diffusers fixes rope's base in code
LAYERED_TOKENS = 256  # of a picture whose shift is 1, in Qwen-Image-Layered's pipeline


@dataclass(frozen=True)
class EncodedReferences:
    """Reference pictures, as the language model and the transformer take them."""

    features: tuple[mx.array, ...] = ()  # [tokens, D] each
    merged: tuple[Grid, ...] = ()  # the language model's grids
    latents: mx.array | None = None  # packed, one picture after another: [1, R, C]
    grids: tuple[Grid, ...] = ()  # the transformer's


@dataclass(frozen=True)
class QwenImageBranch:
    txt: mx.array  # [1, T, D]
    references: EncodedReferences


class QwenImage(Family[QwenImageBranch]):
    name = "qwen_image"
    stages = {
        "encode": ("text_encoder",),
        "denoise": ("transformer",),
        "decode": ("vae_decoder",),
        "encode_image": ("vae_encoder",),
    }

    def __init__(self, files: QwenImageFiles):
        self.files = files
        dtype = compute_dtype()
        self.components = {
            "text_encoder": Component(
                files.text,
                lambda: LanguageModel(files.text_config),
                dtype,
                heads=files.text_config.num_attention_heads,
                cuts=text_cuts(files.text_config),
            ),
            "transformer": Component(
                files.transformer,
                lambda: QwenImageTransformer(files.config),
                dtype,
                heads=files.config.num_attention_heads,
                cuts=cuts(files.config),
            ),
            "vae_decoder": Component(files.vae, lambda: Decoder(files.vae_config), VAE_DTYPE),
            "vae_encoder": Component(files.vae, lambda: Encoder(files.vae_config), VAE_DTYPE),
        }
        if (vision := files.vision_config) is not None:
            self.components["vision"] = Component(
                files.text,
                lambda: vision_tower(vision),
                dtype,
                shapes=lambda: vision_shapes(vision),
                heads=vision.num_heads,
            )
            self.stages = QwenImage.stages | {"encode": ("text_encoder", "vision", "vae_encoder")}
        if files.config.is_layered:
            self.stages = QwenImage.stages | {"encode": ("text_encoder", "vae_encoder")}
        self._references = LastValueCache[EncodedReferences]()  # the same for all branches
        self._tables = LastValueCache[tuple[tuple[Modulation, ...], str]]()  # the same for every prompt

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "QwenImage":
        return cls(open_files(folder, manifest, transforms))

    @property
    def size_multiple(self) -> int:
        return self.files.config.patch_size * self.files.vae_config.scale_factor

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[QwenImageBranch, list[str]]:
        references, length = self._encoded(prompt, settings), settings.extras["max_sequence_length"]
        read = ids_of(self._tokenizer, prompt.text, self.files.editing, references.merged, length)
        x = self.files.text.gather(TABLE, read.ids, compute_dtype())
        if references.features:
            (places,) = np.nonzero(np.array(read.ids) == read.picture)
            x[mx.array(places)] = mx.concatenate(list(references.features))
        where = text_positions(read.ids, read.picture if references.merged else None, references.merged)
        text_encoder = self.components["text_encoder"].load()
        features = text_encoder(x[None], mrope(where, self.files.text_config))
        txt = features[:, read.template :]  # the template's own words are not passed on
        mx.eval(txt)
        notes = [f"the prompt is longer than {length} tokens; cut off: '{read.cut}'"] if read.cut else []
        return QwenImageBranch(txt, references), notes

    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        side, (rows, columns) = self.files.config.patch_size, self.grid(settings)
        return self.frames(settings), self.files.vae_config.z_dim, side * rows, side * columns

    def frames(self, settings: Settings) -> int:
        return 1 + int(settings.extras["layers"]) if self.files.config.is_layered else 1

    def pack(self, x: mx.array) -> mx.array:
        tokens = patchified(x, self.files.config.patch_size)
        return tokens.reshape(1, -1, tokens.shape[-1])  # frame after frame

    def schedule(self, settings: Settings) -> Schedule:
        config = self.files.scheduler
        if "shift" in settings.extras:
            shift = settings.extras["shift"]
            config = replace(config, use_dynamic_shifting=False, shift=shift, shift_terminal=None)
        tokens = math.prod(self.grid(settings))
        mu = math.sqrt(tokens / LAYERED_TOKENS) if self.files.config.is_layered else None
        schedule = flow_match_schedule(config, settings.steps, tokens, mu)
        if self.files.folded is not None:
            folder, size = self.files.tokenizer.parent, (settings.width, settings.height)
            self.files.folded.check(schedule.timesteps, folder, settings.steps, size, settings.extras.get("shift"))
        return schedule

    def denoiser(
        self, branches: Sequence[QwenImageBranch], schedule: Schedule, settings: Settings
    ) -> "QwenImageDenoiser":
        references = branches[0].references  # all branches show the same pictures
        config, axes = self.files.config, self.files.config.axes_dims_rope
        grids = (*[self.grid(settings)] * self.frames(settings), *references.grids)
        lengths = [branch.txt.shape[1] for branch in branches]
        table, source = self._tables.get(schedule, lambda: self.tables(schedule))
        conditions = [
            Condition(branch.txt, rope_table(positions(length, grids, config.is_layered), axes, THETA))
            for branch, length in zip(branches, lengths, strict=True)
        ]
        together = self._in_one_batch(max(lengths) + sum(map(math.prod, grids)))
        passes = {name: self._control_pass(name, conditions[0], schedule) for name in self.controls}
        normalizes = not config.is_layered or settings.extras.get("cfg_normalization", False)
        controls, numbers = Controls(passes, schedule.steps), (references.latents, together, normalizes)
        return QwenImageDenoiser(
            self.transformer, conditions, settings.cfg, controls, table, *numbers, tables_source=source
        )

    def _control_pass(self, name: str, condition: Condition, schedule: Schedule) -> ControlPass:
        network = self._network(name)
        return ControlPass(
            network, condition.txt, condition.rope, network.tables(schedule), self.files.config.num_layers
        )

    def _network(self, name: str) -> QwenImageControlNetwork:
        network = self.controls[name]
        assert isinstance(network, QwenImageControlNetwork)
        return network

    def open_control(self, name: str, folder: Path, transforms: WeightTransforms) -> ControlNetwork:
        return QwenImageControlNetwork(name, folder, self.files.config, transforms)

    def unpack(self, x: mx.array, settings: Settings) -> mx.array:
        frames = x.reshape(self.frames(settings), -1, x.shape[-1])
        return unpatchified(frames, self.grid(settings), self.files.config.patch_size)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder, latents = self.components["vae_decoder"].load(), self.unpack(x, settings)
        if not self.files.config.is_layered:
            pixels: mx.array = decoder.decode(latents)[0]
            return pixels
        layers = []
        for layer in latents[1:]:
            layers.append(decoder.decode(layer[None])[0])
            mx.eval(layers[-1])  # now, so that one layer's activations take the room of the former's
        return mx.stack(layers)

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        encoded = self.encode_inputs(Inputs(picture), seed, settings)
        assert encoded.clean is not None
        return encoded.clean, encoded.noise

    def encode_inputs(self, inputs: Inputs, seed: int, settings: Settings) -> EncodedInputs:
        """From one stream, in diffusers' order: what is followed, the picture to start from, the noise. A network that
        is shown the hole draws nothing, and nothing has to be kept in the loop."""
        stream = TorchGenerator(seed)
        filled = any(control.network and self._network(control.network).fills for control in inputs.controls)
        controls = tuple(self._control_condition(control, inputs, stream) for control in inputs.controls)
        clean = None if inputs.image is None or filled else self.latents(inputs.image, stream)
        noise = stream.randn(self.shape(settings))
        mask = None if inputs.mask is None or filled else sampled(inputs.mask, self.shape(settings)[2:])
        # A masked image that is the reference as well is encoded once: the same sample serves for both.
        reference = self.pack(clean) if inputs.is_reference and clean is not None else None
        mx.eval([each.condition for each in controls], [] if reference is None else reference)
        return EncodedInputs(noise, clean, mask, reference, controls)

    def _control_condition(self, control: ControlPicture, inputs: Inputs, stream: TorchGenerator) -> EncodedControl:
        """Tokens [1, L, C]: latents, and for a network that fills a hole 1 where there is none in a further channel."""
        if control.network is None or not self._network(control.network).fills:
            return EncodedControl(control, self.pack(self.latents(control.pixels, stream)))
        assert inputs.mask is not None  # the network's check refuses less
        z = self.latents(mx.where(inputs.mask[..., None] > 0, -1, control.pixels), None)
        kept = 1 - sampled(inputs.mask, (z.shape[2], z.shape[3]))
        return EncodedControl(control, self.pack(mx.concatenate([z, kept[None, None]], axis=1)))

    def latents(self, picture: mx.array, stream: TorchGenerator | None) -> mx.array:
        """Pixels [H, W, colours] in -1..1 -> [1, C, h, w] in the loop's scale: a sample, or without a stream the
        mode."""
        mean, logvar = self.components["vae_encoder"].load().encode(picture[None])
        z = mean if stream is None else sample(mean, logvar, stream)
        return normalised(z, self.files.vae_config)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Its 150,000 words take half a second to read."""
        return qwen_tokenizer(self.files.tokenizer)

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        editing, patches = self.files.editing, self.files.patches
        if self.files.config.is_layered:
            return ReferenceTokens(image=len(prompt.references) * math.prod(self.grid(settings)))
        if editing is None or patches is None:
            return ReferenceTokens()
        sizes = [picture.size for picture in prompt.references]
        return ReferenceTokens(
            sum(math.prod(merged_grid(editing.language_size(size), patches)) for size in sizes),
            sum(math.prod(editing.latent_size(size)) for size in sizes) // self.size_multiple**2,
        )

    def reference_pixels(self, prompt: Prompt, settings: Settings) -> int:
        editing = self.files.editing
        if self.files.config.is_layered:
            return settings.width * settings.height if prompt.references else 0
        sizes = (editing.latent_size(picture.size) for picture in prompt.references) if editing else ()
        return max(map(math.prod, sizes), default=0)

    def fold(self, settings: Settings) -> Fold:
        """The modulation depends on the timestep alone, so that the schedule says all of it."""
        schedule = self.schedule(settings)
        twice = replace(settings, width=2 * settings.width, height=2 * settings.height)
        any_size = self.schedule(twice) == schedule
        folded = Folded(settings.steps, schedule.timesteps, None if any_size else (settings.width, settings.height))
        config = self.files.config
        return Fold(
            self.files.transformer.component,
            folded,
            *modulators(config),
            columns(config, folded),
            lambda read: fold_inputs(config, schedule.timesteps, read),
        )

    def lora_notes(self, manifest: Manifest, names: Sequence[str]) -> list[str]:
        return [note for name in names for note in lightning_notes(manifest, name)]

    def forget(self) -> None:
        self._references.forget()
        self._tables.forget()
        for network in self.controls.values():
            network.forget()

    def tables(self, schedule: Schedule) -> tuple[tuple[Modulation, ...], str]:
        """A modulation a step, and where they came from."""
        files, dtype = self.files, compute_dtype()
        config, timesteps = files.config, schedule.timesteps
        arrays, source = find_tables(
            files.transformer,
            frozenset[str]().union(*modulators(config)),
            (config, tuple(timesteps), str(dtype)),
            timesteps,
            lambda fill: tabulate(config, fill, timesteps, dtype).arrays(),
            lambda fill, chosen: unfold(config, fill, chosen, files.columns, dtype).arrays(),
            files.folded,
        )
        return Tables(**arrays).steps(), source

    def _encoded(self, prompt: Prompt, settings: Settings) -> EncodedReferences:
        if self.files.config.is_layered:
            size = settings.width, settings.height
            return self._references.get(
                (prompt.references_key, size), lambda: self._encode_composite(prompt.references, size)
            )
        return self._references.get(prompt.references_key, lambda: self._encode_references(prompt.references))

    def _encode_composite(self, pictures: Sequence[Image.Image], size: tuple[int, int]) -> EncodedReferences:
        """The picture that is taken apart, with alpha and in the size of its layers."""
        (picture,) = pictures
        z = self._latents(resized(picture.convert(ALPHA), size))
        packed, side = self.pack(z), self.files.config.patch_size
        mx.eval(packed)
        return EncodedReferences(latents=packed, grids=((z.shape[2] // side, z.shape[3] // side),))

    def _encode_references(self, pictures: Sequence[Image.Image]) -> EncodedReferences:
        editing, patch_config = self.files.editing, self.files.patches
        if not pictures or editing is None or patch_config is None:
            return EncodedReferences()
        patches = [to_patches(editing.for_language(picture), patch_config) for picture in pictures]
        tower = self.components["vision"].load()
        features = [encode_patches(tower, patch, compute_dtype()) for patch in patches]
        latents = [self._latents(editing.for_latents(picture)) for picture in pictures]
        side = self.files.config.patch_size
        packed = mx.concatenate([self.pack(z) for z in latents], axis=1)
        mx.eval(packed)
        return EncodedReferences(
            tuple(features),
            tuple(patch.merged for patch in patches),
            packed,
            tuple((z.shape[2] // side, z.shape[3] // side) for z in latents),
        )

    def _latents(self, picture: Image.Image) -> mx.array:
        """Of a reference: the posterior's mode, not a sample."""
        return self.latents(mx.array(to_pixels(picture) * 2 - 1), None)

    def _in_one_batch(self, tokens: int) -> bool:
        """On a GPU, where each weight is then read once for both, if a second branch's activations fit: a block holds
        about 16 vectors a token at its widest (the MLP's 4 + 4 among them). On the CPU two passes are 5% faster and
        take half the memory (benchmarks/LOG.md)."""
        if not on_gpu():
            return False
        activations = tokens * 16 * self.files.config.inner_dim * compute_dtype().size
        usable = memory.physical_bytes() * memory.USABLE_SHARE
        return self.components["transformer"].nbytes + 2 * activations <= usable
