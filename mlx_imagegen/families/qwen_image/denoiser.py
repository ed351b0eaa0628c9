"""Qwen-Image's velocity for one picture.

In: what `QwenImage.denoiser` computed for each branch, and the reference pictures' latents. Out: dx/dsigma at each
step. Guidance is the scale between two branches, with the length of every token's velocity kept at the prompt's
branch's, unless Qwen-Image-Layered is asked for the plain one.
Must not know: prompts, schedules, pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ...precision import SOLVER_DTYPE, compute_dtype
from ..base import Condition, apply_cfg, with_references
from ..controlled import ControlledDenoiser
from ..controls import EncodedControl
from .transformer import Modulation


@dataclass(eq=False)
class QwenImageDenoiser(ControlledDenoiser[Condition, list[mx.array]]):
    modulation: Sequence[Modulation]  # one a step
    encoded: mx.array | None  # the references' packed latents, [1, R, C]
    one_batch: bool  # whether two branches run as one batch
    normalizes: bool  # whether guidance keeps the length of the prompt's velocity
    references: mx.array | None = field(default=None, init=False)  # as this picture has them

    def start_picture(self, condition: mx.array | None = None, controls: Sequence[EncodedControl] = ()) -> None:
        """`condition`: latents [1, R, C] that take the references' place for this picture, where they are as many."""
        fits = condition is not None and self.encoded is not None and condition.shape == self.encoded.shape
        self.references = condition if fits else self.encoded
        super().start_picture(condition, controls)

    def branch_velocities(self, x: mx.array, index: int) -> list[mx.array]:
        if not (self.one_batch and len(self.branches) == 2):
            return super().branch_velocities(x, index)
        img, references = with_references(x.astype(compute_dtype()), self.references)
        # The shorter prompt is padded, and nothing attends to the padding.
        txt, mask = padded([branch.txt for branch in self.branches], img.shape[1])
        longest = max(self.branches, key=lambda branch: branch.txt.shape[1])
        both = self.transformer.load()(
            mx.concatenate([img, img]), txt, longest.rope, self.modulation[index], references, mask, self.residuals,
            self.after_first_block(index),
        )  # fmt: skip
        return list(mx.split(both.astype(SOLVER_DTYPE), 2))

    def branch_velocity(self, x: mx.array, index: int, branch: Condition) -> mx.array:
        img, references = with_references(x.astype(compute_dtype()), self.references)
        transformer, after_first = self.transformer.load(), self.after_first_block(index, branch)
        velocity: mx.array = transformer(
            img, branch.txt, branch.rope, self.modulation[index], references, None, self.residuals, after_first
        )
        return velocity

    def combine(self, velocities: Sequence[mx.array]) -> mx.array:
        """As long, token by token, as the prompt's own velocity."""
        wanted, unwanted = velocities
        v = apply_cfg(wanted, unwanted, self.cfg)
        if not self.normalizes:
            return v
        return v * (mx.linalg.norm(wanted, axis=-1, keepdims=True) / mx.linalg.norm(v, axis=-1, keepdims=True))


def padded(prompts: Sequence[mx.array], image: int) -> tuple[mx.array, mx.array | None]:
    """Prompts [1, T, D] of several lengths as one batch, and what may be attended to: [B, 1, 1, T + image]."""
    lengths = [txt.shape[1] for txt in prompts]
    longest = max(lengths)
    batch = mx.concatenate([mx.pad(txt, [(0, 0), (0, longest - txt.shape[1]), (0, 0)]) for txt in prompts])
    if min(lengths) == longest:
        return batch, None
    places = np.arange(longest + image)
    mask = np.stack([(places < length) | (places >= longest) for length in lengths])
    return batch, mx.array(mask)[:, None, None]
