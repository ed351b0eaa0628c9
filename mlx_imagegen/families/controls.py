"""Control networks: second checkpoints that run next to a denoiser and add to what its blocks make.

In: pictures to follow, each with its network, strength and share of the steps. Out: the contract that a family's
networks meet, and how their few outputs are spread over the denoiser's many blocks.
Must not know: any family's layers, requests, where networks are found.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import ConfigError, RequestError
from ..hub.single_files import components_in
from ..loading.checkpoint import open_checkpoint
from ..loading.component import Component
from ..loading.config import read_json
from ..loading.names import Rename, same_names
from ..loading.single_file import NETWORK
from ..loading.tensors import name_tensors
from ..loading.weights import WeightTransforms, check_tensors
from ..precision import compute_dtype

Residuals_co = TypeVar("Residuals_co", covariant=True)
EDGES = "canny"  # the kind that every network may be given: of a photo, it asks for its edges


@dataclass(frozen=True)
class ControlPicture:
    """A picture that the model follows."""

    pixels: mx.array  # [H, W, 3] in -1..1
    network: str | None = None  # by its name; None: the model itself follows it
    strength: float = 1.0
    kind: str | None = None  # of the picture, for networks that are told
    start: float = 0.0  # shares of the steps between which it is followed
    end: float = 1.0

    def strength_at(self, index: int, steps: int) -> float:
        """In step `index`: 0 where any part of the step is outside the window, as in diffusers."""
        inside = self.start <= index / steps and (index + 1) / steps <= self.end
        return self.strength if inside else 0.0


@dataclass(frozen=True)
class EncodedControl:
    """A picture as its network reads it."""

    picture: ControlPicture
    condition: mx.array


def check_named(networks: Iterable[str | None], title: str) -> None:
    """Raises for a picture without a network, where the model `title` follows none itself."""
    if any(network is None for network in networks):
        raise RequestError(
            f"control: {title} takes no control pictures by itself; name a control network after it, or leave control "
            "out."
        )


class Tables(Protocol):
    """A modulation for each step of the schedule that was asked for last."""

    def forget(self) -> None:
        """The weights have become others."""
        ...


class ControlNetwork:
    """An open network; its component comes and goes with the denoiser."""

    name: str
    component: Component
    kinds: tuple[str, ...] = ()  # of pictures that it is told apart; () for those that it tells apart by itself
    # Whether it runs in every branch, block by block; or it looks at the prompt alone, for all of them.
    every_branch: ClassVar[bool] = False
    fills: bool = False  # whether it is shown the hole of a masked picture
    modulation: Tables | None = None
    prefix_values: int = 0  # numbers that it keeps for each token before the picture (Family.prefix_values)

    def __init__(
        self,
        name: str,
        where: Path,
        build: Callable[[], nn.Module],
        heads: int,
        transforms: WeightTransforms,
        rename: Rename = same_names,
        config: Mapping[str, Any] | None = None,
        others: Sequence[nn.Module] = (),
    ):
        """Every tensor checked by name and shape; no weights are read. `others`: trees that stand in the file next to
        the module."""
        self.name = name
        named = name_tensors(component_name(name), open_checkpoint(where), rename, config)
        weights = check_tensors(named, [build(), *others], transforms=transforms)
        self.component = Component(weights, build, compute_dtype(), heads=heads)

    @property
    def component_name(self) -> str:
        return self.component.weights.component

    def embed(self, control: EncodedControl) -> mx.array:
        """Once a picture: what all steps read of it."""
        embedded: mx.array = self.component.load().embed(control.condition.astype(compute_dtype()))
        mx.eval(embedded)
        return embedded

    def check(self, picture: ControlPicture, masked: bool, strength: float) -> None:
        """Raises for a picture that it cannot be given, or not in a request that is `masked` or of this strength."""
        kinds = ", ".join(self.kinds)
        if self.kinds and picture.kind is None:
            raise RequestError(f"control: {self.name} has to be told what the picture is; give kind: {kinds}.")
        if self.kinds and picture.kind not in self.kinds:
            raise RequestError(f"control: kind '{picture.kind}': {self.name} follows {kinds}.")
        if picture.kind not in (None, EDGES) and not self.kinds:
            raise RequestError(f"control: {self.name} sees by itself what the picture is; leave kind out.")


class ControlPass(Protocol[Residuals_co]):
    """A network, ready for one prompt."""

    @property
    def network(self) -> ControlNetwork: ...

    def residuals(self, x: mx.array, index: int, embedded: mx.array, kind: str | None, strength: float) -> Residuals_co:
        """What is added to the denoiser's blocks in step `index`."""
        ...


class FollowedPictures:
    """The pictures of one loop, with what their networks read of them."""

    def __init__(self, networks: Mapping[str, ControlNetwork], steps: int):
        self._networks = networks
        self._steps = steps
        self._pictures: list[tuple[ControlPicture, mx.array]] = []

    def start(self, controls: Sequence[EncodedControl]) -> None:
        self._pictures = [(each.picture, self._networks[str(each.picture.network)].embed(each)) for each in controls]

    def at(self, index: int) -> list[tuple[ControlPicture, mx.array, float]]:
        """Those that are followed in step `index`, and how strongly."""
        strengths = ((*pair, pair[0].strength_at(index, self._steps)) for pair in self._pictures)
        return [each for each in strengths if each[2]]


class Controls(FollowedPictures, Generic[Residuals_co]):
    """The pictures of one loop, and the networks that look at them."""

    def __init__(self, passes: Mapping[str, ControlPass[Residuals_co]], steps: int):
        super().__init__({name: each.network for name, each in passes.items()}, steps)
        self._passes = passes

    def residuals(self, x: mx.array, index: int) -> list[Residuals_co]:
        """Of every picture that is followed in this step."""
        return [
            self._passes[str(picture.network)].residuals(x, index, embedded, picture.kind, strength)
            for picture, embedded, strength in self.at(index)
        ]


def component_name(network: str) -> str:
    """Of a network: recipes pack it by the rows of what stands before the colon."""
    return f"transformer:{network}"


def spread(samples: Sequence[mx.array], depth: int, repeat: bool = False) -> list[mx.array]:
    """A network's outputs -> one for each of `depth` blocks: runs of blocks share one, or they come by turns."""
    if not samples:
        return []
    run = math.ceil(depth / len(samples))
    return [samples[index % len(samples) if repeat else index // run] for index in range(depth)]


def check_widths(network: Any, model: Any, fields: Sequence[str], path: Path) -> None:
    """Raises for a network whose config (at `path`) is not as wide as the model's."""
    for field in fields:
        found, expected = getattr(network, field), getattr(model, field)
        if found != expected:
            raise ConfigError(
                f"{path}: '{field}' is {found}, and this model's is {expected}: the control network is of another "
                "model. Choose one that is made for it."
            )


def read_network_config(folder: Path, model: str) -> tuple[dict[str, Any], Path]:
    """config.json of a network's folder, and where that is; raises for a folder or file without, by what it holds."""
    path = folder / "config.json"
    if not path.is_file():
        raise another_network(folder, f"{model} takes folders with config.json and a .safetensors file")
    return read_json(path), path


def another_network(where: Path, needed: str) -> ConfigError:
    """For a folder or file that is not the network that is needed: what it is, as far as that is known."""
    networks = [each.found.layout for each in components_in(where) if each.found.layout.component == NETWORK]
    what = networks[0].title if networks else "no control network that this library knows by its tensors"
    return ConfigError(f"{where}: this is {what}. {needed}.")
