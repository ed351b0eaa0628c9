"""What FLUX.1's denoiser reads of a prompt, and what image adapters make of the pictures in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...layers.attention import KeyValues
from .references import EncodedReferences


@dataclass(frozen=True)
class AttendedPicture:
    """What the double blocks look at."""

    scale: float
    blocks: Sequence[KeyValues]  # of each block

    def astype(self, dtype: mx.Dtype) -> "AttendedPicture":
        return AttendedPicture(self.scale, [(k.astype(dtype), v.astype(dtype)) for k, v in self.blocks])


@dataclass(frozen=True)
class PromptPictures:
    """What one adapter makes of a prompt's pictures."""

    tokens: mx.array | None = None  # [1, R, D], which stand in the prompt
    scale: float = 1.0  # by which the words are multiplied then
    attended: tuple[AttendedPicture, ...] = ()

    def after(self, txt: mx.array, pooled: mx.array) -> tuple[mx.array, mx.array]:
        """The prompt with the pictures in it: text features [1, T, D] and pooled [1, P]."""
        if self.tokens is None:
            return txt, pooled
        scale = mx.array(self.scale, txt.dtype)
        return mx.concatenate([txt * scale, self.tokens.astype(txt.dtype)], axis=1), pooled * scale


@dataclass(frozen=True, eq=False)  # a key by itself, not by its numbers
class FluxBranch:
    txt: mx.array  # [1, T, D], T5's features
    pooled: mx.array  # [1, P], CLIP's vector
    references: EncodedReferences | None = None
    attended: tuple[AttendedPicture, ...] = ()
