"""Linear layers of the same input with their weights in one place: one product gives all their outputs.

For a GPU, where each launch costs: `Component.load` stacks what a module's parts have to stack (`stack`) once it is
filled. Layers keep views of their rows, so that nothing is held twice and whoever reads layers by name finds them;
when a layer is filled again, its module is stacked again.
Must not know: families, files, which layers a family has.
"""

import functools
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from .attention import split_heads
from .linear import Linear, split_runs
from .norm import RMSNorm
from .rope import Rope, rotate_scaled

Arrays = dict[str, mx.array]


class Stacked:
    """No module: its weights are those of layers that the tree has already."""

    def __init__(self, layers: Sequence[Linear]):
        """`layers`: alike but for their rows (`stacked`)."""
        self._first = layers[0]
        self._linear = Linear(1, 1, bias=False)  # until the weights come
        self._linear.packing = self._first.packing
        self.arrays: Arrays = self._linear
        for name, value in _tensors(layers[0]).items():
            self.arrays[name] = mx.concatenate([value, *[layer[name] for layer in layers[1:]]])
            runs = split_runs(self.arrays[name], [len(layer[name]) for layer in layers])
            for layer, rows in zip(layers, runs, strict=True):
                layer[name] = rows

    def __call__(self, x: mx.array) -> mx.array:
        """[..., columns] -> [..., rows of all layers]"""
        self._linear.kernel = self._first.kernel
        return self._linear(x)


def stacked(*layers: Linear) -> Stacked | None:
    """None where they are not alike, as where one is packed in more bits."""
    kinds = [
        (layer.packing, [(name, value.shape[1:], value.dtype) for name, value in _tensors(layer).items()])
        for layer in layers
    ]
    return Stacked(layers) if all(kind == kinds[0] for kind in kinds) else None


class HeadNorms:
    """The norms of queries' and keys' heads that come of one product: one norm, then one rope, which multiplies by the
    norms' weights."""

    def __init__(self, norm_q: RMSNorm, norm_k: RMSNorm, count: int, eps: float):
        """`count`: of heads, here."""
        rows = [mx.broadcast_to(norm.weight, (count, norm.weight.size)) for norm in (norm_q, norm_k)]
        self.arrays: Arrays = {"weight": mx.concatenate(rows)}  # [2 H, D]
        self._count, self._eps = count, eps

    def turned(self, y: mx.array, rope: Rope) -> tuple[mx.array, mx.array, mx.array]:
        """[B, L, 2 H D] -> q and k, normed and turned, and q before rope, [B, H, L, D] each."""
        weight = self.arrays["weight"][:, None]  # [2 H, 1, D]
        norm = functools.partial(mx.fast.rms_norm, weight=None, eps=self._eps)
        heads = split_heads(y, norm=norm, size=weight.shape[-1])  # [B, 2 H, L, D]
        q, k = mx.split(rotate_scaled(heads, weight, rope), 2, axis=1)
        return q, k, heads[:, : self._count] * weight[: self._count]


def stack_layers(module: nn.Module) -> Iterator[Stacked | HeadNorms]:
    """What the parts of `module` stack. Evaluate each before the next, so that its layers' own weights go."""
    parts: list[tuple[str, nn.Module]] = module.named_modules()
    for _, part in parts:
        if hasattr(part, "stack"):
            yield from part.stack()


def _tensors(layer: Linear) -> Arrays:
    return {name: layer[name] for name in ("weight", "scales", "biases", "bias") if name in layer}
