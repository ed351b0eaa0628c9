"""What FLUX.1's denoiser reads of a prompt."""

from dataclasses import dataclass

import mlx.core as mx

from .references import EncodedReferences


@dataclass(frozen=True, eq=False)  # a key by itself, not by its numbers
class FluxBranch:
    txt: mx.array  # [1, T, D], T5's features
    pooled: mx.array  # [1, P], CLIP's vector
    references: EncodedReferences | None = None
