"""The one linear layer: y = x Wᵀ + b, with W dense or in MLX's packed affine format.

A layer is built empty, with its shapes only (MLX arrays are lazy: nothing is allocated); loading/weights.py fills it.
Whether W is packed is a matter of what was loaded, so that no module tree has to be rebuilt for a quantized checkpoint;
and so is whether it is here in full, or shared out over several machines (sharing.py).
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..precision import on_gpu
from .products import Product
from .sharing import Share, summed

# The two ways to multiply by a packed weight: MLX's quantized kernel, or unpacking it first.
PACKED, DENSE = "quantized_matmul", "dequantize + matmul"
# On the CPU, how much of a weight is unpacked at a time (numbers); smaller strips make the products slow.
STRIP = 1 << 22
MODES = {"affine": (2, 3, 4, 5, 6, 8), "mxfp4": (4,), "nvfp4": (4,), "mxfp8": (8,)}  # mode -> the bits MLX has for it
GROUP_SIZES = {"affine": (32, 64, 128), "mxfp4": (32,), "nvfp4": (16,), "mxfp8": (32,)}


@dataclass(frozen=True)
class Packing:
    """How a weight is packed: one entry of config.json's `quantization`."""

    bits: int
    group_size: int
    mode: str = "affine"

    def packed_shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"weight": (rows, columns * self.bits // 32)}
        shapes["scales"] = (rows, columns // self.group_size)
        return shapes | {"biases": shapes["scales"]} if self.mode == "affine" else shapes

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that a packed weight is stored as."""
        return ("weight", "scales", "biases") if self.mode == "affine" else ("weight", "scales")

    @property
    def bits_per_weight(self) -> float:
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size


class Linear(nn.Module):
    # Defaults of the class, and parameters set as a dict's: attributes of MLX's modules are slow to set, and models
    # have thousands of layers.
    weight: mx.array
    bias: mx.array
    packing: Packing | None = None
    kernel: str | None = None  # how a packed weight is multiplied; kernels.py chooses
    share: Share | None = None  # of the weight, that is here; None: all of it

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self["weight"] = mx.zeros((outputs, inputs))
        if bias:
            self["bias"] = mx.zeros((outputs,))

    def pack(self, packing: Packing) -> None:
        """Changes the expected tensors to those of a packed weight."""
        rows, columns = self.weight.shape
        self.packing = packing
        scales = self.weight.dtype if packing.mode == "affine" else mx.uint8
        for name, shape in packing.packed_shapes(rows, columns).items():
            self[name] = mx.zeros(shape, mx.uint32 if name == "weight" else scales)

    def __call__(self, x: mx.array) -> mx.array:
        return self.product(x).sum()

    def product(self, x: mx.array) -> Product:
        return self.product_of_parts(x)

    def product_of_divided(self, x: mx.array) -> Product:
        """Of an input that was divided by FLOAT16_DIVISOR (precision.py)."""
        return self.product_of_parts(x, divided=True)

    def product_of_parts(self, *parts: mx.array, divided: bool = False) -> Product:
        """Of runs of columns that follow each other: on a GPU a dense weight need not have them in one place; the CPU
        backend would copy its columns. The bias of a `divided` input is added after the multiplication."""
        bias = self.get("bias")
        sums = self.share is not None and self.share.sums_itself
        if len(parts) > 1 and (self.packing is not None or not on_gpu()):
            parts = (mx.concatenate(list(parts), axis=-1),)
        if self.packing is None:
            later = sums or divided
            out = self._dense(parts, None if later else bias)
        else:
            later = True
            out = packed_matmul(parts[0], self.weight, self.scales, self.get("biases"), self.packing, self.kernel)
        # After the sum over machines the bias is added once.
        return Product(summed(out, self) if sums else out, bias if later else None, divided)

    def runs(self, x: mx.array, lengths: Sequence[int]) -> list[mx.array]:
        """The output in runs of so many numbers. On a GPU each is a product of its own: of one product the rows of a
        run do not lie next to each other, and a norm would copy them first."""
        if not on_gpu():
            return split_runs(self(x), lengths, axis=-1)
        stops = itertools.accumulate(lengths)
        return [self._rows(stop - length, stop)(x) for length, stop in zip(lengths, stops, strict=True)]

    def _rows(self, start: int, stop: int) -> "Linear":
        """A layer of some of the rows, which are not copied."""
        out = Linear(1, 1, bias=False)
        out.packing, out.kernel = self.packing, self.kernel
        for name in ("weight", "scales", "biases", "bias"):
            if name in self:
                out[name] = self[name][start:stop]
        return out

    def _dense(self, parts: Sequence[mx.array], out: mx.array | None) -> mx.array:
        start = 0
        for x in parts:
            weight = self.weight if len(parts) == 1 else self.weight[:, start : start + x.shape[-1]]
            out = x @ weight.T if out is None else mx.addmm(out, x, weight.T)
            start += x.shape[-1]
        assert out is not None
        return out

    @property
    def held_shape(self) -> tuple[int, ...]:
        """Of the part of an empty layer's weight that is to be here."""
        return self.share.shape(self.weight.shape) if self.share else self.weight.shape


def split_runs(x: mx.array, lengths: Iterable[int], axis: int = 0) -> list[mx.array]:
    """Runs of such lengths, which follow each other along an axis."""
    return list(mx.split(x, list(itertools.accumulate(lengths))[:-1], axis=axis))


def unpacked(packed: Mapping[str, mx.array], packing: Packing) -> mx.array:
    """A packed weight's values, in float32."""
    scales, biases = packed["scales"], packed.get("biases")
    return mx.dequantize(
        packed["weight"], scales, biases, packing.group_size, packing.bits, packing.mode, dtype=mx.float32
    )


def packed_matmul(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    packing: Packing,
    kernel: str | None = None,
) -> mx.array:
    """x Wᵀ for a packed W. `kernel`: PACKED or DENSE; this device's usual one if not given."""
    options: dict[str, Any] = {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}
    if (kernel or default_kernel()) == PACKED:
        return mx.quantized_matmul(x, weight, scales, biases, transpose=True, **options)
    if on_gpu():
        return x @ mx.dequantize(weight, scales, biases, dtype=x.dtype, **options).T
    return _by_strips(x, weight, (scales, biases), options)


def _by_strips(
    x: mx.array, weight: mx.array, grids: tuple[mx.array, mx.array | None], options: dict[str, Any]
) -> mx.array:
    """x Wᵀ, a few rows of W at a time, evaluated.

    The CPU backend unpacks 5 and 6 bits through seven times the result's memory, and it takes memory as it schedules,
    far ahead of what it computes: unevaluated, the unpacked weights of a whole step would stand in memory together.
    """
    scales, biases = grids
    step = max(1, STRIP // x.shape[-1])
    outs = []
    for row in range(0, weight.shape[0], step):
        rows = slice(row, row + step)
        offsets = None if biases is None else biases[rows]
        outs.append(x @ mx.dequantize(weight[rows], scales[rows], offsets, dtype=x.dtype, **options).T)
        mx.eval(outs[-1])
    return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=-1)


def default_kernel() -> str:
    """On the CPU MLX's quantized kernel is 15-40x slower than unpacking, and accumulates bf16 inputs in bf16."""
    return PACKED if on_gpu() else DENSE
