"""Qwen-Image-2.1's velocity for one picture.

In: what `QwenImage21.denoiser` computed for each branch, control networks and the pictures they look at. Out: dx/dsigma
at each step. What stands before the picture is computed once, and again where other networks, or stronger ones, follow
a picture than in the step before: they change its tokens as well.
Must not know: prompts, schedules, pictures.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ...layers.attention import KeyValues
from ...layers.rope import Rope
from ...precision import compute_dtype
from ..base import Denoiser, LastValueCache
from ..controls import EncodedControl, FollowedPictures
from .control import FunPass, QwenImage21ControlNetwork
from .transformer import Modulation

Strengths = Mapping[str, float]  # by network: of all pictures that it follows together


@dataclass(frozen=True)
class Prefix:
    """Keys and values of text and references, one a block."""

    own: Sequence[KeyValues]  # the transformer's
    networks: Mapping[str, Sequence[KeyValues]]


@dataclass(frozen=True)
class Condition:
    """One branch, as the transformer takes it at every step."""

    rope: Rope  # of the picture's tokens
    make_prefix: Callable[[Strengths], Prefix]
    _prefix: LastValueCache = field(default_factory=LastValueCache)

    def prefix(self, strengths: Strengths) -> Prefix:
        return self._prefix.get(tuple(sorted(strengths.items())), lambda: self.make_prefix(strengths))


@dataclass(eq=False)
class QwenImage21Denoiser(Denoiser[Condition]):
    modulation: Sequence[Modulation]  # one a step
    networks: Mapping[str, QwenImage21ControlNetwork]
    followed: FollowedPictures

    def start_picture(self, condition: Any = None, controls: Sequence[EncodedControl] = ()) -> None:
        self.followed.start(controls)
        for branch in self.branches:
            branch.prefix(self._strengths(0))

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        prefix, modulation = branch.prefix(self._strengths(index)), self.modulation[index]
        controls = [
            functools.partial(
                FunPass, module=self.networks[str(picture.network)].module, shown=embedded, strength=strength,
                rope=branch.rope, modulation=modulation.block, prefix=prefix.networks[str(picture.network)],
            )
            for picture, embedded, strength in self.followed.at(index)
        ]  # fmt: skip
        velocity: mx.array = self.transformer.load()(
            x.astype(compute_dtype()), branch.rope, prefix.own, modulation, self.after_first_block(index, branch),
            controls,
        )  # fmt: skip
        return velocity

    def _strengths(self, index: int) -> Strengths:
        strengths = defaultdict[str, float](float)
        for picture, _, strength in self.followed.at(index):
            strengths[str(picture.network)] += strength
        return strengths
