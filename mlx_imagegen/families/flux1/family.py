"""FLUX.1 as a family: schnell and dev; Fill, Depth, Canny and Kontext, which are shown pictures besides.

CLIP's pooled vector and T5's features -> rectified flow on packed 16-channel latents -> VAE. Guidance is a number the
dev transformer reads; a second branch for a negative prompt (true CFG) is possible on top. Fill, Depth and Canny have
what they are shown in further channels of every token, Kontext in further tokens.
"""

import functools
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from ...autoencoders.kl import Decoder, Encoder, normalized
from ...errors import QuantizationError, RequestError
from ...folding import Fold
from ...hub.manifest import Manifest
from ...image import to_pixels
from ...layers.patches import Grid, patchified, unpatchified
from ...layers.posterior import sample
from ...layers.rope import Rope
from ...loading.component import Component
from ...loading.names import RowRange
from ...loading.weights import WeightTransforms
from ...masks import sampled
from ...precision import VAE_DTYPE, compute_dtype
from ...random import TorchGenerator
from ...sampling import Schedule, flow_match_schedule
from ...text.clip import ClipTextModel
from ...text.t5 import T5Encoder
from ...text.t5 import cuts as t5_cuts
from ...text.tokenizer import Tokenizer, clip_tokenizer, t5_tokenizer
from ..base import EncodedInputs, Family, Inputs, LastValueCache, Prompt, ReferenceTokens, Settings
from ..controls import ControlNetwork, ControlPicture, Controls, EncodedControl
from ..image_prompts import AdapterSource, ImageAdapter
from .adapters import encode_pictures, has_text, open_adapter
from .control import ControlPass, FluxControlNetwork
from .denoiser import Flux1Denoiser, FluxCondition
from .files import CLIP_TABLE, T5_TABLE, FluxFiles, open_files
from .inputs import SIDE, InputKind, hole_condition
from .keys import lora_names
from .modulation import PromptTables
from .positions import rope
from .prompts import FluxBranch, PromptPictures
from .references import EncodedReferences, reference_size
from .transformer import FluxTransformer, cuts

INPUT = "x_embedder"  # the layer that reads the latents and what is next to them


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
        self._modulation = PromptTables(files.config, files.transformer)
        dtype = compute_dtype()
        self.components = {
            "text_encoder": Component(
                files.clip, lambda: ClipTextModel(files.clip_config), dtype, heads=files.clip_config.num_attention_heads
            ),
            "text_encoder_2": Component(
                files.t5,
                lambda: T5Encoder(files.t5_config),
                dtype,
                heads=files.t5_config.num_heads,
                cuts=t5_cuts(files.t5_config),
            ),
            "transformer": self._transformer(),
            "vae_decoder": Component(files.vae, lambda: Decoder(files.vae_config), VAE_DTYPE, "decoder"),
            "vae_encoder": Component(files.vae, lambda: Encoder(files.vae_config), VAE_DTYPE, "encoder"),
        }
        if files.reference_sizes:
            self.stages = Flux1.stages | {"encode": (*Flux1.stages["encode"], "vae_encoder")}
        self.inputs_on_disk = files.inputs  # whatever a LoRA makes of them
        self._references = LastValueCache[EncodedReferences | None]()  # the same for all branches
        self._pictures: dict[Hashable, tuple[PromptPictures, ...]] = {}  # by prompts' images_key, of the latest request

    def _transformer(self) -> Component:
        files = self.files
        return Component(
            files.transformer,
            lambda: FluxTransformer(files.config),
            compute_dtype(),
            heads=files.config.num_attention_heads,
            cuts=cuts(files.config),
        )

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "Flux1":
        return cls(open_files(folder, manifest, transforms))

    @property
    def size_multiple(self) -> int:
        return SIDE * self.files.vae_config.scale_factor

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[FluxBranch, list[str]]:
        length = settings.extras["max_sequence_length"]
        (txt, pooled), notes = (
            self._encode_text(prompt.text, length) if has_text(prompt) else (self._no_text(length), [])
        )
        pictures = self._pictures.get(prompt.images_key, ())
        for each in pictures:
            txt, pooled = each.after(txt, pooled)
        mx.eval(txt, pooled)
        references = self._references.get(prompt.references_key, lambda: self._encode_references(prompt))
        return FluxBranch(txt, pooled, references, tuple(itertools.chain(*(each.attended for each in pictures)))), notes

    def _encode_text(self, text: str, length: int) -> tuple[tuple[mx.array, mx.array], list[str]]:
        """T5's features and CLIP's vector, and notes on what was cut off."""
        clip_ids, clip_cut = self._clip_tokenizer.encode(text)
        t5_ids, t5_cut = self._t5_tokenizer.encode(text, length)
        dtype = compute_dtype()
        clip = self.components["text_encoder"].load()
        _, pooled = clip(self.files.clip.gather(CLIP_TABLE, clip_ids, dtype)[None], mx.array(clip_ids)[None])
        t5 = self.components["text_encoder_2"].load()
        txt = t5(self.files.t5.gather(T5_TABLE, t5_ids, dtype)[None])  # padding attends, as in the reference
        notes = []
        if t5_cut:
            notes.append(f"the prompt is longer than the {len(t5_ids)} tokens T5 reads; cut off: '{t5_cut}'")
        elif clip_cut:
            notes.append(
                f"CLIP reads the first {len(clip_ids)} tokens only (T5 reads all); it does not see: '{clip_cut}'"
            )
        return (txt, pooled), notes

    def _no_text(self, length: int) -> tuple[mx.array, mx.array]:
        """What stands before pictures that are the prompt alone; as in diffusers, where no text encoder is loaded."""
        widths = self.files.config.joint_attention_dim, self.files.config.pooled_projection_dim
        return mx.zeros((1, length, widths[0]), compute_dtype()), mx.zeros((1, widths[1]), compute_dtype())

    def encode_stages(self, prompts: Iterable[Prompt]) -> tuple[str, ...]:
        """None where no prompt has words, and none has references."""
        prompts = list(prompts)
        return (
            super().encode_stages(prompts) if any(has_text(prompt) or prompt.references for prompt in prompts) else ()
        )

    def open_adapter(self, source: AdapterSource, folder: Path) -> ImageAdapter[PromptPictures]:
        return open_adapter(source, folder, self.files.config)

    def encode_images(self, prompts: Sequence[Prompt]) -> None:
        wanted = {prompt.images_key: prompt.images for prompt in prompts}
        if self.sharing and not all(image.adapter.in_prompt for images in wanted.values() for image in images):
            raise RequestError(
                "ip_adapter: its keys are of all heads, and layers shared out have a part; use one machine."
            )
        known = self._pictures
        self._pictures = {
            key: known.get(key) or encode_pictures(images, self.adapters) for key, images in wanted.items()
        }

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

    def expect(self, branches: Sequence[FluxBranch]) -> None:
        self._modulation.expected = list(dict.fromkeys(branches))

    @property
    def prompt_weight_bytes(self) -> int:
        return self._modulation.weight_bytes

    def keep_prompt_weights(self, keep: bool) -> None:
        self._modulation.layers.keep = keep

    def denoiser(self, branches: Sequence[FluxBranch], schedule: Schedule, settings: Settings) -> "Flux1Denoiser":
        tables, source = self._modulation.tables(branches, schedule.timesteps, settings.guidance)
        references = branches[0].references  # all branches show the same pictures
        conditions = [
            FluxCondition(
                branch.txt.astype(self.transformer.dtype),
                self._rope(branch.txt.shape[1], settings, references),
                table,
                [picture.astype(self.transformer.dtype) for picture in branch.attended],
            )
            for branch, table in zip(branches, tables, strict=True)
        ]
        latents = references.latents if references else None
        passes = {name: self._control_pass(name, branches[0], schedule, settings) for name in self.controls}
        controls = Controls(passes, schedule.steps)
        return Flux1Denoiser(self.transformer, conditions, settings.cfg, controls, latents, tables_source=source)

    def _control_pass(self, name: str, branch: FluxBranch, schedule: Schedule, settings: Settings) -> ControlPass:
        network, config = self._network(name), self.files.config
        (table,), _ = network.tables.tables([branch], schedule.timesteps, settings.guidance)
        rope = self._rope(branch.txt.shape[1] + bool(network.kinds), settings, None)
        return ControlPass(network, branch.txt, rope, table, (config.num_layers, config.num_single_layers))

    def _network(self, name: str) -> FluxControlNetwork:
        network = self.controls[name]
        assert isinstance(network, FluxControlNetwork)
        return network

    def open_control(self, name: str, folder: Path, transforms: WeightTransforms) -> ControlNetwork:
        return FluxControlNetwork(name, folder, self.files.config, transforms)

    def unpack(self, x: mx.array, settings: Settings) -> mx.array:
        return unpatchified(x, self.grid(settings), SIDE)

    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        decoder = self.components["vae_decoder"].load()
        pixels: mx.array = decoder.decode(self.unpack(x, settings))[0]
        return pixels

    def encode_image(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        encoded = self.encode_inputs(Inputs(picture), seed, settings)
        assert encoded.clean is not None
        return encoded.clean, encoded.noise

    def encode_inputs(self, inputs: Inputs, seed: int, settings: Settings) -> EncodedInputs:
        """From one stream, in diffusers' order: what is followed, the picture to start from, the noise, and last the
        picture with a hole."""
        stream = TorchGenerator(seed)
        if self.files.inputs is InputKind.CONTROL and inputs.mask is not None:
            stream.randn(self.shape(settings))  # of a picture with a hole, which diffusers samples first and never uses
        controls = [self._control_condition(control, stream) for control in inputs.controls]
        clean = None if inputs.image is None else self.latents(inputs.image, stream)
        noise, condition, mask = stream.randn(self.shape(settings)), None, None
        if self.files.inputs is InputKind.FILL:
            assert inputs.image is not None and inputs.mask is not None  # check_inputs refuses less
            hole = self.latents(inputs.image * (1 - inputs.mask[..., None]), stream)
            condition = hole_condition(hole, inputs.mask, self.files.vae_config.scale_factor)
        elif inputs.mask is not None:  # a model that is not shown the hole
            mask = sampled(inputs.mask, self.shape(settings)[2:])
        if self.files.inputs is InputKind.CONTROL:
            condition = controls.pop().condition
        mx.eval([each.condition for each in controls], [] if condition is None else condition)
        return EncodedInputs(noise, clean, mask, condition, tuple(controls))

    def _control_condition(self, control: ControlPicture, stream: TorchGenerator) -> EncodedControl:
        """Latents as tokens, or pixels for networks that read those."""
        if control.network is not None and self._network(control.network).reads_pixels:
            return EncodedControl(control, control.pixels[None])
        return EncodedControl(control, self.pack(self.latents(control.pixels, stream)))

    def check_inputs(self, inputs: Inputs) -> None:
        networks = [control.network for control in inputs.controls if control.network]
        if networks and (self.files.inputs is not InputKind.NONE or self.files.reference_sizes):
            raise RequestError(
                f"control: {networks[0]} goes with FLUX.1 dev and schnell, not with their relatives that are shown "
                "pictures themselves; choose flux-dev."
            )
        if self.files.inputs is InputKind.FILL and inputs.mask is None:
            raise RequestError(
                "FLUX.1 Fill draws a part of a picture; give image with mask, mask_box, expand or place."
            )
        if self.files.inputs is InputKind.CONTROL and len(inputs.controls) != 1:
            raise RequestError(
                f"FLUX.1 Depth and Canny follow one picture, {len(inputs.controls)} are given; give one as control."
            )
        if self.files.inputs is not InputKind.CONTROL:
            super().check_inputs(inputs)

    def latents(self, picture: mx.array, stream: TorchGenerator | None) -> mx.array:
        """Pixels [H, W, 3] in -1..1 -> [1, C, h, w] in the loop's scale: a sample, or without a stream the mode.
        Kontext takes modes alone."""
        mean, logvar = self.components["vae_encoder"].load().encode(picture[None])
        z = mean if stream is None or self.files.reference_sizes else sample(mean, logvar, stream)
        return normalized(z, self.files.vae_config)

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        adapters = {image.adapter for image in prompt.images}
        adapted = sum(self.adapters[name].prompt_tokens for name in adapters)
        return ReferenceTokens(adapted=adapted, image=sum(map(math.prod, self._reference_grids(prompt))))

    def _reference_grids(self, prompt: Prompt) -> list[Grid]:
        sizes, multiple = self.files.reference_sizes, self.size_multiple
        found = [reference_size(picture.size, sizes, multiple) for picture in prompt.references]
        return [(height // multiple, width // multiple) for width, height in found]

    def _encode_references(self, prompt: Prompt) -> EncodedReferences | None:
        if not prompt.references:
            return None
        grids, multiple = self._reference_grids(prompt), self.size_multiple
        pixels = [
            mx.array(to_pixels(picture, (columns * multiple, rows * multiple)) * 2 - 1)
            for picture, (rows, columns) in zip(prompt.references, grids, strict=True)
        ]
        latents = mx.concatenate([self.pack(self.latents(picture, None)) for picture in pixels], axis=1)
        mx.eval(latents)
        return EncodedReferences(latents, tuple(grids))

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

    @property
    def lora_widths(self) -> Mapping[str, tuple[int, ...]]:
        """Those for the plain models, and for a control picture next to the latents: it widens a plain model."""
        latents = SIDE**2 * self.files.vae_config.latent_channels
        return {INPUT: (latents, 2 * latents) if self.inputs_on_disk is not InputKind.FILL else (latents,)}

    def widen(self, columns: Mapping[str, int]) -> None:
        width = columns.get(INPUT, self.files.transformer.linears[INPUT][1])
        if width == self.files.config.in_channels:
            return
        config = self.files.config
        config = replace(config, in_channels=width, out_channels=config.out_channels or config.in_channels)
        inputs = self.inputs_on_disk if INPUT not in columns else InputKind.CONTROL
        self.files = replace(self.files, config=config, inputs=inputs)
        former = self.components["transformer"]
        former.release()
        self.components["transformer"] = self._transformer()
        self.components["transformer"].share(former.sharing)
        self.use_precision(former.dtype)

    def use_precision(self, dtype: mx.Dtype) -> None:
        super().use_precision(dtype)
        self._modulation.dtype = dtype

    def forget(self) -> None:
        self._modulation.forget()
        self._references.forget()
        self._pictures = {}
        for network in self.controls.values():
            network.forget()

    def _rope(self, text_length: int, settings: Settings, references: EncodedReferences | None) -> Rope:
        grids = references.grids if references else ()
        return rope(text_length, self.grid(settings), grids, self.files.config.axes_dims_rope)
