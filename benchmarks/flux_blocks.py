"""FLUX.1 blocks at the real width against their matrix products alone: same BLAS, same shapes, one run, in turns.

What the ratio tells: how much norms, rope, softmax, modulation and copies cost on top of the arithmetic nobody can avoid.
"""

import statistics
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from mlx_imagegen.flux.config import FluxConfig
from mlx_imagegen.flux.transformer import FluxTransformer, Modulation
from mlx_imagegen.layers.rope import rope_tables
from mlx_imagegen.loading import layers, own_parameters

IMAGE_TOKENS, TEXT_TOKENS, HEADS, HEAD_DIM = 256, 64, 24, 128
DIMS = HEADS * HEAD_DIM
DOUBLE, SINGLE = 2, 4


def main(rounds: int = 7) -> float:
    stack, products = _stack(), _products()
    seconds: dict[str, list[float]] = {"blocks": [], "products": []}
    stack(), products()  # warm up
    for _ in range(rounds):
        seconds["products"].append(_timed(products))
        seconds["blocks"].append(_timed(stack))
    ratio = statistics.median(seconds["blocks"]) / statistics.median(seconds["products"])
    print(
        f"FLUX.1 {DOUBLE} double + {SINGLE} single blocks, width {DIMS}, {IMAGE_TOKENS}+{TEXT_TOKENS} tokens, float32"
    )
    for name, values in seconds.items():
        print(
            f"  {name:9s} median {statistics.median(values):6.3f} s   min {min(values):6.3f}   max {max(values):6.3f}"
        )
    print(f"  ratio     {ratio:.3f}")
    return ratio


def _stack() -> Callable[[], mx.array]:
    config = FluxConfig(
        attention_head_dim=HEAD_DIM, guidance_embeds=False, in_channels=64, joint_attention_dim=4096,
        num_attention_heads=HEADS, num_layers=DOUBLE, num_single_layers=SINGLE, pooled_projection_dim=768,
    )  # fmt: skip
    transformer = FluxTransformer(config)
    for _, layer in layers(transformer):
        for name, value in own_parameters(layer).items():
            layer[name] = mx.random.normal(value.shape) * 0.02
            mx.eval(layer[name])
    rows, columns = np.mgrid[0:16, 0 : IMAGE_TOKENS // 16]
    image = np.stack([0 * rows, rows, columns], -1).reshape(-1, 3)
    rope = rope_tables(np.concatenate([np.zeros((TEXT_TOKENS, 3)), image]), config.axes_dims_rope, 1e4)
    mod = Modulation(*(mx.random.normal((*shape, DIMS)) for shape in ((DOUBLE, 6), (DOUBLE, 6), (SINGLE, 3), (2,))))
    x, txt = mx.random.normal((1, IMAGE_TOKENS, 64)), mx.random.normal((1, TEXT_TOKENS, 4096))
    mx.eval(x, txt, rope, mod)
    return lambda: transformer(x, txt, rope, mod)


def _products() -> Callable[[], list[mx.array]]:
    """Every matrix product of the stack, attention's two included, on matrices of the same shapes."""
    tokens = IMAGE_TOKENS + TEXT_TOKENS
    shapes = [(count, DIMS, DIMS) for count in (IMAGE_TOKENS, TEXT_TOKENS) for _ in range(4 * DOUBLE)]
    for count in (IMAGE_TOKENS, TEXT_TOKENS):
        shapes += [(count, DIMS, 4 * DIMS), (count, 4 * DIMS, DIMS)] * DOUBLE
    shapes += [*[(tokens, DIMS, DIMS)] * 3, (tokens, DIMS, 4 * DIMS), (tokens, 5 * DIMS, DIMS)] * SINGLE
    shapes += [(IMAGE_TOKENS, 64, DIMS), (TEXT_TOKENS, 4096, DIMS), (IMAGE_TOKENS, DIMS, 64)]
    pairs = [(mx.random.normal((1, m, k)), mx.random.normal((n, k))) for m, k, n in shapes]
    heads = [mx.random.normal((1, HEADS, tokens, HEAD_DIM)) for _ in range(2 * (DOUBLE + SINGLE))]
    scores = mx.random.normal((1, HEADS, tokens, tokens))
    mx.eval(pairs, heads, scores)
    half = len(heads) // 2
    return lambda: [
        *(x @ w.T for x, w in pairs),
        *(q @ q.swapaxes(-1, -2) for q in heads[:half]),
        *(scores @ v for v in heads[half:]),
    ]


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    mx.eval(function())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
