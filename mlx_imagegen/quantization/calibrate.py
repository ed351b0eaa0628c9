"""The inputs of a model's layers while it draws, and packing that uses them.

In: an open full-precision pipeline, the pictures to draw, how the denoiser's layers will be packed. Out: `Statistics` a
layer: the mean of its inputs, and their second moments where few bits make use of them. `pack_calibrated` then rounds
one column after another and lets the columns to come make up for the error (GPTQ's way), with each group's scale chosen
for the columns that count; what is left of the mean goes into the bias. Second moments are kept in blocks of columns,
so that a wide layer's do not take more memory than its weights.
Must not know: files, recipes.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..bfloat import to_bf16
from ..layers.linear import Linear, Packing, split_runs
from ..layers.products import Product
from ..loading.component import Component
from ..packing.affine import Packed, codes_for, fit, pack_codes, pack_rows, unpack_rows
from ..precision import FLOAT16_DIVISOR

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request.job import Job
    from ..result import OnStep

BLOCK_COLUMNS = 512
DAMPING = 0.01  # of the mean second moment: keeps directions that no prompt used
MOST_BITS = 6  # above, rounding is fine enough as it is


@dataclass
class Statistics:
    """Of one layer's inputs [tokens, columns]."""

    count: int
    total: Any  # [columns]
    moments: list[Any]  # [block, block] each, sums of products; none where the mean is enough

    @classmethod
    def of(cls, columns: int, moments: bool = True) -> "Statistics":
        """Without inputs yet: it takes no memory before some are added."""
        edges = [*range(0, columns, BLOCK_COLUMNS), columns] if moments else []
        blocks = [mx.zeros((stop - start,) * 2) for start, stop in itertools.pairwise(edges)]
        return cls(0, mx.zeros((columns,)), blocks)

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in (self.total, *self.moments))

    def add(self, x: mx.array) -> None:
        x = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        self.count += x.shape[0]
        self.total = self.total + x.sum(axis=0)
        if self.moments:
            parts = mx.split(x, list(range(BLOCK_COLUMNS, x.shape[1], BLOCK_COLUMNS)), axis=1)
            self.moments = [moment + part.T @ part for moment, part in zip(self.moments, parts, strict=True)]
        mx.eval(self.total, self.moments)  # now: the activations must not wait for the picture's end

    def finish(self) -> None:
        """Ends the counting: from here on everything is numpy's, which any thread may read."""
        self.total, self.moments = np.array(self.total), [np.array(moment) for moment in self.moments]

    @property
    def mean(self) -> np.ndarray:
        return np.array(self.total) / self.count

    @functools.cached_property
    def importance(self) -> np.ndarray:
        """[columns]: the mean square of each input."""
        squares: np.ndarray = np.concatenate([np.diagonal(np.array(moment)) for moment in self.moments]) / self.count
        damped: np.ndarray = squares + DAMPING * squares.mean() + 1e-20
        return damped

    @functools.cached_property
    def feedback(self) -> list[np.ndarray]:
        """Block by block the upper Cholesky factor of the inverse moments: how later columns make up for a column."""
        out = []
        for moment in self.moments:
            matrix = np.array(moment, np.float64) / self.count
            matrix += (DAMPING * np.trace(matrix) / len(matrix) + 1e-20) * np.eye(len(matrix))
            inverse = np.linalg.inv(matrix)
            out.append(np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32))
        return out


class Watched(Linear):
    """A linear layer that counts its inputs. Layers become Watched in place."""

    statistics: Statistics

    def product_of_parts(self, *parts: mx.array, divided: bool = False) -> Product:
        x = mx.concatenate(list(parts), axis=-1)
        self.statistics.add(x.astype(mx.float32) * FLOAT16_DIVISOR if divided else x)
        return super().product_of_parts(x, divided=divided)

    def runs(self, x: mx.array, lengths: Sequence[int]) -> list[mx.array]:
        """Of one product: its input counts once."""
        return split_runs(self(x), lengths, axis=-1)


class WatchedComponent(Component):
    """Replaces a component; what it loads is watched. It keeps no layer alive when its module is released."""

    def __init__(self, component: Component, found: Mapping[str, Statistics]):
        super().__init__(component.weights, component.empty, component.dtype, component.path)
        self._found = found

    def _stack(self, module: nn.Module) -> None:
        """Each layer sees its input."""

    def load(self) -> nn.Module:
        fresh, module = not self.loaded, super().load()
        for path, layer in self.loaded_layers() if fresh else ():
            if isinstance(layer, Linear) and path in self._found:
                layer.__class__ = Watched
                layer.statistics = self._found[path]
        return module


@contextmanager
def watching(components: dict[str, Component], name: str, found: Mapping[str, Statistics]) -> Iterator[None]:
    """Inside, the inputs of the component's layers are counted, by path."""
    plain = components[name]
    plain.release()  # a module from before would not be watched
    components[name] = WatchedComponent(plain, found)
    try:
        yield
    finally:
        components[name] = plain


def empty_statistics(component: Component, packings: Mapping[str, Packing]) -> dict[str, Statistics]:
    """For each layer that will be packed and can gain by it."""
    return {
        path: Statistics.of(layer.weight.shape[1], _uses_feedback(packings[path]))
        for path, layer, _ in component.planned()
        if isinstance(layer, Linear) and path in packings and (_uses_feedback(packings[path]) or "bias" in layer)
    }


def collect(
    pipeline: "Pipeline", jobs: "Sequence[Job]", packings: Mapping[str, Packing], on_step: "OnStep | None" = None
) -> dict[str, Statistics]:
    """Draws the pictures, and gives the denoiser's layers' statistics by path."""
    components, name = pipeline.family.components, pipeline.family.stages["denoise"][0]
    found = empty_statistics(components[name], packings)
    with watching(components, name, found):
        for _ in pipeline.stream(jobs, on_step):
            pass
    for statistics in found.values():
        statistics.finish()
    return {path: statistics for path, statistics in found.items() if statistics.count}


def _uses_feedback(packing: Packing) -> bool:
    return packing.bits <= MOST_BITS and packing.mode == "affine"


def pack_calibrated(rows: np.ndarray, packing: Packing, statistics: Statistics) -> tuple[Packed, np.ndarray]:
    """rows [R, K] in float32 -> what pack_rows gives, and what keeps the mean output if added to the bias, [R]."""
    if _uses_feedback(packing):
        packed = _stored(*_with_feedback(rows, packing, statistics), packing)
    else:
        packed = pack_rows(rows, packing)
    return packed, (rows - unpack_rows(packed, packing)) @ statistics.mean


def _with_feedback(
    rows: np.ndarray, packing: Packing, statistics: Statistics
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """codes [K, R], scales and biases [K / group, R]"""
    w = np.ascontiguousarray(rows.T)  # [K, R]: a column of the weight at a time
    size, levels = packing.group_size, np.float32(2**packing.bits - 1)
    codes = np.empty_like(w)
    scales, biases = np.empty((2, len(w) // size, w.shape[1]), np.float32)
    block = 0
    for factor in statistics.feedback:
        for start in range(block, block + len(factor), size):
            group, inner = w[start : start + size], slice(start - block, start - block + size)
            counts = statistics.importance[start : start + size, None].astype(np.float32)
            _, scale, bias = fit(group, packing.bits, True, counts)
            errors = np.empty_like(group)
            for column in range(size):
                code = codes_for(group[column], scale, bias, levels)
                errors[column] = (group[column] - code * scale - bias) / factor[inner, inner][column, column]
                group[column + 1 :] -= factor[inner, inner][column, column + 1 :, None] * errors[column]
                codes[start + column] = code
            later = slice(inner.stop, len(factor))
            w[block + inner.stop : block + len(factor)] -= factor[inner, later].T @ errors
            scales[start // size], biases[start // size] = scale, bias
        block += len(factor)
    return codes, scales, biases


def _stored(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray, packing: Packing) -> Packed:
    groups, rows = scales.shape
    ordered = codes.reshape(groups, packing.group_size, rows).transpose(1, 2, 0).reshape(packing.group_size, -1)
    weight = pack_codes(np.ascontiguousarray(ordered), packing.bits).T.reshape(rows, -1)
    return {"weight": weight, "scales": to_bf16(scales.T), "biases": to_bf16(biases.T)}
