"""What FLUX.1's denoiser reads of a prompt, and what image adapters make of the pictures in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from ...layers.attention import KeyValues, ScaledKeyValues
from ..base import TextBranch


@dataclass(frozen=True)
class AttendedPicture:
    """What blocks look at."""

    scale: float
    blocks: Sequence[KeyValues]  # of each double block, and then perhaps of each single one
    inside: bool = False  # what they see is added before attention's output layer; else after the block

    def astype(self, dtype: mx.Dtype) -> "AttendedPicture":
        return replace(self, blocks=[(k.astype(dtype), v.astype(dtype)) for k, v in self.blocks])


def seen_in(pictures: Sequence[AttendedPicture], block: int, inside: bool) -> list[ScaledKeyValues]:
    """Of the pictures that block number `block` looks at, inside its attention or after it."""
    return [
        (picture.scale, picture.blocks[block])
        for picture in pictures
        if picture.inside is inside and block < len(picture.blocks)
    ]


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


@dataclass(frozen=True, eq=False, kw_only=True)
class FluxBranch(TextBranch):
    """`txt`: T5's features."""

    pooled: mx.array  # [1, P], CLIP's vector
    attended: tuple[AttendedPicture, ...] = ()
