"""The gated delta rule: attention whose memory is one matrix a head, of a fixed size.

A token decays the memory, takes out what its key reads there, and writes its value in the place of it; its query reads
the result. Token by token that is a loop; in chunks it is products: what the tokens of a chunk take from one another is
the inverse of a triangular matrix.
In: queries, keys and values [B, H, L, D] in float32. Out: what they read, and the memory after them.
Must not know: projections, layers, caches of other kinds.
"""

import mlx.core as mx

CHUNK = 64  # tokens; a power of two


def gated_delta(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, memory: mx.array
) -> tuple[mx.array, mx.array]:
    """`decay`: the logarithm of what is kept, [B, H, L]; `beta`: how much of a value is written. `memory`: [B, H, Dk,
    Dv], before and after."""
    length, size = q.shape[2], CHUNK if q.shape[2] > 1 else 1
    q, k, v, decay, beta = (_chunked(each, size) for each in (q, k, v, decay[..., None], beta[..., None]))
    summed = mx.cumsum(decay[..., 0], axis=-1)  # [B, H, N, C]
    places = mx.arange(size)
    between = mx.where(places[:, None] >= places, summed[..., :, None] - summed[..., None, :], -mx.inf)
    kept, since_start = mx.exp(between), mx.exp(summed)[..., None]
    to_end, whole = mx.exp(summed[..., -1:] - summed)[..., None], mx.exp(summed[..., -1])[..., None, None]
    inverse = unit_lower_inverse((k * beta) @ k.swapaxes(-1, -2) * kept)
    written, removed = inverse @ (v * beta), inverse @ (k * beta * since_start)
    seen, q, k = q @ k.swapaxes(-1, -2) * kept, q * since_start, k * to_end
    out = []
    for chunk in range(q.shape[2]):
        new = written[:, :, chunk] - removed[:, :, chunk] @ memory
        out.append(q[:, :, chunk] @ memory + seen[:, :, chunk] @ new)
        memory = memory * whole[:, :, chunk] + k[:, :, chunk].swapaxes(-1, -2) @ new
    return mx.concatenate(out, axis=2)[:, :, :length], memory


def _chunked(x: mx.array, size: int) -> mx.array:
    """[B, H, L, D] -> [B, H, N, C, D]; a chunk that is not full ends in tokens that do nothing."""
    batch, heads, length, dims = x.shape
    return mx.pad(x, [(0, 0), (0, 0), (0, -length % size), (0, 0)]).reshape(batch, heads, -1, size, dims)


def unit_lower_inverse(x: mx.array) -> mx.array:
    """Of the lower triangle of [..., C, C] with ones on its diagonal, C a power of two: of blocks on the diagonal, from
    which those of twice the side follow. As exact as substitution, in log2(C) products."""
    *outer, _, side = x.shape
    inverse, size = mx.ones((*outer, side, 1, 1)), 1
    while size < side:
        blocks = x.reshape(*outer, side // (2 * size), 2 * size, side // (2 * size), 2 * size)
        diagonal = mx.moveaxis(mx.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)  # [..., side / 2 size, 2 size, 2 size]
        pairs = inverse.reshape(*outer, -1, 2, size, size)
        upper, lower = pairs[..., 0, :, :], pairs[..., 1, :, :]
        corner = -(lower @ diagonal[..., size:, :size] @ upper)
        rows = [mx.concatenate(row, axis=-1) for row in ([upper, mx.zeros_like(upper)], [corner, lower])]
        inverse, size = mx.concatenate(rows, axis=-2), 2 * size
    return inverse.reshape(*outer, side, side)
