"""Blocks at the real width against their matrix products alone: same BLAS, same shapes, one run, in turns.

The ratio shows what norms, rope, softmax, modulation and copies cost on top of the unavoidable arithmetic. FLUX.1: two
double and four single blocks. Qwen-Image: two blocks, alone and with reference tokens that have their own modulation
(2511). Z-Image: one refiner and three blocks. FLUX.2: one double and three single blocks, also with kept references.
FLUX.3: a block of each kind of token and three joint ones.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from turns import in_turns, spread

from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.families.flux1.transformer import Modulation as FluxModulation
from mlx_imagegen.families.flux2.config import Flux2Config
from mlx_imagegen.families.flux2.positions import picture_positions as flux2_picture
from mlx_imagegen.families.flux2.positions import text_positions as flux2_text
from mlx_imagegen.families.flux2.transformer import Flux2Transformer
from mlx_imagegen.families.flux2.transformer import Modulation as Flux2Modulation
from mlx_imagegen.families.flux3.config import Flux3Config
from mlx_imagegen.families.flux3.transformer import IMAGE, KINDS, TEXT, Flux3Transformer
from mlx_imagegen.families.flux3.transformer import Modulation as Flux3Modulation
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.positions import positions
from mlx_imagegen.families.qwen_image.transformer import Modulation as QwenModulation
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.positions import picture_positions, prompt_positions
from mlx_imagegen.families.z_image.transformer import Modulation as ZImageModulation
from mlx_imagegen.families.z_image.transformer import ZImageTransformer
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.loading.weights import layers, own_parameters

IMAGE_TOKENS, TEXT_TOKENS, HEADS, HEAD_DIM = 256, 64, 24, 128
DIMS = HEADS * HEAD_DIM
DOUBLE, SINGLE, Z_LAYERS, FLUX2_SINGLE, FLUX3_JOINT = 2, 4, 3, 3, 3
Shape = tuple[int, int, int]  # rows, inputs, outputs


class Case(NamedTuple):
    title: str
    forward: Callable[[], mx.array]
    shapes: list[Shape]  # every linear's product
    attentions: list[tuple[int, int]]  # of each, the tokens that attend together, and the heads
    kept: int = 0  # more tokens that are attended to, and ask nothing


def main(rounds: int = 7) -> dict[str, float]:
    makers = (flux, qwen, lambda: qwen(IMAGE_TOKENS), z_image, flux2, lambda: flux2(IMAGE_TOKENS), flux3)
    # one at a time: each takes 4 GB with its bare products
    return dict(_ratio(make(), rounds) for make in makers)


def flux() -> Case:
    config = FluxConfig(
        attention_head_dim=HEAD_DIM, guidance_embeds=False, in_channels=64, joint_attention_dim=4096,
        num_attention_heads=HEADS, num_layers=DOUBLE, num_single_layers=SINGLE, pooled_projection_dim=768,
    )  # fmt: skip
    transformer = FluxTransformer(config)
    draw(transformer)
    rows, columns = np.mgrid[0:16, 0 : IMAGE_TOKENS // 16]
    image = np.stack([0 * rows, rows, columns], -1).reshape(-1, 3)
    rope = rope_table(np.concatenate([np.zeros((TEXT_TOKENS, 3)), image]), config.axes_dims_rope, 1e4)
    rows_of_each = ((DOUBLE, 6), (DOUBLE, 6), (SINGLE, 3), (2,))
    mod = FluxModulation(*(mx.random.normal((*shape, DIMS)) for shape in rows_of_each))
    x, txt = mx.random.normal((1, IMAGE_TOKENS, 64)), mx.random.normal((1, TEXT_TOKENS, 4096))
    mx.eval(x, txt, rope, mod)
    both = IMAGE_TOKENS + TEXT_TOKENS
    shapes = double_shapes(IMAGE_TOKENS)
    shapes += [(IMAGE_TOKENS, 64, DIMS), (TEXT_TOKENS, 4096, DIMS), (IMAGE_TOKENS, DIMS, 64)]
    shapes += [*[(both, DIMS, DIMS)] * 3, (both, DIMS, 4 * DIMS), (both, 5 * DIMS, DIMS)] * SINGLE
    title = f"FLUX.1, {DOUBLE} double + {SINGLE} single blocks"
    return Case(title, lambda: transformer(x, txt, rope, mod), shapes, [(both, HEADS)] * (DOUBLE + SINGLE))


def qwen_config(zero_cond_t: bool = False) -> QwenImageConfig:
    return QwenImageConfig(
        attention_head_dim=HEAD_DIM, in_channels=64, joint_attention_dim=3584, num_attention_heads=HEADS,
        num_layers=DOUBLE, out_channels=16, patch_size=2, zero_cond_t=zero_cond_t,
    )  # fmt: skip


def qwen(references: int = 0) -> Case:
    config = qwen_config(zero_cond_t=references > 0)
    transformer = QwenImageTransformer(config)
    draw(transformer)
    image = IMAGE_TOKENS + references
    grids = [(16, IMAGE_TOKENS // 16)] + ([(16, references // 16)] if references else [])
    rope = rope_table(positions(TEXT_TOKENS, grids), config.axes_dims_rope, 1e4)
    made = [mx.random.normal((*shape, DIMS)) for shape in ((DOUBLE, 6), (DOUBLE, 6), (2,), (DOUBLE, 6))]
    mod = QwenModulation(made[0], made[1], made[2], made[3] if references else None)
    x, txt = mx.random.normal((1, image, 64)), mx.random.normal((1, TEXT_TOKENS, 3584))
    mx.eval(x, txt, rope, made)
    shapes = [*double_shapes(image), (image, 64, DIMS), (TEXT_TOKENS, 3584, DIMS), (image, DIMS, 64)]
    title = f"Qwen-Image, {DOUBLE} blocks" + (f", {references} reference tokens" if references else "")
    return Case(
        title, lambda: transformer(x, txt, rope, mod, references), shapes, [(image + TEXT_TOKENS, HEADS)] * DOUBLE
    )


def z_image() -> Case:
    config = ZImageConfig(
        all_f_patch_size=(1,), all_patch_size=(2,), axes_dims=(32, 48, 48), cap_feat_dim=2560, dim=3840, in_channels=16,
        n_heads=30, n_kv_heads=30, n_layers=Z_LAYERS, n_refiner_layers=1, norm_eps=1e-5, qk_norm=True, rope_theta=256.0,
        t_scale=1000.0,
    )  # fmt: skip
    transformer, dims, inner = ZImageTransformer(config), config.dim, config.ffn_dim
    draw(transformer)
    positions = np.concatenate([picture_positions((16, 16), TEXT_TOKENS + 1), prompt_positions(TEXT_TOKENS)])
    rope = rope_table(positions, config.axes_dims, config.rope_theta, np.float32)
    mod = ZImageModulation(*(mx.random.normal((*shape, dims)) for shape in ((1, 4), (Z_LAYERS, 4), ())))
    x, txt = mx.random.normal((1, IMAGE_TOKENS, 64)), mx.random.normal((1, TEXT_TOKENS, dims))
    mx.eval(x, txt, rope, mod)
    both = IMAGE_TOKENS + TEXT_TOKENS
    shapes = [(IMAGE_TOKENS, 64, dims), (IMAGE_TOKENS, dims, 64)]
    for tokens in (IMAGE_TOKENS, *[both] * Z_LAYERS):
        shapes += [*[(tokens, dims, dims)] * 4, *[(tokens, dims, inner)] * 2, (tokens, inner, dims)]
    attentions = [(IMAGE_TOKENS, config.n_heads), *[(both, config.n_heads)] * Z_LAYERS]
    title = f"Z-Image, 1 refiner + {Z_LAYERS} blocks"
    return Case(title, lambda: transformer(x, txt, rope, mod), shapes, attentions)


def flux2(kept: int = 0) -> Case:
    config = Flux2Config(
        attention_head_dim=HEAD_DIM, axes_dims_rope=(32, 32, 32, 32), guidance_embeds=False, in_channels=128,
        joint_attention_dim=7680, num_attention_heads=HEADS, num_layers=1, num_single_layers=FLUX2_SINGLE,
        rope_theta=2000.0,
    )  # fmt: skip
    transformer, inner = Flux2Transformer(config), config.mlp_dim
    draw(transformer)
    places = np.concatenate([flux2_text(TEXT_TOKENS), flux2_picture((16, IMAGE_TOKENS // 16))])
    rope = rope_table(places, config.axes_dims_rope, config.rope_theta)
    mod = Flux2Modulation(*(mx.random.normal((rows, DIMS)) for rows in (6, 6, 3, 2)))
    x, txt = mx.random.normal((1, IMAGE_TOKENS, 128)), mx.random.normal((1, TEXT_TOKENS, 7680))
    pairs = [(mx.random.normal((1, HEADS, kept, HEAD_DIM)),) * 2 for _ in range(1 + FLUX2_SINGLE)] if kept else []
    mx.eval(x, txt, rope, mod, pairs)
    both = IMAGE_TOKENS + TEXT_TOKENS
    shapes = [(IMAGE_TOKENS, 128, DIMS), (TEXT_TOKENS, 7680, DIMS), (IMAGE_TOKENS, DIMS, 128)]
    for count in (IMAGE_TOKENS, TEXT_TOKENS):
        shapes += [*[(count, DIMS, DIMS)] * 4, *[(count, DIMS, inner)] * 2, (count, inner, DIMS)]
    shapes += [*[(both, DIMS, DIMS)] * 3, *[(both, DIMS, inner)] * 2, (both, DIMS + inner, DIMS)] * FLUX2_SINGLE
    title = f"FLUX.2, 1 double + {FLUX2_SINGLE} single blocks" + (f", {kept} kept reference tokens" if kept else "")
    return Case(
        title, lambda: transformer(x, txt, rope, mod, 0, pairs), shapes, [(both, HEADS)] * (1 + FLUX2_SINGLE), kept
    )


def flux3() -> Case:
    """Text and picture; its references go the same way as its text."""
    config = Flux3Config(
        attention_head_dim=HEAD_DIM, axes_dims_rope=(32, 32, 32, 32), cond_in_channels=128, flow_map=True,
        in_channels=128, joint_attention_dim=20480, num_attention_heads=HEADS, num_layers=1,
        num_single_layers=FLUX3_JOINT, rope_theta=1e4,
    )  # fmt: skip
    transformer, inner = Flux3Transformer(config), config.mlp_dim
    del transformer.mode_blocks["image_cond"]
    draw(transformer)
    places = np.concatenate([flux2_text(TEXT_TOKENS), flux2_picture((16, IMAGE_TOKENS // 16))])
    rope = rope_table(places, config.axes_dims_rope, config.rope_theta)
    text_rope, image_rope = rope[:TEXT_TOKENS], rope[TEXT_TOKENS:]
    own, joint = ({kind: mx.random.normal((3, DIMS)) for kind in KINDS} for _ in range(2))
    mod = Flux3Modulation(own, joint, mx.random.normal((2, DIMS)))
    x, txt = mx.random.normal((1, IMAGE_TOKENS, 128)), mx.random.normal((1, TEXT_TOKENS, 20480))
    mx.eval(x, txt, rope, mod)
    both = IMAGE_TOKENS + TEXT_TOKENS
    shapes = [(IMAGE_TOKENS, 128, DIMS), (TEXT_TOKENS, 20480, DIMS), (IMAGE_TOKENS, DIMS, 128)]
    for count in (IMAGE_TOKENS, TEXT_TOKENS, *[both] * FLUX3_JOINT):
        shapes += [*[(count, DIMS, DIMS)] * 4, *[(count, DIMS, inner)] * 2, (count, inner, DIMS)]
    attentions = [(count, HEADS) for count in (IMAGE_TOKENS, TEXT_TOKENS, *[both] * FLUX3_JOINT)]

    def forward() -> mx.array:
        states = [
            transformer.states(TEXT, txt, text_rope, mod),
            transformer.states(IMAGE, x, image_rope, mod),
        ]
        return transformer(states, rope, mod)

    return Case(f"FLUX.3, 1 block of each kind + {FLUX3_JOINT} joint", forward, shapes, attentions)


def double_shapes(image: int) -> list[Shape]:
    """The linears of the double-stream blocks, which are alike in both families."""
    out = []
    for count in (image, TEXT_TOKENS):
        out += [*[(count, DIMS, DIMS)] * 4, (count, DIMS, 4 * DIMS), (count, 4 * DIMS, DIMS)] * DOUBLE
    return out


def draw(module: nn.Module) -> None:
    for _, layer in layers(module):
        for name, value in own_parameters(layer).items():
            layer[name] = mx.random.normal(value.shape) * 0.02
            mx.eval(layer[name])


def products(case: Case) -> Callable[[], list[mx.array]]:
    """Every matrix product of the blocks, attention's two included, on matrices of the same shapes."""
    pairs = [(mx.random.normal((1, m, k)), mx.random.normal((n, k))) for m, k, n in case.shapes]
    sizes = case.attentions
    heads = [mx.random.normal((1, count, tokens + case.kept, HEAD_DIM)) for tokens, count in sizes]
    scores = {size: mx.random.normal((1, size[1], size[0], size[0] + case.kept)) for size in set(sizes)}
    mx.eval(pairs, heads, scores)
    return lambda: [
        *(x @ w.T for x, w in pairs),
        *(k[:, :, case.kept :] @ k.swapaxes(-1, -2) for k in heads),
        *(scores[size] @ v for size, v in zip(sizes, heads, strict=True)),
    ]


def _ratio(case: Case, rounds: int) -> tuple[str, float]:
    bare = products(case)
    ways = {"products": bare, "blocks": case.forward}
    in_turns(ways, 1)  # warm up
    seconds = in_turns(ways, rounds)
    ratio = statistics.median(seconds["blocks"]) / statistics.median(seconds["products"])
    tokens, heads = case.attentions[-1]
    print(f"{case.title}, width {heads * HEAD_DIM}, {tokens} tokens ({TEXT_TOKENS} of text), float32")
    for name, values in seconds.items():
        print(f"  {name:9s} {spread(values)}")
    print(f"  ratio     {ratio:.3f}", flush=True)
    return case.title, ratio


if __name__ == "__main__":
    main()
