"""CLIP's text tower: token embeddings -> features, and the pooled vector of the prompt's end.

In: embeddings of the token ids (their rows are gathered from the file; the table is no part of the module) and the ids.
Out: last hidden state [B, L, D] and pooled [B, D]. Must not know: tokenizers, files, what a family does with either.
Parameters carry the checkpoint's names, without the `text_model.` that published files put before them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import RequestError
from ..layers.encoder import ACTIVATIONS, EncoderLayer
from ..layers.norm import LayerNorm
from ..loading.config import HEADS, INDEX, LAYERS, MANY, POSITIVE, Config

# What configs said before transformers 4.32, whatever the end token's real id: FLUX.1's file still does.
OLD_EOS_TOKEN_ID = 2


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """What CLIP's and SigLIP's encoders have in common."""

    hidden_act: str
    hidden_size: int
    intermediate_size: int
    layer_norm_eps: Annotated[float, POSITIVE]
    num_attention_heads: Annotated[int, HEADS]
    num_hidden_layers: Annotated[int, LAYERS]

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.hidden_act not in ACTIVATIONS:
            yield "hidden_act", f"one of {', '.join(ACTIVATIONS)}"
        if self.hidden_size % self.num_attention_heads:
            yield "hidden_size", f"a multiple of num_attention_heads ({self.num_attention_heads})"

    def encoder(self, mask: str | None = None) -> dict[str, list[EncoderLayer]]:
        """The layers, empty, by the checkpoint's name."""
        sizes = self.hidden_size, self.intermediate_size, self.num_attention_heads
        kind = self.layer_norm_eps, self.hidden_act, mask
        return {"layers": [EncoderLayer(*sizes, *kind) for _ in range(self.num_hidden_layers)]}


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(EncoderConfig):
    """text_encoder/config.json"""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        """attention_dropout bos_token_id dropout initializer_factor initializer_range pad_token_id
        projection_dim""".split()
    )
    CLASSES: ClassVar[frozenset[str]] = frozenset({"clip_text_model"})

    max_position_embeddings: int
    vocab_size: Annotated[int, MANY]
    eos_token_id: Annotated[int, INDEX]


class ClipTextModel(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.embeddings = {"position_embedding": nn.Embedding(config.max_position_embeddings, config.hidden_size)}
        self.encoder = config.encoder("causal")
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self._eos_token_id = config.eos_token_id

    def __call__(self, x: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, L, D], ids [B, L] -> features [B, L, D], pooled [B, D]"""
        positions = self.embeddings["position_embedding"].weight
        length = x.shape[1]
        if length > len(positions):
            raise RequestError(f"{length} tokens are more than the {len(positions)} this CLIP has positions for.")
        x = x + positions[:length]
        for layer in self.encoder["layers"]:
            x = layer(x)
        x = self.final_layer_norm(x)
        return x, x[mx.arange(len(x)), self._last_place(ids)]

    def _last_place(self, ids: mx.array) -> mx.array:
        """Where each prompt ends: at its first end token, [B]. Padding may repeat that token."""
        if self._eos_token_id == OLD_EOS_TOKEN_ID:
            return mx.argmax(ids, axis=-1)  # the end token's id is the largest of the vocabulary
        return mx.argmax(ids == self._eos_token_id, axis=-1)
