"""Qwen-Image, its Lightning and editing checkpoints, and the one that takes a picture apart, as a family.

Qwen2.5-VL's features of the prompt (and, for editing, of reference pictures) -> rectified flow on packed 16-channel
latents, followed by the latents of reference pictures -> VAE. Guidance is the scale between two branches, with the
length of every token's velocity kept at the positive branch's.
Qwen-Image-Layered draws the picture put together and its layers at once, each with alpha, followed by the latents of
the picture that is taken apart; the picture put together is not decoded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from ... import machine as memory
from ...autoencoders.qwen_image import Decoder, Encoder
from ...folding import Fold, Folded
from ...hub.manifest import Manifest
from ...image import ALPHA, laid_over, resized
from ...layers.rope import rope_table
from ...loading.component import Component
from ...loading.weights import WeightTransforms
from ...masks import sampled
from ...precision import compute_dtype, on_gpu
from ...random import TorchGenerator
from ...sampling import Schedule, flow_match_schedule
from ...text.qwen import mrope, text_positions
from ...vision.patches import merged_grid, to_patches
from ...vision.qwen2_5 import encode_patches, vision_shapes, vision_tower
from ..base import (
    Condition,
    EncodedInputs,
    EncodedReferences,
    Inputs,
    Prompt,
    ReferenceTokens,
    Settings,
    TextBranch,
    cut_notes,
)
from ..controls import ControlNetwork, ControlPicture, Controls
from ..language import LanguageFamily, language_model
from ..latents import autoencoder
from ..schedule_tables import ScheduleTables, Unfolding
from .captions import describe
from .control import ControlPass, QwenImageControlNetwork
from .denoiser import QwenImageDenoiser
from .files import QwenImageFiles, columns, open_files
from .lightning import lightning_notes
from .modulation import QwenImageModulators, fold_inputs, modulators, steps, tabulate, unfold
from .positions import positions
from .prompts import ids_of
from .transformer import Modulation, QwenImageTransformer, cuts

THETA = 10000.0  # diffusers fixes rope's base in code
LAYERED_TOKENS = 256  # of a picture whose shift is 1, in Qwen-Image-Layered's pipeline


class QwenImage(LanguageFamily[TextBranch]):
    name = "qwen_image"
    files: QwenImageFiles
    modulation: ScheduleTables[Modulation]
    controls: Mapping[str, QwenImageControlNetwork]
    open_files = staticmethod(open_files)

    def __init__(self, files: QwenImageFiles):
        self.files = files
        config, vae, dtype, heads = files.config, files.vae_config, compute_dtype(), files.config.num_attention_heads
        components = {
            "text_encoder": language_model(files),
            "transformer": Component(
                files.transformer, lambda: QwenImageTransformer(config), dtype, heads=heads, cuts=cuts(config)
            ),
            **autoencoder(files.vae, vae, Decoder, Encoder),
        }
        if (vision := files.vision_config) is not None:
            components["vision"] = Component(
                files.text,
                lambda: vision_tower(vision),
                dtype,
                shapes=lambda: vision_shapes(vision),
                heads=vision.num_heads,
            )
            self.stages = QwenImage.stages | {"encode": ("text_encoder", "vision", "vae_encoder")}
        if config.is_layered:
            self.stages = QwenImage.stages | {"encode": ("text_encoder", "vae_encoder")}
        super().__init__(components, vae.z_dim, config.patch_size, vae.scale_factor)
        unfolding = None
        if files.folded is not None:
            count = files.columns
            unfolding = Unfolding(files.folded, lambda fill, chosen: unfold(config, fill, chosen, count, dtype))
        tree = QwenImageModulators(config)
        self.modulation = ScheduleTables(files.transformer, config, tree, tabulate, steps, unfolding)

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[TextBranch, list[str]]:
        references, length = self._encoded(prompt, settings), settings.extras["max_sequence_length"]
        read = ids_of(self.tokenizer, prompt.text, self.files.editing, references.shown, length)
        x = self.embedded(read.ids)
        if references.shown:
            (places,) = np.nonzero(np.array(read.ids) == read.picture)
            x[0, mx.array(places)] = references.features
        where = text_positions(read.ids, read.picture if references.shown else None, references.shown)
        features = self.language_model(x, mrope(where, self.files.text_config))
        txt = features[:, read.template :]  # the template's own words are not passed on
        mx.eval(txt)
        return TextBranch(txt, references), cut_notes(read.cut, length)

    def frames(self, settings: Settings) -> int:
        return 1 + int(settings.extras["layers"]) if self.files.config.is_layered else 1

    def schedule(self, settings: Settings) -> Schedule:
        tokens = math.prod(self.grid(settings))
        mu = math.sqrt(tokens / LAYERED_TOKENS) if self.files.config.is_layered else None
        schedule = flow_match_schedule(self.scheduler(settings), settings.steps, tokens, mu)
        if self.files.folded is not None:
            folder, size = self.files.tokenizer.parent, (settings.width, settings.height)
            self.files.folded.check(schedule.timesteps, folder, settings.steps, size, settings.extras.get("shift"))
        return schedule

    def denoiser(self, branches: Sequence[TextBranch], schedule: Schedule, settings: Settings) -> QwenImageDenoiser:
        references = branches[0].references  # all branches show the same pictures
        config, axes = self.files.config, self.files.config.axes_dims_rope
        grids = (*[self.grid(settings)] * self.frames(settings), *references.grids)
        lengths = [branch.txt.shape[1] for branch in branches]
        table, source = self.modulation.of(schedule.timesteps)
        conditions = [
            Condition(branch.txt, rope_table(positions(length, grids, config.is_layered), axes, THETA))
            for branch, length in zip(branches, lengths, strict=True)
        ]
        together = self._in_one_batch(max(lengths) + sum(map(math.prod, grids)))
        passes = {name: self._control_pass(name, conditions[0], schedule) for name in self.controls}
        normalizes = not config.is_layered or settings.extras.get("cfg_normalization", False)
        controls, numbers = Controls(passes, schedule.steps), (references.tokens, together, normalizes)
        return QwenImageDenoiser(
            self.transformer, conditions, settings.cfg, controls, table, *numbers, tables_source=source
        )

    def _control_pass(self, name: str, condition: Condition, schedule: Schedule) -> ControlPass:
        network = self.controls[name]
        table, _ = network.modulation.of(schedule.timesteps)
        return ControlPass(network, condition.txt, condition.rope, table, self.files.config.num_layers)

    def open_control(self, name: str, folder: Path, transforms: WeightTransforms) -> ControlNetwork:
        return QwenImageControlNetwork(name, folder, self.files.config, transforms)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        if not self.files.config.is_layered:
            return super().decode(x, settings)
        decoder, layers = self.components["vae_decoder"].load(), []
        for layer in self.unpack(x, settings)[1:]:
            layers.append(decoder.decode(layer[None])[0])
            mx.eval(layers[-1])  # now, so that one layer's activations take the room of the former's
        return mx.stack(layers)

    def encode_inputs(self, inputs: Inputs, stream: TorchGenerator, settings: Settings) -> EncodedInputs:
        """A masked image that is the reference as well is encoded once: the same sample serves for both."""
        encoded = super().encode_inputs(inputs, stream, settings)
        if not inputs.is_reference or encoded.clean is None:
            return encoded
        reference = self.pack(encoded.clean)
        mx.eval(reference)
        return replace(encoded, condition=reference)

    def encode_control(self, control: ControlPicture, inputs: Inputs, stream: TorchGenerator) -> mx.array:
        """Latents, and for a network that fills a hole 1 where there is none in a further channel."""
        if control.network is None or not self.controls[control.network].fills:
            return super().encode_control(control, inputs, stream)
        assert inputs.mask is not None  # the network's check refuses less
        z = self.encode_image(mx.where(inputs.mask[..., None] > 0, -1, control.pixels))
        kept = 1 - sampled(inputs.mask, (z.shape[2], z.shape[3]))
        return self.pack(mx.concatenate([z, kept[None, None]], axis=1))

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

    def describe(self, prompt: Prompt, settings: Settings, on_token: Callable[[int], None] | None = None) -> str:
        (picture,) = prompt.references
        picture = resized(picture.convert(ALPHA), (settings.width, settings.height))
        shown = laid_over([Image.new(ALPHA, picture.size, "white"), picture])  # as transformers' processor does
        return describe(shown, self.files, self.components["text_encoder"], self.tokenizer, on_token)

    def lora_notes(self, manifest: Manifest, names: Sequence[str]) -> list[str]:
        return [note for name in names for note in lightning_notes(manifest, name)]

    def _encoded(self, prompt: Prompt, settings: Settings) -> EncodedReferences:
        pictures, size = prompt.references, (settings.width, settings.height)
        if not self.files.config.is_layered:
            return self._references.get(prompt.references_key, lambda: self._encode_references(pictures))

        def composite() -> EncodedReferences:
            """The picture that is taken apart, with alpha and in the size of its layers."""
            (picture,) = pictures
            return self.encode_pictures([resized(picture.convert(ALPHA), size)])

        return self._references.get((prompt.references_key, size), composite)

    def _encode_references(self, pictures: Sequence[Image.Image]) -> EncodedReferences:
        editing, patch_config = self.files.editing, self.files.patches
        if not pictures or editing is None or patch_config is None:
            return EncodedReferences()
        patches = [to_patches(editing.for_language(picture), patch_config) for picture in pictures]
        tower = self.components["vision"].load()
        features = mx.concatenate([encode_patches(tower, patch, compute_dtype()) for patch in patches])
        latents = self.encode_pictures([editing.for_latents(picture) for picture in pictures])
        mx.eval(features)
        return replace(latents, features=features, shown=tuple(patch.merged for patch in patches))

    def _in_one_batch(self, tokens: int) -> bool:
        """On a GPU, where each weight is then read once for both, if a second branch's activations fit: a block holds
        about 16 vectors a token at its widest (the MLP's 4 + 4 among them). On the CPU two passes are 5% faster and
        take half the memory (benchmarks/LOG.md)."""
        if not on_gpu():
            return False
        activations = tokens * 16 * self.files.config.inner_dim * compute_dtype().size
        usable = memory.physical_bytes() * memory.USABLE_SHARE
        return self.components["transformer"].nbytes + 2 * activations <= usable
