"""The contract: what a model family supplies, and nothing else.

A family turns prompts into branches, draws noise, knows its schedule, gives the velocity, and decodes. It owns its
components but never decides when they are in memory: the pipeline loads and releases them by stage.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import mlx.core as mx
from PIL import Image

from ..errors import QuantizationError
from ..folding import Fold
from ..hub.manifest import Manifest
from ..image import fingerprint
from ..layers.patches import Grid
from ..loading.component import Component
from ..loading.names import RowRange
from ..loading.weights import Weights, WeightTransforms
from ..precision import SOLVER_DTYPE
from ..random import TorchGenerator
from ..sampling import Schedule, Solver, euler

Branch = TypeVar("Branch")
Made = TypeVar("Made")
Mix = Callable[[mx.array, mx.array, float], mx.array]  # (wanted, unwanted velocity, scale) -> velocity


@dataclass(frozen=True)
class Prompt:
    """What `encode` reads: the words, and the pictures they speak of."""

    text: str
    references: tuple[Image.Image, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()  # a family's own (layout boxes …), hashable

    @functools.cached_property
    def shown(self) -> Hashable:
        """Equal where references are: pictures count by their pixels."""
        return tuple(map(fingerprint, self.references)), self.options

    @property
    def key(self) -> Hashable:
        """Equal for prompts that encode alike."""
        return self.text, self.shown


@dataclass(frozen=True)
class ReferenceTokens:
    """What a prompt's reference pictures add to the sequence."""

    prompt: int = 0  # where the prompt shows them
    image: int = 0  # beside the picture's own, in every step


class LastValueCache(Generic[Made]):
    """The last thing that was made, kept for whoever needs the same again."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Made] | None = None

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """`key`: all that it is made from."""
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # before the next one is made: it may be large
            self._kept = key, make()
        return self._kept[1]

    def forget(self) -> None:
        self._kept = None


def apply_cfg(wanted: mx.array, unwanted: mx.array, scale: float) -> mx.array:
    """From the unwanted velocity towards the wanted one, and beyond."""
    return unwanted + scale * (wanted - unwanted)


@dataclass(frozen=True)
class Conditioning(Generic[Branch]):
    """All that steers the loop. `negative` is there only when a second branch really runs."""

    positive: Branch
    negative: Branch | None = None
    cfg: float = field(default=1.0, kw_only=True)  # the scale between the two branches

    def guided(self, velocity: Callable[[Branch], mx.array], mix: Mix = apply_cfg) -> mx.array:
        """One branch's velocity, or both branches' mixed, in float32: the scale makes bf16's rounding larger."""
        wanted = velocity(self.positive)
        if self.negative is None:
            return wanted
        mx.eval(wanted)  # now, so that the second branch's activations take the room of the first one's
        return mix(wanted.astype(SOLVER_DTYPE), velocity(self.negative).astype(SOLVER_DTYPE), self.cfg)


@dataclass(frozen=True)
class Settings:
    """The numbers of one picture that a family may need; every one resolved, none left to a default."""

    width: int
    height: int
    steps: int
    guidance: float
    cfg: float = 1.0
    extras: dict[str, Any] = field(default_factory=dict)  # what the manifest or the caller gave for this family alone


class Family(ABC, Generic[Branch]):
    name: ClassVar[str]
    # What each stage needs in memory: encode, denoise, decode, look; "prepare" only where it needs whole components.
    stages: dict[str, tuple[str, ...]]
    # How LoRA keys say that they are for another component than the denoising loop's: prefix -> component.
    lora_prefixes: ClassVar[Mapping[str, str]] = {}

    components: dict[str, Component]

    @property
    def weights(self) -> dict[str, Weights]:
        """The checkpoints that the components are read from, each once."""
        return {component.weights.component: component.weights for component in self.components.values()}

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, manifest: Manifest, changes: WeightTransforms) -> "Family[Any]":
        """Reads configs and headers, checks that everything fits; loads no weights."""

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Width and height must be multiples of this many pixels: the side of one token."""

    def grid(self, settings: Settings) -> Grid:
        """The picture's rows and columns in tokens."""
        return settings.height // self.size_multiple, settings.width // self.size_multiple

    @property
    def seam_pixels(self) -> int | None:
        """The distance of the borders at which a picture is put together from patches; None where there are none."""
        return None

    @abstractmethod
    def encode(self, prompt: Prompt, settings: Settings) -> tuple[Branch, list[str]]:
        """A branch, and notes for the user (what was cut off)."""

    @abstractmethod
    def shape(self, settings: Settings) -> tuple[int, int, int, int]:
        """[1, C, h, w]: of the noise, of a clean picture, and of what `pack` takes."""

    def noise(self, seed: int, settings: Settings) -> mx.array:
        """Unit normals, equal to the reference's for this seed."""
        return TorchGenerator(seed).randn(self.shape(settings))

    @abstractmethod
    def pack(self, x: mx.array) -> mx.array:
        """[1, C, h, w] -> the loop's layout, [1, tokens, values]."""

    @abstractmethod
    def schedule(self, settings: Settings) -> Schedule: ...

    @abstractmethod
    def prepare(self, branches: Sequence[Branch], schedule: Schedule, settings: Settings) -> list[Branch]:
        """What the whole loop shares, computed once: modulation tables, rope, prefix K/V."""

    @abstractmethod
    def velocity(self, x: mx.array, index: int, conditioning: Conditioning[Branch]) -> mx.array:
        """dx/dsigma at step `index`; x in the loop's layout."""

    @abstractmethod
    def decode(self, x: mx.array, settings: Settings) -> mx.array:
        """The loop's x -> pixels [H, W, 3] in -1..1, or a little beyond."""

    @abstractmethod
    def look(self, picture: mx.array, seed: int, settings: Settings) -> tuple[mx.array, mx.array]:
        """Pixels [H, W, 3] in -1..1 -> the clean picture as `shape` has it, and the noise for it (where seeing it draws
        from the seed's stream, that is another than `noise` gives), for starting from a picture."""

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        """By the pictures' sizes alone: nothing is seen."""
        return ReferenceTokens()

    @property
    def eyes(self) -> int:
        """How many numbers are in what `encode` loads to see references and lets go itself; 0 where components do."""
        return 0

    def choices(self) -> dict[str, str]:
        """What `prepare` chose, for the report."""
        return {}

    def fold(self, settings: Settings) -> Fold:
        """What the checkpoint becomes for the schedule of `settings` alone."""
        raise QuantizationError(
            f"--fold: the family {self.name} has no modulation layers in whose place a table could stand; leave it out."
        )

    def lora_notes(self, manifest: Manifest, names: Sequence[str]) -> list[str]:
        """What the names of LoRA files tell that their tensors do not."""
        return []

    def forget(self) -> None:
        """Drops what it keeps between pictures: the weights that it was made with have changed."""

    def start(self, x: mx.array, settings: Settings) -> mx.array:
        """Packed unit normals -> the loop's x at sigma 1."""
        return x

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        """What LoRAs call a component's modules in other words than ours -> our modules."""
        return {}

    def solver(
        self, schedule: Schedule, seed: int, settings: Settings, step_noise: Sequence[mx.array] | None = None
    ) -> Solver:
        """`step_noise`: unit normals as `shape` has it, one a step, for samplers that draw them."""
        return euler(schedule)
