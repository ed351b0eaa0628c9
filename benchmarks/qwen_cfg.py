"""Qwen-Image's two branches of guidance: one batch of two against two passes, in turns, and what each adds to memory.

Two blocks at the real width, a prompt of 64 tokens against a negative one of 12 (so that the batch pads and masks), for
a small and a medium picture. One batch reads every weight once per step, two passes read it twice, which matters for
small pictures; apart from the padding the arithmetic is the same.
"""

import statistics
from collections.abc import Sequence

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx
from blocks import DIMS, DOUBLE, draw, qwen_config
from turns import added_bytes, in_turns, spread

from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.denoiser import padded
from mlx_imagegen.families.qwen_image.positions import positions
from mlx_imagegen.families.qwen_image.transformer import Modulation, QwenImageTransformer
from mlx_imagegen.layers.rope import rope_table

PROMPT, NEGATIVE = 64, 12
SIDES = (16, 32)  # tokens: 256 and 512 pixels


def main(rounds: int = 5, sides: Sequence[int] = SIDES) -> dict[str, float]:
    config = qwen_config()
    transformer = QwenImageTransformer(config)
    draw(transformer)
    modulation = Modulation(*(mx.random.normal((*shape, DIMS)) for shape in ((DOUBLE, 6), (DOUBLE, 6), (2,))))
    mx.eval(modulation.img, modulation.txt, modulation.out)
    return {f"{side**2} tokens": _compare(transformer, modulation, config, side, rounds) for side in sides}


def _compare(
    transformer: QwenImageTransformer, modulation: Modulation, config: QwenImageConfig, side: int, rounds: int
) -> float:
    prompts = [mx.random.normal((1, length, config.joint_attention_dim)) for length in (PROMPT, NEGATIVE)]
    ropes = [rope_table(positions(txt.shape[1], [(side, side)]), config.axes_dims_rope, 1e4) for txt in prompts]
    x = mx.random.normal((1, side**2, config.in_channels))
    mx.eval(x, prompts, ropes)

    def batch() -> list[mx.array]:
        txt, mask = padded(prompts, x.shape[1])
        v = transformer(mx.concatenate([x, x]), txt, ropes[0], modulation, 0, mask)
        mx.eval(v)
        return [v[:1], v[1:]]

    def passes() -> list[mx.array]:
        out = []
        for txt, rope in zip(prompts, ropes, strict=True):
            out.append(transformer(x, txt, rope, modulation))
            mx.eval(out[-1])
        return out

    ways = {"one batch": batch, "two passes": passes}
    difference = max(float(mx.abs(a - b).max()) for a, b in zip(batch(), passes(), strict=True))
    peaks = {name: added_bytes(way) for name, way in ways.items()}
    seconds = in_turns(ways, rounds)
    print(f"Qwen-Image, {DOUBLE} blocks, {side**2} image tokens, prompts of {PROMPT} and {NEGATIVE} tokens, float32")
    for name, values in seconds.items():
        print(f"  {name:10s} {spread(values)}   adds {peaks[name] / 1e6:7.1f} MB")
    ratio = statistics.median(seconds["one batch"]) / statistics.median(seconds["two passes"])
    print(f"  ratio      {ratio:.3f}; largest difference of the velocities {difference:.1e}", flush=True)
    return ratio


if __name__ == "__main__":
    main()
