"""HiDream-O1: what keeping the prompt's keys and values saves per step, and memory per layer and of the whole model.

Three tables. Seconds: a step on the image tokens alone against the whole sequence under a dense mask, as upstream runs
it, with the token counts of 1024x1024, in turns, on 2 of the 36 layers at a fourth of the real width. The small layers
at both ends are left out: they are the same in both, and would weigh too much next to two layers.
Memory: real layers at full width, packed to 4 bits, added one at a time. Prediction: the published files' shapes under
each recipe, next to the peaks that others measured on a Mac (512x512 to 1024x1024, RSS).
"""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx
import numpy as np
from turns import in_turns, spread

from mlx_imagegen.families.hidream_o1.config import HiDreamConfig, PixelConfig, open_config
from mlx_imagegen.families.hidream_o1.files import check
from mlx_imagegen.families.hidream_o1.tokens import positions
from mlx_imagegen.families.hidream_o1.transformer import HiDreamTransformer
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.tensors import name_tensors
from mlx_imagegen.loading.weights import WeightTransforms, layers, own_parameters
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.text.qwen import QwenConfig, mrope

SHAPES = Path(__file__).parents[1] / "tests" / "data" / "hidream_o1" / "recorded" / "full_size.json"
GRID = (32, 32)  # 1024x1024
PUBLISHED_GB = {"q4": 6.0, "q6": 8.5, "q8": 11.5}
PACKED = Packing(4, 64)
GB = 1e9


def main(rounds: int = 7) -> dict[str, float]:
    return {**prediction_table(), **prefix_table(rounds), **memory_table()}


def prefix_table(rounds: int) -> dict[str, float]:
    """A step with the prefix kept, against the whole sequence again."""
    ratios = {}
    config = _config(width=1024, depth=2)
    transformer = _drawn(config, None)
    for words in (30, 300):
        kept, whole, difference = _two_ways(transformer, config, words)  # runs both once
        seconds = in_turns({"kept": kept, "whole": whole}, rounds)
        ratio = statistics.median(seconds["kept"]) / statistics.median(seconds["whole"])
        tokens = math.prod(GRID) + 1
        print(f"  step, prompt of {words} tokens, {tokens} image tokens, width 1024, 2 layers, float32")
        for name, values in seconds.items():
            print(f"    {name:6s} {spread(values)}")
        print(f"    largest difference of the two results {difference:.1e}")
        best = min(seconds["kept"]) / min(seconds["whole"])  # on a busy machine the steadier one
        print(f"    ratio  {ratio:.3f} of medians, {best:.3f} of minima   (tokens: {tokens / (tokens + words):.3f})")
        ratios[f"prefix_{words}"] = ratio
    return ratios


def memory_table() -> dict[str, float]:
    """Layers at full width: what each adds to the peak, against its packed weights."""
    peaks, packed = [], 0.0
    print("  peak of a step at 1024x1024's tokens, width 4096, 4-bit layers, float32 activations")
    for depth in (2, 3):
        config = _config(width=4096, depth=depth)
        transformer = _drawn(config, PACKED)
        held = mx.get_active_memory()
        kept, _, _ = _two_ways(transformer, config, 30, compare=False)
        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval(kept())
        peaks.append(mx.get_peak_memory())
        packed = _bytes(transformer.language_model.layers[0])
        print(f"    {depth} layers: held {held / 1e6:7.1f} MB   peak {peaks[-1] / 1e6:7.1f} MB")
        del transformer, kept
    added = peaks[1] - peaks[0]
    ratio = added / packed
    print(
        f"    a layer more: {added / 1e6:.1f} MB of peak; its packed weights {packed / 1e6:.1f} MB; ratio {ratio:.3f}"
    )
    return {"layer_peak": ratio}


def prediction_table() -> dict[str, float]:
    """Weights by the recipes, and the largest activations of a step, in bf16 as on a GPU."""
    data = json.loads(SHAPES.read_text())
    where = Path("HiDream-O1-Image")
    tensors = {
        name: Tensor(where / "model.safetensors", name, "F32", tuple(shape), 0, 4 * math.prod(shape))
        for name, shape in data["shapes"].items()
    }
    out = {}
    print(
        "  predicted resident memory, 1024x1024, prompt of 300 tokens with a second branch, in GB (published "
        "peak next to it)"
    )
    for recipe, published in PUBLISHED_GB.items():
        named = name_tensors("transformer", Checkpoint(tensors, [], where), config=data["config"])
        config = open_config(
            data["config"], where / "config.json", named, {"<|boi_token|>": 1, "<|tms_token|>": 2}.__getitem__
        )
        weights = check(config, named, read_recipe(recipe, "hidream_o1").applied_to(WeightTransforms()))
        component = Component(weights, lambda config=config: HiDreamTransformer(config), mx.bfloat16, "model")
        held, more = component.nbytes / GB, _activations(config, 2 * 300) / GB
        print(f"    {recipe}: weights {held:.2f} + step {more:.2f} = {held + more:.2f}   ({published})")
        out[f"{recipe}_gb"] = held + more
        assert held + more < published
    return out


def _activations(config: HiDreamConfig, kept_tokens: int) -> int:
    """The most that a step holds next to the weights: both branches' prefixes, the float32 stream twice, and the larger
    of a layer's two halves; the MLP's gate, up and their product, in bf16 with one in float32 on the way."""
    text, tokens = config.text, math.prod(GRID) + 1
    prefix = kept_tokens * text.num_hidden_layers * 2 * text.num_key_value_heads * text.head_size * 2
    stream = 2 * tokens * text.hidden_size * 4
    mlp = tokens * text.intermediate_size * (3 * 2 + 4)
    pixels = 6 * math.prod(GRID) * config.patch.patch_size**2 * 3 * 4  # x, the solver's memory and its output
    return prefix + stream + mlp + pixels


def _config(width: int, depth: int) -> HiDreamConfig:
    text = QwenConfig(
        model_type="qwen3_vl_text", hidden_size=width, intermediate_size=3 * width, num_attention_heads=width // 128,
        num_hidden_layers=depth, num_key_value_heads=width // 512, rms_norm_eps=1e-6, rope_theta=5e6,
        mrope_section=(24, 20, 20), vocab_size=1000, head_dim=128,
    )  # fmt: skip
    return HiDreamConfig(text, {}, PixelConfig(patch_size=32, bottleneck_dim=1024), image_token=999, boi=998, tms=997)


def _drawn(config: HiDreamConfig, packing: Packing | None) -> HiDreamTransformer:
    """Random weights, the decoder's packed where asked, layer by layer."""
    transformer = HiDreamTransformer(config)
    for path, layer in layers(transformer):
        for name, value in own_parameters(layer).items():
            scale = value.shape[-1] ** -0.5 if value.ndim == 2 else 0.1
            layer[name] = mx.random.normal(value.shape) * scale + (1.0 if value.ndim == 1 and "norm" in path else 0.0)
        if packing and isinstance(layer, Linear) and "language_model" in path:
            parts = mx.quantize(layer.weight, packing.group_size, packing.bits)
            layer.pack(packing)
            layer.weight, layer.scales, layer.biases = parts
        mx.eval(layer.parameters())
    mx.clear_cache()
    return transformer


def _two_ways(
    transformer: HiDreamTransformer, config: HiDreamConfig, words: int, compare: bool = True
) -> tuple[Callable[[], mx.array], Callable[[], mx.array], float]:
    """A step with the prefix kept, the whole sequence under a mask, and how far they are apart."""
    where = positions([5] * (words + 1), config, GRID)
    cos, sin = mrope(where, config.text)
    txt = mx.random.normal((1, words, config.text.hidden_size))
    z = mx.random.normal((1, math.prod(GRID), 3 * config.patch.patch_size**2))
    prefix = transformer.prefix(txt, (cos[:words], sin[:words]))
    rope = cos[words:], sin[words:]
    length = where.shape[1]
    seen = np.tril(np.ones((length, length), bool))
    seen[words:] = True
    mask = mx.array(seen)
    mx.eval(txt, z, prefix, rope, mask)

    x = mx.concatenate([txt, transformer.time(515.0), transformer.embed(z)], axis=1)
    mx.eval(x)

    def kept() -> mx.array:
        return transformer.language_model(x[:, words:], rope, mask=None, prefix=prefix)

    def whole() -> mx.array:
        return transformer.language_model(x, (cos, sin), mask=mask)[:, words:]

    difference = float(mx.max(mx.abs(kept() - whole()))) if compare else 0.0
    return kept, whole, difference


def _bytes(module: HiDreamTransformer) -> int:
    return sum(value.nbytes for _, layer in layers(module) for value in own_parameters(layer).values())


if __name__ == "__main__":
    main()
