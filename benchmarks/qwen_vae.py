"""Qwen-Image's decoder with 2-D convolutions, as in this library, against the 3-D ones in its files, for one picture.

Both variants have the same random weights and take turns. The 3-D one is the same decoder with every 3x3 convolution
that is 3-D on disk as a causal 3x3x3 one, with two frames of zeros before the picture, as in diffusers. The other time
slices of the weights only meet those zeros, so both variants give the same picture.
"""

import statistics
from collections.abc import Callable
from typing import Any

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx
from blocks import draw
from turns import added_bytes, in_turns, spread

from mlx_imagegen.autoencoders.qwen_image import Decoder, VaeConfig
from mlx_imagegen.layers.conv import Conv2d, Pointwise, unchanged
from mlx_imagegen.layers.strips import Strips
from mlx_imagegen.loading.weights import layers, own_parameters

# The published vae/config.json, but for the latents' means and deviations, which cost nothing.
CONFIG = VaeConfig(
    base_dim=96, z_dim=16, dim_mult=(1, 2, 4, 4), num_res_blocks=2, temperal_downsample=(False, True, True),
    latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16,
)  # fmt: skip
SIDE = 256  # pixels
FRAMES = 3  # the kernel's depth


def main(rounds: int = 3, side: int = SIDE) -> float:
    decoder = Decoder(CONFIG)
    draw(decoder)
    flat_bytes = sum(value.nbytes for _, layer in layers(decoder) for value in own_parameters(layer).values())
    latents = mx.random.normal((1, CONFIG.z_dim, side // 8, side // 8))
    deep = _deep_weights(decoder)
    deep_bytes = flat_bytes + sum(value.nbytes * (FRAMES - 1) // FRAMES for value in deep.values())
    ways: dict[str, Callable[[], mx.array]] = {
        "2-D": lambda: decoder.decode(latents),
        "3-D": lambda: _with_deep(deep, lambda: decoder.decode(latents)),
    }
    difference = float(mx.abs(ways["2-D"]() - ways["3-D"]()).max())
    peaks = {name: added_bytes(way) for name, way in ways.items()}
    seconds = in_turns(ways, rounds)
    print(f"Qwen-Image's decoder, {side}x{side} pixels, float32")
    for (name, values), weights in zip(seconds.items(), (flat_bytes, deep_bytes), strict=True):
        sizes = f"weights {weights / 1e6:5.0f} MB   adds {peaks[name] / 1e6:6.0f} MB"
        print(f"  {name}   {spread(values)}   {sizes}")
    ratio = statistics.median(seconds["2-D"]) / statistics.median(seconds["3-D"])
    print(f"  ratio {ratio:.3f}; largest difference of the pixels {difference:.1e}", flush=True)
    return ratio


def _deep_weights(decoder: Decoder) -> dict[int, mx.array]:
    """[out, 3, 3, 3, in] for every convolution that is 3-D on disk: its own weight as the last time slice, noise before
    it. Those that double the picture are 2-D on disk too."""
    out = {}
    for _, layer in layers(decoder):
        if isinstance(layer, Conv2d) and layer._scale == 1:
            rows, height, width, columns = layer.weight.shape
            earlier = mx.random.normal((rows, FRAMES - 1, height, width, columns))
            out[id(layer)] = mx.concatenate([earlier, layer.weight[:, None]], axis=1)
            mx.eval(out[id(layer)])
    return out


def _with_deep(deep: dict[int, mx.array], run: Callable[[], Any]) -> Any:
    flat = Conv2d.rows

    def rows(self: Conv2d, x: Strips, start: int, stop: int, before: Pointwise = unchanged) -> mx.array:
        if id(self) not in deep:
            return flat(self, x, start, stop, before)
        top, bottom = max(0, 1 - start), max(0, stop + 1 - x.height)
        y = before(x.rows(start - 1 + top, stop + 1 - bottom))
        frames = mx.pad(y[:, None], [(0, 0), (FRAMES - 1, 0), (top, bottom), (1, 1), (0, 0)])  # [B, 3, h, w, C]
        return mx.conv3d(frames, deep[id(self)])[:, 0] + self.bias

    Conv2d.rows = rows  # type: ignore[method-assign]
    try:
        return run()
    finally:
        Conv2d.rows = flat  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
