"""Qwen-Image-2.1 at the real width: blocks against their products, steps with a kept prefix, the decoder's memory.

A step with the prefix kept is compared with one that computes it again.

The blocks and their products take turns in one run, and so do the two ways of a step; CPU, float32, random weights.
"""

import statistics
from collections.abc import Callable

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx
from blocks import draw
from turns import added_bytes, in_turns, spread

from mlx_imagegen.autoencoders.qwen_image_21 import Decoder, VaeConfig
from mlx_imagegen.families.qwen_image_21.config import QwenImage21Config
from mlx_imagegen.families.qwen_image_21.sequence import Segments, length_of, positions
from mlx_imagegen.families.qwen_image_21.transformer import Modulation, QwenImage21Transformer
from mlx_imagegen.layers.patches import Grid
from mlx_imagegen.layers.rope import rope_table

BLOCKS, TARGET, TEXT, REFERENCE = 2, (16, 16), 64, (32, 32)  # pictures' sides in tokens
CONFIG = QwenImage21Config(
    attention_head_dim=128, context_in_dim=4096, in_channels=64, mlp_ratio=3, num_attention_heads=32, num_layers=BLOCKS,
    out_channels=64,
)  # fmt: skip
# The published vae/config.json, but for the latents' means and deviations, which cost nothing.
VAE = VaeConfig(
    base_dim=96, decoder_base_dim=144, z_dim=64, dim_mult=(1, 2, 4, 8, 8), num_res_blocks=2,
    temperal_downsample=(False, True, True, True), latents_mean=(0.0,) * 64, latents_std=(1.0,) * 64,
)  # fmt: skip


def main(rounds: int = 5, side: int = 256) -> dict[str, float]:
    transformer = QwenImage21Transformer(CONFIG)
    draw(transformer)
    ratio = _against_products(transformer, (TEXT,), rounds)
    gain = _against_recomputing(transformer, (TEXT // 2, REFERENCE, TEXT // 2), rounds)
    return {"blocks by products": ratio, "recomputed by kept": gain, "decoder's MB": _decoder_megabytes(side)}


def _against_products(transformer: QwenImage21Transformer, segments: Segments, rounds: int) -> float:
    step, tokens, keys = _step(transformer, segments), length_of(TARGET), sum(map(length_of, (*segments, TARGET)))
    dims, inner = CONFIG.inner_dim, CONFIG.mlp_ratio * CONFIG.inner_dim
    one = [*[(dims, dims)] * 4, (dims, inner), (dims, inner), (inner, dims)]
    shapes = [(CONFIG.in_channels, dims), *one * BLOCKS, (dims, CONFIG.out_channels)]
    pairs = [(mx.random.normal((1, tokens, k)), mx.random.normal((n, k))) for k, n in shapes]
    heads, head = CONFIG.num_attention_heads, CONFIG.attention_head_dim
    q, k = (mx.random.normal((1, heads, count, head)) for count in (tokens, keys))
    scores = mx.random.normal((1, heads, tokens, keys))
    mx.eval(pairs, q, k, scores)

    def products() -> list[mx.array]:
        attention = [out for _ in range(BLOCKS) for out in (q @ k.swapaxes(-1, -2), scores @ k)]
        return [*(x @ w.T for x, w in pairs), *attention]

    return _timed(f"{BLOCKS} blocks, {tokens} tokens, {keys - tokens} before them", step, products, rounds, "products")


def _against_recomputing(transformer: QwenImage21Transformer, segments: Segments, rounds: int) -> float:
    kept, again = _step(transformer, segments), _step(transformer, segments, keep=False)
    before = sum(map(length_of, segments))
    return 1 / _timed(f"a step, {before} tokens before the picture", kept, again, rounds, "computed again")


def _timed(title: str, step: Callable[[], mx.array], other: Callable[[], object], rounds: int, name: str) -> float:
    ways = {"step": step, name: other}
    in_turns(ways, 1)  # warm up
    seconds = in_turns(ways, rounds)
    ratio = statistics.median(seconds["step"]) / statistics.median(seconds[name])
    print(f"{title}, width {CONFIG.inner_dim}, float32")
    for each, values in seconds.items():
        print(f"  {each:14s} {spread(values)}")
    print(f"  ratio          {ratio:.3f}", flush=True)
    return ratio


def _step(transformer: QwenImage21Transformer, segments: Segments, keep: bool = True) -> Callable[[], mx.array]:
    dims = CONFIG.inner_dim
    modulation = Modulation(mx.random.normal((4, dims)), mx.random.normal((dims,)))
    pictures = sum(length_of(segment) for segment in segments if not isinstance(segment, int))
    words = sum(segment for segment in segments if isinstance(segment, int))
    txt, x = mx.random.normal((1, words, CONFIG.context_in_dim)), mx.random.normal((1, length_of(TARGET), 64))
    references = mx.random.normal((1, pictures, 64)) if pictures else None
    target: Grid = TARGET
    rope, length = rope_table(positions((*segments, target)), CONFIG.axes_dims_rope, 1e4), words + pictures

    def prefix() -> list[tuple[mx.array, mx.array]]:
        return transformer.prefix(txt, references, segments, rope[:length], modulation)

    own, made = rope[length:], prefix()
    mx.eval(own, modulation, x, made)
    return lambda: transformer(x, own, made if keep else prefix(), modulation)


def _decoder_megabytes(side: int) -> float:
    decoder = Decoder(VAE)
    draw(decoder)
    latents = mx.random.normal((1, VAE.z_dim, side // 16, side // 16))
    added = added_bytes(lambda: decoder.decode(latents)) / 1e6
    print(f"the decoder, {side}x{side} pixels: adds {added:.0f} MB", flush=True)
    return added


if __name__ == "__main__":
    main()
