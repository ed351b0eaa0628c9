"""Qwen-Image-2.1's transformer: single-stream blocks over text, reference pictures and the picture, in one line.

In: latents [1, L, C], text states, rope tables and one step's `Modulation`. Out: the picture's velocity.
Text and references are modulated as at t = 0 and never see the picture, so that their keys and values are the same at
every step: `prefix` computes them once, and a step runs the picture's tokens alone, attending to everything.
The layers that give the modulation, which all blocks share, are not part of `QwenImage21Transformer`: they stand in
`QwenImage21Modulators` and are tabulated before the loop (modulation.py).
Control networks run next to it: each is given the tokens before the first block, then every block's output to add to.
Must not know: schedules, guidance by two branches, files. Parameters carry diffusers' names.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ...layers.activation import gelu_tanh
from ...layers.attention import KeyValues, attend, prefixed
from ...layers.blocks import AfterFirstBlock, run_all
from ...layers.fused import gated_sum
from ...layers.joint import GatedProjection, Projections, attention_cuts
from ...layers.linear import Linear
from ...layers.modulation import modulate
from ...layers.norm import ZeroCentredRMSNorm
from ...layers.rope import Rope
from ...layers.sharing import Cuts, channels, columns, rows
from ...layers.stacked import Stacked
from .config import QwenImage21Config
from .sequence import Segments, attend_in_line, in_line

AfterBlock = Callable[[mx.array], mx.array]  # a block's output -> what the next one reads; called after each in turn
Follow = Callable[[mx.array], AfterBlock]  # a control network: the tokens before the first block -> its pass


class Modulation(NamedTuple):
    """One step's vectors, the same for every block: [4, D] (scale and gate for attention, then for the MLP), and the
    last norm's scale [D]; scales with their 1."""

    block: mx.array
    out: mx.array


def cuts(config: QwenImage21Config) -> Cuts:
    """How the layers are shared out over several machines."""
    inner = channels(config.mlp_ratio * config.inner_dim)
    return {
        **attention_cuts(config.inner_dim, config.num_attention_heads),
        "*.img_mlp.proj": rows(inner),
        "*.img_mlp.gate_layer": rows(inner),
        "*.img_mlp.out": columns(inner),
    }


class QwenImage21Transformer(nn.Module):
    def __init__(self, config: QwenImage21Config):
        super().__init__()
        dims = config.inner_dim
        self.img_in = Linear(config.in_channels, dims, bias=False)
        self.txt_in = TextProjection(config.context_in_dim, dims, config.eps)
        self.transformer_blocks = [Block(config) for _ in range(config.num_layers)]
        self.proj_out = Linear(dims, config.out_channels, bias=False)
        self._eps = config.eps

    def prefix(
        self,
        txt: mx.array,
        references: mx.array | None,
        segments: Segments,
        rope: Rope,
        clean: Modulation,
        controls: Sequence[Follow] = (),
    ) -> list[KeyValues]:
        """Text states [1, T, D] and the references' latents [1, R, C] -> every block's keys and values, evaluated.
        `clean`: the modulation at t = 0."""
        pictures = None if references is None else self.img_in(references)
        x = in_line(self.txt_in(txt), pictures, segments)  # [1, T + R, D]
        passes = [follow(x) for follow in controls]
        out: list[KeyValues] = []
        for block in self.transformer_blocks:
            if out:
                mx.eval(x, out[-1])  # block by block: ten references have 40,000 tokens
            x, pair = block(x, rope, clean.block, segments=segments)
            x = followed(x, passes)
            out.append(pair)
        mx.eval(out[-1])  # the last block's own output is never asked for, so it is not computed
        return out

    def __call__(
        self,
        x: mx.array,
        rope: Rope,
        prefix: Sequence[KeyValues],
        modulation: Modulation,
        after_first: AfterFirstBlock = run_all,
        controls: Sequence[Follow] = (),
    ) -> mx.array:
        def run(blocks: slice, x: mx.array) -> mx.array:
            for block, pair in zip(self.transformer_blocks[blocks], prefix[blocks], strict=True):
                x, _ = block(x, rope, modulation.block, prefix=pair)
                x = followed(x, passes)
            return x

        x = self.img_in(x)  # [1, L, D]
        passes = [follow(x) for follow in controls]
        first = run(slice(1), x)
        x = after_first(x, first, lambda: run(slice(1, None), first))
        return self.proj_out(modulate(x, None, modulation.out, self._eps))


def followed(x: mx.array, passes: Sequence[AfterBlock]) -> mx.array:
    for after_block in passes:
        x = after_block(x)
    return x


class TextProjection(nn.Module):
    def __init__(self, inputs: int, dims: int, eps: float):
        super().__init__()
        self.text_norm = ZeroCentredRMSNorm(inputs, eps)
        self.in_layer = Linear(inputs, dims, bias=False)
        self.out_layer = Linear(dims, dims, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out_layer(gelu_tanh(self.in_layer(self.text_norm(x))))


class Block(nn.Module):
    def __init__(self, config: QwenImage21Config):
        super().__init__()
        dims = config.inner_dim
        self.attn = Attention(dims, config.num_attention_heads, config.eps)
        self.img_mlp = SwiGLU(dims, config.mlp_ratio * dims)
        self._eps = config.eps

    def __call__(self, x: mx.array, rope: Rope, modulation: mx.array, **attention: Any) -> tuple[mx.array, KeyValues]:
        scale, gate, mlp_scale, mlp_gate = modulation
        out, pair = self.attn(modulate(x, None, scale, self._eps), rope, **attention)
        x = gated_sum(x, gate, out)
        return gated_sum(x, mlp_gate, self.img_mlp(modulate(x, None, mlp_scale, self._eps))), pair


class Attention(Projections):
    def __init__(self, dims: int, heads: int, eps: float):
        super().__init__(dims, heads, eps, bias=False)
        self.to_out = [Linear(dims, dims, bias=False)]

    def __call__(
        self, x: mx.array, rope: Rope, *, prefix: KeyValues | None = None, segments: Segments | None = None
    ) -> tuple[mx.array, KeyValues]:
        """The output, and x's own keys and values. `prefix`: those of the tokens before x, all of which x attends to.
        `segments`: what x consists of, where not every token attends to every other."""
        q, k, v = self.project(x, rope)
        pair = prefixed((k, v), prefix)
        out = attend(q, *pair) if segments is None else attend_in_line(q, *pair, segments)
        return self.to_out[0](out), (k, v)


class SwiGLU(nn.Module):
    def __init__(self, dims: int, inner: int):
        super().__init__()
        self.proj = Linear(dims, inner, bias=False)
        self.gate_layer = Linear(dims, inner, bias=False)
        self.out = Linear(inner, dims, bias=False)
        self._gated = GatedProjection(self.gate_layer, self.proj)

    def stack(self) -> Iterator[Stacked]:
        return self._gated.stack()

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(self._gated(x))
