"""FLUX.3's velocity for one picture.

In: what `Flux3.denoiser` computed for each branch, and the reference pictures' tokens. Out: dx/dsigma at each step.
Text and references are modulated alike in every step of a model that is not distilled: their own blocks run once.
Must not know: prompts, schedules, pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from ...layers.rope import Rope
from ...precision import compute_dtype
from ..base import Denoiser
from .transformer import IMAGE, REFERENCES, TEXT, Modulation


@dataclass(frozen=True)
class Tokens:
    """One kind's, as the transformer takes them at every step."""

    features: mx.array  # [1, N, F]
    rope: Rope
    states: list[mx.array] = field(default_factory=list)  # after their own blocks, where no step changes them


@dataclass(frozen=True)
class Condition:
    """One branch."""

    txt: Tokens
    rope: Rope  # of all tokens


@dataclass(eq=False)
class Flux3Denoiser(Denoiser[Condition]):
    modulation: Sequence[Modulation]  # one a step
    picture: Rope  # of its tokens
    references: Tokens | None
    changing: bool  # whether text and references are modulated by the step

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        transformer, modulation = self.transformer.load(), self.modulation[index]
        states = [
            self._states(TEXT, branch.txt, modulation),
            transformer.states(IMAGE, x.astype(compute_dtype()), self.picture, modulation),
        ]
        if self.references is not None:
            states.append(self._states(REFERENCES, self.references, modulation))
        after_first = self.after_first_block(index, branch)
        velocity: mx.array = transformer(states, branch.rope, modulation, after_first)
        return velocity

    def _states(self, kind: str, tokens: Tokens, modulation: Modulation) -> mx.array:
        if tokens.states:
            return tokens.states[0]
        states: mx.array = self.transformer.load().states(kind, tokens.features, tokens.rope, modulation)
        if not self.changing:
            mx.eval(states)
            tokens.states.append(states)
        return states
