"""The contract: what a model family supplies.

A `Family` is an open model: it encodes prompts, draws noise, knows its schedule, makes the denoiser of a picture, and
decodes. It owns its components but never decides when they are in memory: the pipeline loads and releases them by
stage. A `Denoiser` gives the velocity of one picture's loop, and owns what that picture needs: position and modulation
tables, the prompt's keys and values, caches. What the registry must know before a model is open is the family's
`FamilySpec`.
Must not know: which families there are.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import mlx.core as mx
from PIL import Image

from ..errors import QuantizationError, RequestError
from ..folding import Fold
from ..hub.manifest import Manifest
from ..image import fingerprint
from ..layers.blocks import AfterFirstBlock, run_all
from ..layers.patches import Grid
from ..layers.rope import Rope
from ..layers.sharing import Sharing
from ..loading.component import Component
from ..loading.names import RowRange
from ..loading.weights import Weights, WeightTransforms
from ..masks import sampled
from ..precision import SOLVER_DTYPE
from ..random import TorchGenerator
from ..sampling import Schedule, Solver, euler
from . import FamilySpec, family_spec
from .controls import ControlNetwork, ControlPicture, EncodedControl, Tables, check_named
from .folder import DiffusersFolder
from .image_prompts import AdapterSource, ImageAdapter, ImagePrompt
from .step_cache import CacheRule, StepCache

Branch = TypeVar("Branch")
Value = TypeVar("Value")
# All branches' velocities, from a function that gives one branch's, by its place.
RunBranches = Callable[[Callable[[int], mx.array]], list[mx.array]]


@dataclass(frozen=True)
class Prompt:
    """What `encode` reads: the words, and the pictures they speak of."""

    text: str
    references: tuple[Image.Image, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()  # a family's own (layout boxes …), hashable
    images: tuple[ImagePrompt, ...] = ()  # what image adapters read

    @property
    def has_text(self) -> bool:
        """Whether a text encoder is read: pictures that stand in the prompt may be all of it."""
        return bool(self.text.strip()) or not any(image.adapter.in_prompt for image in self.images)

    @functools.cached_property
    def images_key(self) -> Hashable:
        """Equal where those pictures, their scales and adapters are."""
        return tuple(image.key for image in self.images)

    @functools.cached_property
    def references_key(self) -> Hashable:
        """Equal where references are: pictures count by their pixels."""
        return tuple(map(fingerprint, self.references)), self.options

    @property
    def key(self) -> Hashable:
        """Equal for prompts with the same encoding."""
        return self.text, self.references_key, self.images_key


@dataclass(frozen=True)
class ReferenceTokens:
    """What a prompt's pictures add to the sequence."""

    prompt: int = 0  # where the prompt shows them
    image: int = 0  # next to the picture's own, in every step
    prefix: int = 0  # before the picture, beyond those of the prompt: their keys and values are computed once
    adapted: int = 0  # after the prompt's, in the denoiser alone


@dataclass(frozen=True)
class EncodedReferences:
    """Reference pictures, as the transformer takes them and as the prompt shows them."""

    tokens: mx.array | None = None  # one picture after another: [1, R, C]
    grids: tuple[Grid, ...] = ()  # of those
    features: Any = None  # that stand in the prompt
    shown: tuple[Grid, ...] = ()  # of those


@dataclass(frozen=True)
class Inputs:
    """The pictures that one picture starts from, at its size."""

    image: mx.array | None = None  # [H, W, 3], or 4 with alpha, in -1..1
    mask: mx.array | None = None  # [H, W], 1 where it is drawn and 0 where the image is kept; None: all is drawn
    is_reference: bool = False  # the image also is the prompt's one reference
    controls: tuple[ControlPicture, ...] = ()


@dataclass(frozen=True)
class EncodedInputs:
    """A picture's noise and what is known of it, as `Family.shape` has it."""

    noise: mx.array
    clean: mx.array | None = None  # the picture to start from
    mask: mx.array | None = None  # [h, w], where the loop draws; None: everywhere
    condition: Any = None  # for the denoiser's `start_picture`
    controls: tuple[EncodedControl, ...] = ()  # what control networks read, for the same


@dataclass(frozen=True)
class Settings:
    """The numbers of one picture that a family may need; every one resolved, none left to a default."""

    width: int
    height: int
    steps: int
    guidance: float
    cfg: float = 1.0  # the scale between two branches
    extras: dict[str, Any] = field(default_factory=dict)  # what the manifest or the caller gave for this family alone
    guided: tuple[float, float] = (0.0, 1.0)  # from which share of the steps to which a second branch runs
    cache: CacheRule | None = None  # by which steps are predicted; None: all are computed


class LastValueCache:
    """The last value that was made, kept for whoever needs the same again."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Any] | None = None

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """`key`: all that the value is made from."""
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # before the next one is made: it may be large
            self._kept = key, make()
        value: Value = self._kept[1]
        return value

    def forget(self) -> None:
        self._kept = None


@dataclass(frozen=True, eq=False)  # a key by itself, not by its numbers
class TextBranch:
    """What a denoiser reads of a prompt, where that is text and pictures."""

    txt: mx.array  # [1, T, D]
    references: EncodedReferences = EncodedReferences()


@dataclass(frozen=True)
class Condition:
    """One branch, as a transformer with text tokens takes it at every step."""

    txt: mx.array  # [1, T, D]
    rope: Rope


def apply_cfg(wanted: mx.array, unwanted: mx.array, scale: float) -> mx.array:
    """From the unwanted velocity through the wanted one, `scale` times as far."""
    return unwanted + scale * (wanted - unwanted)


def cut_notes(cut: str, length: int) -> list[str]:
    """For the user: the end of the prompt that did not fit into `length` tokens."""
    return [f"the prompt is longer than {length} tokens; cut off: '{cut}'"] if cut else []


def with_references(x: mx.array, references: mx.array | None) -> tuple[mx.array, int]:
    """The picture's tokens with reference pictures' after them, [1, L + R, C], and R."""
    if references is None:
        return x, 0
    return mx.concatenate([x, references.astype(x.dtype)], axis=1), references.shape[1]


@dataclass(eq=False)
class Denoiser(ABC, Generic[Branch]):
    """The velocity of a picture's loop, from one branch or several: the prompt's first, then the unwanted ones.

    It is made from branches, schedule and settings, and kept for the next seed of the same prompt: `start_picture`
    drops what belongs to one picture alone. All it keeps is evaluated: a lazy array belongs to the thread that made it.
    """

    transformer: Component
    branches: Sequence[Branch]
    cfg: float
    # Where its modulation tables came from, if it has some, for the report.
    tables_source: str | None = field(default=None, kw_only=True)
    step_cache: StepCache | None = field(default=None, init=False)
    run_branches: RunBranches | None = field(default=None, init=False)  # None: here, one after the other
    _guided_steps: range | None = field(default=None, init=False)  # None: all

    def take_shortcuts(self, settings: Settings, steps: int) -> None:
        """What the settings ask for; `steps`: of the loop."""
        if settings.guided != (0, 1):
            start, stop = (round(share * steps) for share in settings.guided)
            start = min(start, steps - 1)
            self._guided_steps = range(start, max(start + 1, stop))
        self.step_cache = None if settings.cache is None else StepCache(settings.cache, steps)

    def is_guided(self, index: int) -> bool:
        """Whether more than the prompt's branch runs at this step."""
        return len(self.branches) > 1 and (self._guided_steps is None or index in self._guided_steps)

    def after_first_block(self, index: int, branch: Branch | None = None) -> AfterFirstBlock:
        """For the transformer at this step; `branch`: where they run one by one."""
        if self.step_cache is None:
            return run_all
        places = [place for place, each in enumerate(self.branches) if each is branch]
        begins = self._guided_steps is not None and index == self._guided_steps.start
        return self.step_cache.at(index, places[0] if places else 0, computed=begins)

    @abstractmethod
    def branch_velocity(self, x: mx.array, index: int, branch: Branch) -> mx.array:
        """dx/dsigma at step `index` for one branch alone; x in the loop's layout."""

    def velocity(self, x: mx.array, index: int) -> mx.array:
        """dx/dsigma at step `index`: the one branch's, or the branches' combined, in float32: the scale between them
        would make bf16's rounding larger."""
        if not self.is_guided(index):
            return self.branch_velocity(x, index, self.branches[0])
        if self.run_branches is None:
            return self.combine(self.branch_velocities(x, index))
        return self.combine(
            self.run_branches(lambda place: self.branch_velocity(x, index, self.branches[place]).astype(SOLVER_DTYPE))
        )

    def branch_velocities(self, x: mx.array, index: int) -> list[mx.array]:
        """Of every branch, one after the other."""
        velocities = []
        for branch in self.branches:
            velocities.append(self.branch_velocity(x, index, branch).astype(SOLVER_DTYPE))
            mx.eval(velocities[-1])  # now, so that the next branch's activations take the room of this one's
        return velocities

    def combine(self, velocities: Sequence[mx.array]) -> mx.array:
        wanted, unwanted = velocities
        return apply_cfg(wanted, unwanted, self.cfg)

    def start_picture(self, condition: Any = None, controls: Sequence[EncodedControl] = ()) -> None:
        """A new picture begins, with another seed; condition and controls are what `Family.encode_inputs` made for
        it."""

    def choices(self) -> dict[str, str]:
        """What was chosen while it was made, and why, for the report."""
        return {} if self.tables_source is None else {"modulation": self.tables_source}

    def end_picture(self) -> dict[str, str]:
        """Drops what one picture's steps have kept; what its shortcuts did, for the report."""
        if self.step_cache is None:
            return {}
        summary = self.step_cache.summary()
        self.step_cache.forget()
        return {"step cache": summary}


class Family(ABC, Generic[Branch]):
    name: ClassVar[str]  # the registry's
    # The components that each stage needs in memory: encode, denoise, decode, encode_image; "references" (with encode,
    # where a prompt has some) and "prepare" (the making of a denoiser) only where they need whole components;
    # "adapters" (before encode) where a request has image adapters.
    stages: dict[str, tuple[str, ...]]
    components: dict[str, Component]
    # Why no table for one schedule could stand in the place of its modulation's layers, where `fold` gives none.
    unfoldable: ClassVar[str] = "it has no modulation layers in whose place a table could stand"
    prefix_has_text: ClassVar[bool] = True  # or the text passes in every step, and references alone are kept
    controls: Mapping[str, ControlNetwork] = MappingProxyType({})  # those of the request that lasts, by name
    adapters: Mapping[AdapterSource, ImageAdapter[Any]] = MappingProxyType({})  # of the same request
    sharing: Sharing | None = None  # of layers over several machines
    modulation: Tables | None = None  # for a schedule

    def __init__(self, components: dict[str, Component]):
        self.components = components
        self._references = LastValueCache()  # encoded, the same for all branches

    # What a family must supply, in the order in which the pipeline asks for it.

    @staticmethod
    @abstractmethod
    def open_files(folder: DiffusersFolder) -> Any:
        """Reads configs and headers, checks that everything fits; loads no weights. What the class is made from."""

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Width and height must be multiples of this many pixels: the side of one token."""

    @abstractmethod
    def encode(self, prompt: Prompt, settings: Settings) -> tuple[Branch, list[str]]:
        """A branch, evaluated, and notes for the user (what was cut off)."""

    @abstractmethod
    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        """[1, C, h, w]: of the noise, of a clean picture, and of what `pack` takes. Where several are drawn together
        (`frames`), there are as many."""

    @abstractmethod
    def pack(self, x: mx.array) -> mx.array:
        """[frames, C, h, w] -> the loop's layout, [1, tokens, values]."""

    @abstractmethod
    def schedule(self, settings: Settings) -> Schedule: ...

    @abstractmethod
    def denoiser(self, branches: Sequence[Branch], schedule: Schedule, settings: Settings) -> Denoiser[Any]:
        """For pictures of these prompts: what the whole loop shares is computed here, once."""

    @abstractmethod
    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        """The loop's x -> pixels [H, W, 3] in -1..1, or a little outside; [H, W, 4] with alpha; [N, H, W, 4] where the
        picture comes in layers, the lowest first."""

    @abstractmethod
    def encode_image(self, picture: mx.array, stream: TorchGenerator | None = None) -> mx.array:
        """Pixels [H, W, 3] in -1..1, or 4 with alpha where the model takes it -> the clean picture as `shape` has it:
        of an autoencoder's posterior a sample, or without a stream the mode."""

    # What a family may have otherwise.

    def unpack(self, x: mx.array, settings: Settings) -> mx.array | None:
        """The loop's layout -> latents [frames, C, h, w], the picture put together first; None where a decode is no
        work, for there are no latents."""
        return None

    def stream(self, seed: int) -> TorchGenerator:
        """Of unit normals, equal to the reference's for this seed."""
        return TorchGenerator(seed)

    def encode_inputs(self, inputs: Inputs, stream: TorchGenerator, settings: Settings) -> EncodedInputs:
        """Of one picture, in the order in which diffusers draws from the seed's stream: what is followed, the picture
        to start from, the noise. Where a control network is shown the hole, nothing has to be kept in the loop."""
        controls = tuple(EncodedControl(each, self.encode_control(each, inputs, stream)) for each in inputs.controls)
        mx.eval([each.condition for each in controls])
        networks = [self.controls[each.network] for each in inputs.controls if each.network is not None]
        filled = inputs.mask is not None and any(network.fills for network in networks)
        clean = None if inputs.image is None or filled else self.encode_image(inputs.image, stream)
        noise = stream.randn(self.shape(settings))
        mask = None if inputs.mask is None or filled else self.latent_mask(inputs.mask, settings)
        return EncodedInputs(noise, clean, mask, controls=controls)

    def encode_control(self, control: ControlPicture, inputs: Inputs, stream: TorchGenerator) -> mx.array:
        """As its network reads it: tokens [1, L, C]."""
        return self.pack(self.encode_image(control.pixels, stream))

    def latent_mask(self, mask: mx.array, settings: Settings) -> mx.array:
        """[H, W] -> [h, w]"""
        return sampled(mask, self.shape(settings)[2:])

    def start(self, x: mx.array, settings: Settings) -> mx.array:
        """Packed unit normals -> the loop's x at sigma 1."""
        return x

    def solver(
        self, schedule: Schedule, seed: int, settings: Settings, step_noise: Sequence[mx.array] | None = None
    ) -> Solver:
        """`step_noise`: unit normals as `shape` has it, one a step, for samplers that draw them."""
        return euler(schedule)

    def check_inputs(self, inputs: Inputs) -> None:
        """Raises for pictures that this model cannot be given, and for those that it cannot do without."""
        check_named([control.network for control in inputs.controls], self.spec.title)

    def open_control(self, name: str, folder: Path, transforms: WeightTransforms) -> ControlNetwork:
        """A control network's files, checked by names and shapes; loads no weights."""
        raise RequestError(f"control: {self.spec.title} takes no control networks; leave it out.")

    def select_controls(self, networks: Mapping[str, ControlNetwork]) -> None:
        """Makes these networks a part of the denoise stage, in place of the former."""
        former = {network.component_name for network in self.controls.values()}
        self.controls = dict(networks)
        chosen = {network.component_name: network.component for network in networks.values()}
        own = tuple(name for name in self.stages["denoise"] if name not in former)
        self._exchange("denoise", former, chosen, own)

    def open_adapter(self, source: AdapterSource, folder: Path) -> ImageAdapter[Any]:
        """An image adapter's files, checked by names and shapes; loads no weights."""
        raise RequestError(f"{source.parameter}: {self.spec.title} takes no image adapters; leave it out.")

    def select_adapters(self, adapters: Mapping[AdapterSource, ImageAdapter[Any]]) -> None:
        """Makes these adapters the stage in which image prompts are encoded, in place of the former."""
        former = {name for adapter in self.adapters.values() for name in adapter.components}
        self.adapters = dict(adapters)
        chosen = {name: part for adapter in adapters.values() for name, part in adapter.components.items()}
        self._exchange("adapters", former, chosen)

    def _exchange(
        self, stage: str, former: Iterable[str], chosen: Mapping[str, Component], own: tuple[str, ...] = ()
    ) -> None:
        for name in former:
            self.components.pop(name).release()
        self.components |= chosen
        self.stages = self.stages | {stage: (*own, *chosen)}

    def encode_images(self, prompts: Sequence[Prompt]) -> None:
        """Encodes what these prompts' adapters read, for `encode`; forgets what others made."""

    def sharing_refusal(self, sharing: Sharing) -> str | None:
        """Why the denoiser's layers cannot be shared out over machines so; None where they can."""
        if not self.transformer.cuts:
            return "the family does not say how they could be cut"
        refused = (self.components[name].sharing_refusal(sharing) for name in self.stages["denoise"])
        return next(filter(None, refused), None)

    def check_sharing(self, sharing: Sharing) -> None:
        if reason := self.sharing_refusal(sharing):
            raise RequestError(
                f"{self.spec.title}: its layers cannot be shared out over {len(sharing.parts)} machines, for {reason}; "
                "use fewer machines, or share out pictures."
            )

    def use_precision(self, dtype: mx.Dtype) -> None:
        """Of the denoiser's weights and activations; before anything is loaded."""
        self.transformer.dtype = dtype

    def share_layers(self, sharing: Sharing | None) -> None:
        """Makes the components hold this machine's part of their layers from now on; None: all of them. Of others than
        the denoiser, those of which the machines are too many stay complete on each."""
        self.sharing = sharing
        for component in self.components.values():
            possible = sharing is not None and component.cuts and component.sharing_refusal(sharing) is None
            component.share(sharing if possible else None)

    def expect(self, branches: Sequence[Branch]) -> None:
        """The prompts of the request that begins, in order: what reads weights for one may do so for several."""

    @property
    def prompt_weight_bytes(self) -> int:
        """Of the weights that `denoiser` reads for every new prompt, and may keep."""
        return 0

    def keep_prompt_weights(self, keep: bool) -> None:
        """Whether those stay in memory from now on."""

    def forget(self) -> None:
        """Drops what it keeps between pictures: the weights that it was made with have changed."""
        tables = [self.modulation, *(network.modulation for network in self.controls.values())]
        for kept in (self._references, *filter(None, tables)):
            kept.forget()

    # What plans, reports and other commands ask.

    def grid(self, settings: Settings) -> Grid:
        """The picture's rows and columns in tokens."""
        return settings.height // self.size_multiple, settings.width // self.size_multiple

    def frames(self, settings: Settings) -> int:
        """How many pictures of that grid are drawn together: one, or with its layers."""
        return 1

    @property
    def seam_pixels(self) -> int | None:
        """The distance of the borders at which a picture is put together from patches; None where there are none."""
        return None

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        """By the pictures' sizes alone: nothing is encoded."""
        return ReferenceTokens()

    def reference_pixels(self, prompt: Prompt, settings: Settings) -> int:
        """Of the largest reference that `encode` puts through the autoencoder; 0 where it puts none."""
        if not any("vae_encoder" in self.stages[stage] for stage in self.encode_stages([prompt])):
            return 0
        alone = (replace(prompt, references=(picture,)) for picture in prompt.references)
        added = [self.reference_tokens(each, settings) for each in alone]
        return max((each.image + each.prefix for each in added), default=0) * self.size_multiple**2

    @property
    def prefix_values(self) -> int:
        """How many numbers a denoiser keeps for each token that stands before the picture: its keys and values in all
        blocks; 0 where it keeps none."""
        return 0

    @property
    def vision_param_count(self) -> int:
        """Of a vision tower that `encode` loads for references and releases itself; 0 where it is a component."""
        return 0

    def fold(self, settings: Settings) -> Fold:
        """What the checkpoint becomes for the schedule of `settings` alone."""
        raise QuantizationError(f"--fold does not apply to {self.spec.title}: {self.unfoldable}; leave --fold out.")

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        """What LoRAs call a component's modules in other words than ours -> our modules."""
        return {}

    @property
    def lora_widths(self) -> Mapping[str, tuple[int, ...]]:
        """By linear layer of the denoiser: other widths of its input that LoRAs are made for. A wider one than the
        layer's is made room for with `widen`."""
        return {}

    def widen(self, columns: Mapping[str, int]) -> None:
        """Gives these layers of the denoiser an input of so many columns, the new ones zero; all others have theirs
        from the files."""

    def lora_notes(self, manifest: Manifest, names: Sequence[str]) -> list[str]:
        """What the names of LoRA files say that their tensors do not."""
        return []

    # What follows from the above.

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "Family[Any]":
        return cls(cls.open_files(DiffusersFolder(folder, manifest, transforms)))

    def describe(self, prompt: Prompt, settings: Settings, on_token: Callable[[int], None] | None = None) -> str:
        """Words for a prompt that has none, of a model that needs some: what its reference shows."""
        raise RequestError(f"the prompt is empty; {self.spec.title} describes no pictures: say what is to be drawn.")

    def encode_stages(self, prompts: Iterable[Prompt]) -> tuple[str, ...]:
        """The stages whose components these prompts need."""
        shown = "references" in self.stages and any(prompt.references for prompt in prompts)
        return ("encode", "references") if shown else ("encode",)

    @property
    def spec(self) -> FamilySpec:
        return family_spec(self.name)

    @property
    def transformer(self) -> Component:
        """The denoiser's component, whose linear layers a step runs through."""
        return self.components[self.stages["denoise"][0]]

    @property
    def weights(self) -> dict[str, Weights]:
        """The model's checkpoints that the components are read from, each once."""
        added = {network.component_name for network in self.controls.values()}
        added |= {name for adapter in self.adapters.values() for name in adapter.components}
        own = (component.weights for name, component in self.components.items() if name not in added)
        return {weights.component: weights for weights in own}
