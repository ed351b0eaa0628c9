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

from ...autoencoders.kl import Decoder, Encoder
from ...errors import RequestError
from ...image import resized
from ...layers.patches import Grid
from ...layers.rope import Rope
from ...loading.component import Component
from ...loading.weights import WeightTransforms
from ...precision import compute_dtype
from ...random import TorchGenerator
from ...sampling import Schedule
from ...text.clip import ClipTextModel
from ...text.t5 import T5Encoder
from ...text.t5 import cuts as t5_cuts
from ...text.tokenizer import Tokenizer, clip_tokenizer, t5_tokenizer
from ..base import EncodedInputs, EncodedReferences, Inputs, Prompt, ReferenceTokens, Settings
from ..controls import ControlNetwork, ControlPicture, Controls
from ..image_prompts import AdapterSource, ImageAdapter, encode_by_adapter
from ..latents import LatentFamily, autoencoder
from .control import ControlPass, FluxControlNetwork
from .denoiser import Flux1Denoiser, FluxCondition
from .files import CLIP_TABLE, T5_TABLE, FluxFiles, open_files
from .inputs import SIDE, InputKind, hole_condition
from .ip_adapter import FluxIpAdapter
from .keys import lora_names
from .modulation import PromptTables
from .positions import rope
from .prompts import FluxBranch, PromptPictures
from .redux import FluxRedux
from .references import reference_size
from .transformer import FluxTransformer, cuts

INPUT = "x_embedder"  # the layer that reads the latents and what is next to them


class Flux1(LatentFamily[FluxBranch]):
    name = "flux1"
    files: FluxFiles
    modulation: PromptTables
    controls: Mapping[str, FluxControlNetwork]
    open_files = staticmethod(open_files)
    lora_names = staticmethod(lora_names)
    stages = LatentFamily.stages | {"encode": ("text_encoder", "text_encoder_2")}
    # SiLU stands between the sum of time, guidance and pooled prompt and the layers that read it, so that their outputs
    # are no sum: nothing that depends on the schedule alone is left to be tabulated but 0.2% of the weights.
    unfoldable = (
        "its modulation depends on the prompt (CLIP's vector) and on guidance as well as on the schedule, so that no "
        "table made beforehand could take its place; the weights are read once a prompt, before the loop, and do not "
        "stay in memory"
    )

    def __init__(self, files: FluxFiles):
        self.files = files
        self.modulation = PromptTables(files.config, files.transformer)
        dtype, clip, t5, vae = compute_dtype(), files.clip_config, files.t5_config, files.vae_config
        components = {
            "text_encoder": Component(files.clip, lambda: ClipTextModel(clip), dtype, heads=clip.num_attention_heads),
            "text_encoder_2": Component(files.t5, lambda: T5Encoder(t5), dtype, heads=t5.num_heads, cuts=t5_cuts(t5)),
            "transformer": self._transformer(),
            **autoencoder(files.vae, vae, Decoder, Encoder, ("decoder", "encoder")),
        }
        super().__init__(components, vae.latent_channels, SIDE, vae.scale_factor)
        if files.reference_sizes:
            self.stages = Flux1.stages | {"encode": (*Flux1.stages["encode"], "vae_encoder")}
        self.inputs_on_disk = files.inputs  # whatever a LoRA makes of them
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

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[FluxBranch, list[str]]:
        length = settings.extras["max_sequence_length"]
        (txt, pooled), notes = (
            self._encode_text(prompt.text, length) if prompt.has_text else (self._no_text(length), [])
        )
        pictures = self._pictures.get(prompt.images_key, ())
        for each in pictures:
            txt, pooled = each.after(txt, pooled)
        mx.eval(txt, pooled)
        references = self._references.get(prompt.references_key, lambda: self._encode_references(prompt))
        attended = tuple(itertools.chain(*(each.attended for each in pictures)))
        return FluxBranch(txt=txt, references=references, pooled=pooled, attended=attended), notes

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
        return super().encode_stages(prompts) if any(prompt.has_text or prompt.references for prompt in prompts) else ()

    def open_adapter(self, source: AdapterSource, folder: Path) -> ImageAdapter[PromptPictures]:
        kind = FluxRedux if source.in_prompt else FluxIpAdapter
        return kind(source.name, folder, self.files.config)

    def encode_images(self, prompts: Sequence[Prompt]) -> None:
        wanted = {prompt.images_key: prompt.images for prompt in prompts}
        if self.sharing and not all(image.adapter.in_prompt for images in wanted.values() for image in images):
            raise RequestError(
                "ip_adapter: its keys are of all heads, and layers shared out have a part; use one machine."
            )
        known = self._pictures
        self._pictures = {
            key: known.get(key) or encode_by_adapter(images, self.adapters) for key, images in wanted.items()
        }

    @functools.cached_property
    def _clip_tokenizer(self) -> Tokenizer:
        return clip_tokenizer(self.files.tokenizer)

    @functools.cached_property
    def _t5_tokenizer(self) -> Tokenizer:
        """Its words take half a second to read, as all large vocabularies do."""
        return t5_tokenizer(self.files.tokenizer_2)

    def expect(self, branches: Sequence[FluxBranch]) -> None:
        self.modulation.expected = list(dict.fromkeys(branches))

    @property
    def prompt_weight_bytes(self) -> int:
        return self.modulation.weight_bytes

    def keep_prompt_weights(self, keep: bool) -> None:
        self.modulation.layers.keep = keep

    def denoiser(self, branches: Sequence[FluxBranch], schedule: Schedule, settings: Settings) -> "Flux1Denoiser":
        tables, source = self.modulation.tables(branches, schedule.timesteps, settings.guidance)
        references = branches[0].references  # all branches show the same pictures
        conditions = [
            FluxCondition(
                branch.txt.astype(self.transformer.dtype),
                self._rope(branch.txt.shape[1], settings, references.grids),
                table,
                [picture.astype(self.transformer.dtype) for picture in branch.attended],
            )
            for branch, table in zip(branches, tables, strict=True)
        ]
        passes = {name: self._control_pass(name, branches[0], schedule, settings) for name in self.controls}
        controls = Controls(passes, schedule.steps)
        return Flux1Denoiser(
            self.transformer, conditions, settings.cfg, controls, references.tokens, tables_source=source
        )

    def _control_pass(self, name: str, branch: FluxBranch, schedule: Schedule, settings: Settings) -> ControlPass:
        network, config = self.controls[name], self.files.config
        (table,), _ = network.modulation.tables([branch], schedule.timesteps, settings.guidance)
        rope = self._rope(branch.txt.shape[1] + bool(network.kinds), settings)
        return ControlPass(network, branch.txt, rope, table, (config.num_layers, config.num_single_layers))

    def open_control(self, name: str, folder: Path, transforms: WeightTransforms) -> ControlNetwork:
        return FluxControlNetwork(name, folder, self.files.config, transforms)

    def encode_image(self, picture: mx.array, stream: TorchGenerator | None = None) -> mx.array:
        """Kontext takes modes alone."""
        return super().encode_image(picture, None if self.files.reference_sizes else stream)

    def encode_inputs(self, inputs: Inputs, stream: TorchGenerator, settings: Settings) -> EncodedInputs:
        """Control and Fill are shown a picture in further channels, and Fill draws its sample last."""
        kind, mask = self.files.inputs, inputs.mask
        if kind is InputKind.CONTROL and mask is not None:
            stream.randn(self.shape(settings))  # of a picture with a hole, which diffusers samples first and never uses
        encoded = super().encode_inputs(inputs, stream, settings)
        if kind is InputKind.CONTROL:
            return replace(encoded, condition=encoded.controls[0].condition, controls=())
        if kind is InputKind.FILL:
            assert inputs.image is not None and mask is not None  # check_inputs refuses less
            hole = self.encode_image(inputs.image * (1 - mask[..., None]), stream)
            condition = hole_condition(hole, mask, self.files.vae_config.scale_factor)
            mx.eval(condition)
            return replace(encoded, condition=condition, mask=None)
        return encoded

    def encode_control(self, control: ControlPicture, inputs: Inputs, stream: TorchGenerator) -> mx.array:
        """Latents as tokens, or pixels for networks that read those."""
        if control.network is not None and self.controls[control.network].reads_pixels:
            return control.pixels[None]
        return super().encode_control(control, inputs, stream)

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

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        adapters = {image.adapter for image in prompt.images}
        adapted = sum(self.adapters[name].prompt_tokens for name in adapters)
        pixels = sum(map(math.prod, self._reference_sizes(prompt)))
        return ReferenceTokens(adapted=adapted, image=pixels // self.size_multiple**2)

    def _reference_sizes(self, prompt: Prompt) -> list[tuple[int, int]]:
        sizes, multiple = self.files.reference_sizes, self.size_multiple
        return [reference_size(picture.size, sizes, multiple) for picture in prompt.references]

    def _encode_references(self, prompt: Prompt) -> EncodedReferences:
        pairs = zip(prompt.references, self._reference_sizes(prompt), strict=True)
        return self.encode_pictures([resized(picture, size) for picture, size in pairs])

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
        self.modulation.dtype = dtype

    def forget(self) -> None:
        super().forget()
        self._pictures = {}

    def _rope(self, text_length: int, settings: Settings, references: Sequence[Grid] = ()) -> Rope:
        return rope(text_length, self.grid(settings), references, self.files.config.axes_dims_rope)
