"""Control networks: second checkpoints that run next to a denoiser and add to what its blocks make.

In: pictures to follow, each with its network, strength and share of the steps. Out: the contract that a family's
networks meet, and how their few outputs are spread over the denoiser's many blocks.
Must not know: any family's layers, requests, where networks are found.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import RequestError
from ..loading.component import Component


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


class ControlNetwork(ABC):
    """An open network; its component comes and goes with the denoiser."""

    name: str
    component: Component
    kinds: tuple[str, ...] = ()  # of pictures that it is told apart; () for those that it tells apart by itself

    @property
    def component_name(self) -> str:
        return self.component.weights.component

    @abstractmethod
    def forget(self) -> None:
        """Drops what it keeps between pictures."""

    def check(self, picture: ControlPicture, **given: Any) -> None:
        """Raises for a picture that it cannot be given."""
        kinds = ", ".join(self.kinds)
        if self.kinds and picture.kind is None:
            raise RequestError(f"control: {self.name} has to be told what the picture is; give kind: {kinds}.")
        if self.kinds and picture.kind not in self.kinds:
            raise RequestError(f"control: kind '{picture.kind}': {self.name} follows {kinds}.")
        if picture.kind is not None and not self.kinds:
            raise RequestError(f"control: {self.name} sees by itself what the picture is; leave kind out.")


def component_name(network: str) -> str:
    """Of a network: recipes pack it by the rows of what stands before the colon."""
    return f"transformer:{network}"


def spread(samples: Sequence[mx.array], depth: int, repeat: bool = False) -> list[mx.array]:
    """A network's outputs -> one for each of `depth` blocks: runs of blocks share one, or they come by turns."""
    if not samples:
        return []
    run = math.ceil(depth / len(samples))
    return [samples[index % len(samples) if repeat else index // run] for index in range(depth)]
