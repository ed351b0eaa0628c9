"""Kernel launches and bytes of a step on a GPU, outside products and attention, for each family and its peers.

Counted in MLX's graph at real width and 1024x1024, by the rules of peers/mlx_graph.py. Nothing is computed, so it takes
seconds on any machine. bfloat16, one branch; packed: every linear layer of the blocks at 4 bits. Peers are counted if
their environments exist (peers/setup.py): mflux by the same rules, diffusers by PyTorch's operations.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "peers")]

import mlx_graph

if __name__ == "__main__":
    mlx_graph.pretend_gpu()  # before any model is imported

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.families.flux1.transformer import Modulation as FluxModulation
from mlx_imagegen.families.flux2.config import Flux2Config
from mlx_imagegen.families.flux2.transformer import Flux2Transformer
from mlx_imagegen.families.flux2.transformer import Modulation as Flux2Modulation
from mlx_imagegen.families.flux3.config import Flux3Config
from mlx_imagegen.families.flux3.transformer import IMAGE, TEXT, Flux3Transformer
from mlx_imagegen.families.flux3.transformer import Modulation as Flux3Modulation
from mlx_imagegen.families.hidream_o1.config import HiDreamConfig, PixelConfig
from mlx_imagegen.families.hidream_o1.transformer import HiDreamTransformer
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.transformer import Modulation as QwenModulation
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.families.qwen_image_21.config import QwenImage21Config
from mlx_imagegen.families.qwen_image_21.transformer import Modulation as QwenImage21Modulation
from mlx_imagegen.families.qwen_image_21.transformer import QwenImage21Transformer
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.transformer import Modulation as ZImageModulation
from mlx_imagegen.families.z_image.transformer import ZImageTransformer
from mlx_imagegen.layers.linear import Linear, Packing
from mlx_imagegen.layers.stacked import stack_layers
from mlx_imagegen.loading.modules import layers, own_parameters
from mlx_imagegen.text.qwen import read_config

Q4 = Packing(4, 64)
PEERS = {"mflux": HERE / "peers" / "cost_of_mflux.py", "diffusers": HERE / "peers" / "cost_of_diffusers.py"}


class Step(NamedTuple):
    model: nn.Module
    run: Callable[[Any], mx.array]  # from the inputs
    inputs: Any  # a tree of arrays


def main() -> None:
    parser = argparse.ArgumentParser(prog="step_cost", description=__doc__)
    parser.add_argument("family", nargs="*", choices=[[], *STEPS], help="all, if none is named")
    parser.add_argument("--json", action="store_true", help="ours alone, as JSON")
    parser.add_argument("--kinds", action="store_true", help="each kind of operation in a row of its own")
    parser.add_argument("--float16", action="store_true", help="ours in float16, for families that take it")
    options = parser.parse_args()
    dtype = mx.float16 if options.float16 else mx.bfloat16
    costs = {family: ours(family, dtype) for family in options.family or STEPS}
    if options.json:
        print(json.dumps({f: {name: vars(cost) for name, cost in both.items()} for f, both in costs.items()}))
        return
    print(f"{'':24}{'launches':>9}{'GB':>8}{'TFLOP':>8}{'attention':>10}")
    for family, both in costs.items():
        for name, cost in both.items():
            _print_row(f"{family}, {name}", cost)
            for kind, (launches, moved) in sorted(cost.kinds.items()) if options.kinds else []:
                print(f"  {kind:22}{launches:9}{moved / 1e9:8.2f}")
        for peer, cost in _peers(family).items():
            _print_row(f"  {peer}", cost)


def ours(family: str, dtype: mx.Dtype = mx.bfloat16) -> dict[str, mlx_graph.Cost]:
    return {name: cost_of(STEPS[family](), packing, dtype) for name, packing in (("dense", None), ("packed", Q4))}


def cost_of(step: Step, packing: Packing | None, dtype: mx.Dtype = mx.bfloat16) -> mlx_graph.Cost:
    places: list[tuple[dict[str, Any], str]] = []  # of the weights
    for _, layer in layers(step.model):
        if packing and isinstance(layer, Linear) and layer.weight.shape[1] % packing.group_size == 0:
            layer.pack(packing)
        for name, value in own_parameters(layer).items():
            layer[name] = mx.zeros(value.shape, value.dtype if value.dtype == mx.uint32 else dtype)
            places.append((layer, name))
    for each in stack_layers(step.model):  # as loading does on a GPU
        for name, value in each.arrays.items():
            each.arrays[name] = mx.zeros(value.shape, value.dtype)
            places.append((each.arrays, name))
    inputs = tree_map(lambda x: x.astype(dtype) if x.dtype == mx.bfloat16 else x, step.inputs)
    names, arrays = zip(*tree_flatten([[layer[name] for layer, name in places], inputs]), strict=True)

    def run(*given: mx.array) -> mx.array:
        weights, inputs = tree_unflatten(list(zip(names, given, strict=True)))
        for (layer, name), weight in zip(places, weights, strict=True):
            layer[name] = weight
        return step.run(inputs)

    return mlx_graph.count(run, arrays)


def flux1() -> Step:
    config = FluxConfig(
        attention_head_dim=128, guidance_embeds=True, in_channels=64, joint_attention_dim=4096, num_attention_heads=24,
        num_layers=19, num_single_layers=38, pooled_projection_dim=768,
    )  # fmt: skip
    model, dims = FluxTransformer(config), config.inner_dim
    rows = {"img": (19, 6, dims), "txt": (19, 6, dims), "single": (38, 3, dims), "out": (2, dims)}
    inputs = _inputs((4096, 64), (512, 4096), 4608, config.attention_head_dim, rows)
    return Step(
        model, lambda given: model(given["x"], given["txt"], given["rope"], FluxModulation(**given["rows"])), inputs
    )


def flux2() -> Step:
    """klein 4B."""
    config = Flux2Config(
        attention_head_dim=128, axes_dims_rope=(32, 32, 32, 32), guidance_embeds=False, in_channels=128,
        joint_attention_dim=7680, num_attention_heads=24, num_layers=5, num_single_layers=20, rope_theta=2000.0,
    )  # fmt: skip
    model, dims = Flux2Transformer(config), config.inner_dim
    rows = {"img": (6, dims), "txt": (6, dims), "single": (3, dims), "out": (2, dims)}
    inputs = _inputs((4096, 128), (512, 7680), 4608, config.attention_head_dim, rows)
    return Step(
        model, lambda given: model(given["x"], given["txt"], given["rope"], Flux2Modulation(**given["rows"])), inputs
    )


def flux3() -> Step:
    """klein's base, whose text passes its own blocks once; without references."""
    config = Flux3Config(
        attention_head_dim=128, axes_dims_rope=(32, 32, 32, 32), cond_in_channels=128, flow_map=False, in_channels=128,
        joint_attention_dim=20480, num_attention_heads=24, num_layers=5, num_single_layers=28, rope_theta=1e4,
    )  # fmt: skip
    model, dims = Flux3Transformer(config), config.inner_dim
    del model.mode_blocks["image_cond"], model.txt_mode_blocks, model.context_embedder
    rows = {"own": (3, dims), "txt": (3, dims), "image": (3, dims), "out": (2, dims)}
    inputs = _inputs((4096, 128), (512, dims), 4608, config.attention_head_dim, rows)

    def run(given: Any) -> mx.array:
        rows, rope = given["rows"], given["rope"]
        joint = {TEXT: rows["txt"], IMAGE: rows["image"]}
        modulation = Flux3Modulation({IMAGE: rows["own"]}, joint, rows["out"])
        states = [given["txt"], model.states(IMAGE, given["x"], rope[512:], modulation)]
        return model(states, rope, modulation)

    return Step(model, run, inputs)


def qwen_image() -> Step:
    config = QwenImageConfig(
        attention_head_dim=128, in_channels=64, joint_attention_dim=3584, num_attention_heads=24, num_layers=60,
        out_channels=16, patch_size=2,
    )  # fmt: skip
    model, dims = QwenImageTransformer(config), config.inner_dim
    rows = {"img": (60, 6, dims), "txt": (60, 6, dims), "out": (2, dims)}
    inputs = _inputs((4096, 64), (64, 3584), 4160, config.attention_head_dim, rows)
    return Step(
        model, lambda given: model(given["x"], given["txt"], given["rope"], QwenModulation(**given["rows"])), inputs
    )


def qwen_image_21() -> Step:
    config = QwenImage21Config(
        attention_head_dim=128, context_in_dim=4096, in_channels=64, mlp_ratio=3, num_attention_heads=32, num_layers=32,
        out_channels=64,
    )  # fmt: skip
    model, dims = QwenImage21Transformer(config), config.inner_dim
    inputs = _inputs((4096, 64), (1, 1), 4096, config.attention_head_dim, {"block": (4, dims), "out": (dims,)})
    inputs["prefix"] = [[mx.zeros((1, 32, 64, 128), mx.bfloat16) for _ in range(2)] for _ in range(config.num_layers)]

    def run(given: Any) -> mx.array:
        prefix = [tuple(pair) for pair in given["prefix"]]
        return model(given["x"], given["rope"], prefix, QwenImage21Modulation(**given["rows"]))

    return Step(model, run, inputs)


def z_image() -> Step:
    config = ZImageConfig(
        all_f_patch_size=(1,), all_patch_size=(2,), axes_dims=(32, 48, 48), cap_feat_dim=2560, dim=3840, in_channels=16,
        n_heads=30, n_kv_heads=30, n_layers=30, n_refiner_layers=2, norm_eps=1e-5, qk_norm=True, rope_theta=256.0,
        t_scale=1000.0,
    )  # fmt: skip
    model, dims = ZImageTransformer(config), config.dim
    rows = {"refiner": (2, 4, dims), "layers": (30, 4, dims), "out": (dims,)}
    inputs = _inputs((4096, 64), (64, dims), 4160, 128, rows)
    return Step(
        model, lambda given: model(given["x"], given["txt"], given["rope"], ZImageModulation(**given["rows"])), inputs
    )


def hidream_o1() -> Step:
    text = read_config(
        {
            "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "rms_norm_eps": 1e-6, "rope_theta": 5e6, "hidden_act": "silu", "attention_bias": False,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
        },
        HERE,
    )  # fmt: skip
    config = HiDreamConfig(text, {}, PixelConfig(patch_size=32, bottleneck_dim=1024), 0, 0, 0)
    model = HiDreamTransformer(config)
    rope = [mx.zeros((1025, 64)) for _ in range(2)]
    prefix = [[mx.zeros((1, 8, 64, 128), mx.bfloat16) for _ in range(2)] for _ in range(36)]
    inputs = {"x": mx.zeros((1, 1024, 3072)), "rope": rope, "prefix": prefix}

    def run(given: Any) -> mx.array:
        return model(given["x"], 500.0, tuple(given["rope"]), [tuple(pair) for pair in given["prefix"]])

    return Step(model, run, inputs)


STEPS: dict[str, Callable[[], Step]] = {
    "flux1": flux1,
    "flux2": flux2,
    "flux3": flux3,
    "qwen_image": qwen_image,
    "qwen_image_21": qwen_image_21,
    "z_image": z_image,
    "hidream_o1": hidream_o1,
}


def _inputs(
    x: Sequence[int], txt: Sequence[int], tokens: int, head: int, rows: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """`rows`: one step's modulation."""
    return {
        "x": mx.zeros((1, *x), mx.bfloat16),
        "txt": mx.zeros((1, *txt), mx.bfloat16),
        "rope": mx.zeros((tokens, head // 2), mx.complex64),
        "rows": {name: mx.zeros(shape, mx.bfloat16) for name, shape in rows.items()},
    }


def _peers(family: str) -> dict[str, mlx_graph.Cost]:
    out = {}
    for peer, script in PEERS.items():
        python = HERE / "peers" / f".venv-{peer}" / "bin" / "python"
        if python.exists():
            done = subprocess.run([python, script, family], check=True, capture_output=True, text=True)
            out |= {f"{peer}{name}": mlx_graph.Cost(**cost) for name, cost in json.loads(done.stdout).items()}
    return out


def _print_row(title: str, cost: mlx_graph.Cost) -> None:
    products, attention = cost.product_flops / 1e12, cost.attention_flops / 1e12
    print(f"{title:24}{cost.launches:9}{cost.bytes / 1e9:8.1f}{products:8.1f}{attention:10.1f}", flush=True)


if __name__ == "__main__":
    main()
