"""What convolutional autoencoders are built of, on row strips: convolution, norms, residual block, self-attention.

In and out: `Strips`. Weights lie in MLX's layout, [out, kh, kw, in]; loading transposes torch's. A 1x1 convolution is a
`Linear`. Pads are always made by hand where they differ on two sides: Metal's Winograd kernel reads only one of them.
Must not know: how many blocks there are, latents' scales, files.
"""

from collections.abc import Callable
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from ..precision import VAE_DTYPE
from .activation import silu
from .attention import attend
from .linear import Linear
from .strips import Span, Strips

KERNEL = 3
Pointwise = Callable[[mx.array], mx.array]
Projections = tuple[mx.array, mx.array, mx.array]  # q, k, v


class Norm(Protocol):
    """Looks at a whole activation, and gives what to do to any of its rows."""

    def __call__(self, x: Strips) -> Pointwise: ...


def unchanged(x: mx.array) -> mx.array:
    return x


class Conv2d(nn.Module):
    """3x3, zero-padded by one on every side; or after doubling the picture (`upsample`); or with stride 2, padded at
    the right and the bottom only (`downsample`), as diffusers' autoencoders do."""

    def __init__(
        self, inputs: int, outputs: int, *, upsample: bool = False, downsample: bool = False, bias: bool = True
    ):
        super().__init__()
        self.weight = mx.zeros((outputs, KERNEL, KERNEL, inputs))
        if bias:
            self.bias = mx.zeros((outputs,))
        self._scale = 2 if upsample else 1
        self._stride = 2 if downsample else 1
        self._before = 0 if downsample else 1  # zero rows above and zero columns on the left

    def __call__(self, x: Strips, before: Pointwise = unchanged) -> Strips:
        """The whole output; x is given up on the way."""
        out = Strips(x.cut)
        for start, stop in self.spans(x):
            out.append(self.rows(x, start, stop, before))
            self.release(x, stop)
        return out

    def spans(self, x: Strips) -> list[Span]:
        """The output's strips."""
        return x.cut.spans(self._height(x), self.row_bytes(x))

    def release(self, x: Strips, stop: int) -> None:
        """Drops what no output row from `stop` on looks at."""
        x.drop_above(self._first(stop) // self._scale if stop < self._height(x) else x.height)

    def row_bytes(self, x: Strips) -> int:
        """Temporaries for one output row: every pixel's window, as the CPU gathers them, and the rows on their way
        there (with halo, normed, activated, padded). Metal takes about two thirds of it. A layer that widens is cut as
        finely as the layer that will read it, which could not give up its input piece by piece otherwise."""
        batch, _, width, inputs = x.shape
        channels = max(inputs, self.weight.shape[0])
        return batch * (width * self._scale // self._stride) * (KERNEL**2 + 4) * channels * VAE_DTYPE.size

    def rows(self, x: Strips, start: int, stop: int, before: Pointwise = unchanged) -> mx.array:
        """Output rows [start, stop); `before` is applied to the input's rows, ahead of the zero padding."""
        height = x.height * self._scale
        low, high = self._first(start), self._first(stop - 1) + KERNEL
        top, bottom = max(0, -low), max(0, high - height)
        y = before(self._source(x, low + top, high - bottom))
        columns = (0, 1) if self._stride == 2 else (1, 1)
        if top != bottom or columns[0] != columns[1]:
            y = mx.pad(y, [(0, 0), (top, bottom), columns, (0, 0)])
            top, columns = 0, (0, 0)
        out = mx.conv2d(y, self.weight, stride=self._stride, padding=(top, columns[0]))
        return out + self.bias if "bias" in self else out

    def _height(self, x: Strips) -> int:
        return x.height * self._scale // self._stride

    def _first(self, row: int) -> int:
        """The first row, in the doubled grid and possibly above the picture, that output row `row` looks at."""
        return row * self._stride - self._before

    def _source(self, x: Strips, low: int, high: int) -> mx.array:
        """Rows [low, high) of the (doubled) input."""
        if self._scale == 1:
            return x.rows(low, high)
        first = low // 2
        y = doubled(x.rows(first, (high + 1) // 2))
        return y[:, low - 2 * first : high - 2 * first]


def doubled(x: mx.array) -> mx.array:
    """[B, H, W, C] -> [B, 2 H, 2 W, C], each pixel four times, in one copy."""
    batch, height, width, channels = x.shape
    y = mx.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return y.reshape(batch, 2 * height, 2 * width, channels)


class GroupNorm(nn.Module):
    """Mean and variance over all rows of the picture, whatever strips they lie in."""

    def __init__(self, dims: int, groups: int, eps: float):
        super().__init__()
        self.weight = mx.zeros((dims,))
        self.bias = mx.zeros((dims,))
        self._groups = groups
        self._eps = eps

    def __call__(self, x: Strips) -> Pointwise:
        mean, variance = self._statistics(x)  # [B, 1, 1, G, 1]
        scale = mx.rsqrt(variance + self._eps) * self.weight.reshape(self._groups, -1)  # [B, 1, 1, G, C/G]
        shift = self.bias.reshape(self._groups, -1) - mean * scale
        batch = scale.shape[0]
        scale, shift = scale.reshape(batch, 1, 1, -1), shift.reshape(batch, 1, 1, -1)
        mx.eval(scale, shift)
        return lambda rows: rows * scale + shift

    def _statistics(self, x: Strips) -> tuple[mx.array, mx.array]:
        """Mean and variance of every picture row and channel first, then of those: all have W samples, so that the
        variance is the mean of the variances plus the variance of the means. It cannot depend on the strips, and no sum
        in float32 is longer than a row."""
        means, variances, pending_bytes = [], [], 0
        for part in x:
            mean = mx.mean(part, axis=2, keepdims=True)  # [B, h, 1, C]
            variance = mx.mean(mx.square(part - mean), axis=2, keepdims=True)
            means.append(mean)
            variances.append(variance)
            pending_bytes += 2 * part.nbytes
            if pending_bytes > x.cut.strip_bytes:  # several strips at a time: each evaluation makes a GPU wait
                mx.eval(means, variances)
                pending_bytes = 0
        mean, variance = self._grouped(means), self._grouped(variances)  # [B, H, 1, G, C/G]
        axes = (1, 4)
        whole = mx.mean(mean, axis=axes, keepdims=True)
        spread = mx.mean(mx.square(mean - whole), axis=axes, keepdims=True)
        return whole, mx.mean(variance, axis=axes, keepdims=True) + spread

    def _grouped(self, parts: list[mx.array]) -> mx.array:
        rows = mx.concatenate(parts, axis=1)
        return rows.reshape(*rows.shape[:-1], self._groups, -1)


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice, around a shortcut."""

    def __init__(self, norm: Callable[[int], nn.Module], inputs: int, outputs: int):
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = Conv2d(inputs, outputs)
        self.norm2 = norm(outputs)
        self.conv2 = Conv2d(outputs, outputs)
        if inputs != outputs:
            self.conv_shortcut = Linear(inputs, outputs)

    def __call__(self, x: Strips) -> Strips:
        """x is given up on the way: at no time are there more than two activations and one strip."""
        before = activated(self.norm1, x)
        h, skip = Strips(x.cut), Strips(x.cut) if "conv_shortcut" in self else x
        for start, stop in self.conv1.spans(x):
            h.append(self.conv1.rows(x, start, stop, before))
            if skip is not x:  # taken now, so that the wide input of a decoder's level can go
                skip.append(self.conv_shortcut(x.rows(start, stop)))
                self.conv1.release(x, stop)
        before = activated(self.norm2, h)
        out = Strips(x.cut)
        for start, stop in self.conv2.spans(h):
            out.append(self.conv2.rows(h, start, stop, before) + skip.rows(start, stop))
            skip.drop_above(stop)
        return out


def activated(norm: Norm, x: Strips) -> Pointwise:
    """norm, then SiLU"""
    normed = norm(x)
    return lambda rows: silu(normed(rows))


def self_attention(x: Strips, project: Callable[[mx.array], Projections], output: Pointwise) -> Strips:
    """One head over all pixels, added to x. The head is as wide as the activation, too wide for mx.fast to fuse,
    so that all scores [N, N] would be held at once (17 GB for a 2048x2048 picture): a few rows of queries at a time."""
    q, keys, values = _projected(x, project)
    batch, height, width, channels = x.shape
    out = Strips(x.cut)
    for start, stop in x.cut.spans(height, batch * width * (height * width) * VAE_DTYPE.size):
        y = attend(_tokens(q.rows(start, stop)), keys, values).reshape(batch, stop - start, width, channels)
        out.append(output(y) + x.rows(start, stop))
        x.drop_above(stop)
    return out


def _projected(x: Strips, project: Callable[[mx.array], Projections]) -> tuple[Strips, mx.array, mx.array]:
    """Queries in strips, keys and values of all pixels, [B, 1, N, C]."""
    q, k, v = Strips(x.cut), Strips(x.cut), Strips(x.cut)
    for part in x:
        for strips, rows in zip((q, k, v), project(part), strict=True):
            strips.append(rows)
    keys, values = _tokens(k.joined()), _tokens(v.joined())
    mx.eval(keys, values)
    return q, keys, values


def _tokens(x: mx.array) -> mx.array:
    """[B, h, W, C] -> [B, 1, h W, C]"""
    batch, height, width, channels = x.shape
    return x.reshape(batch, 1, height * width, channels)
