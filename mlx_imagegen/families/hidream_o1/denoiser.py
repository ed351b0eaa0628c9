"""HiDream-O1's velocity for one picture.

In: what `HiDreamO1.denoiser` computed for each branch. Out: dx/dsigma at each step. The model says where the clean
picture is; the velocity points from there to x. Must not know: prompts, pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...layers.attention import KeyValues
from ...text.qwen import Rope
from ..base import Denoiser


@dataclass(frozen=True)
class Condition:
    """One branch, as the transformer takes it at every step."""

    rope: Rope  # of the timestep token and the patches
    prefix: tuple[KeyValues, ...]
    references: mx.array | None  # [1, R, D]


@dataclass(eq=False)
class HiDreamO1Denoiser(Denoiser[Condition]):
    timesteps: Sequence[float]
    least_sigma: float

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        timestep = self.timesteps[index]
        picture: mx.array = self.transformer.load()(
            x, timestep, branch.rope, branch.prefix, branch.references, self.after_first_block(index, branch)
        )
        return (x - picture) / max(timestep / 1000, self.least_sigma)
