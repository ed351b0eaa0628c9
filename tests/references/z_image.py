"""Draws a tiny random Z-Image in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/z_image.py FOLDER [--seed N]

FOLDER gets a whole diffusers repository (model_index.json … vae/), options.json, picture.png (an input picture) and
reference.safetensors: text states, blocks of each kind, the transformer, schedules, and pictures of the whole pipeline
(from given noise, from a seed, with guidance, with its length bounded, from a picture). An even seed draws the base
model, an odd one Turbo. Needs torch, diffusers and transformers.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn
from command import run
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from flux import save_vae
from PIL import Image
from qwen import spread
from safetensors.torch import save_file
from text_prompts import prompts
from text_tokenizers import draw_qwen_tokenizer
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from weight_descriptions import redraw

PROMPT = "a red fox asleep on an old map, 晨光中的水墨画, reads HELLO"
NEGATIVE = "blurry, 低质量, " + "bad hands, extra fingers, " * 3  # longer than the prompt: another filled length
LONG = "a fox " * 60
STEPS, LENGTH, GUIDANCE, STRENGTH = 4, 112, 3.0, 0.6
LAST = 12  # of the text states, those that are kept: each has seen all before it
GUIDANCES = {"cfg": {"guidance_scale": GUIDANCE}, "weak": {"guidance_scale": 0.5}}
GUIDANCES["normalized"] = {"guidance_scale": 12.0, "cfg_normalization": True}
# What Qwen3's own template makes of one message of a user: the same string.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def draw(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice, base = random.Random(seed), seed % 2 == 0
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = draw_pipeline(folder, dice, seed, base)
    width, height = 16 * dice.choice([2, 3]), 16 * dice.choice([3, 4])
    options: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "long": LONG, "steps": STEPS}
    options |= {"base": base, "width": width, "height": height, "length": LENGTH, "strength": STRENGTH, "seed": seed}
    options |= {"guidances": GUIDANCES if base else {}}
    (folder / "options.json").write_text(json.dumps(options, indent=1, ensure_ascii=False), encoding="utf-8")
    with torch.no_grad():
        reference = states(pipeline) | parts(pipeline.transformer, dice) | pictures(folder, pipeline, options)
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors")


def draw_pipeline(folder: Path, dice: random.Random, seed: int, base: bool, seen: int | None = None) -> ZImagePipeline:
    """`seen`: the width of what the Omni edition's transformer sees of pictures."""
    draw_qwen_tokenizer(folder / "tokenizer", prompts(7)[60:] + [PROMPT, NEGATIVE] * 20)
    path = folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}, indent=1))
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    text = save_text(draw_text_encoder(dice, tokenizer), folder / "text_encoder", seed, flat=base)
    transformer = draw_transformer(dice, text.config.hidden_size, seen)
    transformer = save_drawn(transformer, folder / "transformer", spread, seed)
    vae = save_vae(draw_vae(), folder / "vae", seed)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0 if base else 3.0)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "ZImagePipeline", "transformer": ["diffusers", "ZImageTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline = ZImagePipeline(scheduler, vae, text, tokenizer, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_text_encoder(dice: random.Random, tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    kv_heads = dice.choice([1, 2])
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=dice.choice([24, 40]), intermediate_size=dice.choice([40, 64]),
        num_hidden_layers=3, num_attention_heads=2 * kv_heads, num_key_value_heads=kv_heads, head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rms_norm_eps=1e-6,
    )  # fmt: skip
    return Qwen3Model(config)


def draw_transformer(dice: random.Random, text: int, seen: int | None) -> ZImageTransformer2DModel:
    axes = dice.choice([(4, 6, 6), (2, 6, 4), (4, 10, 10)])
    heads = dice.choice([2, 3])
    return ZImageTransformer2DModel(
        in_channels=4, dim=heads * sum(axes), n_layers=2, n_refiner_layers=dice.choice([1, 2]), n_heads=heads,
        n_kv_heads=heads, cap_feat_dim=text, siglip_feat_dim=seen, axes_dims=axes, axes_lens=(512, 64, 64),
        norm_eps=dice.choice([1e-5, 1e-3]),
    )  # fmt: skip


def draw_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2,
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def save_text(model: Qwen3Model, folder: Path, seed: int, flat: bool) -> Qwen3Model:
    """`flat`: its config.json as published files have it, before rope_parameters existed."""
    model.save_pretrained(folder)
    redraw(folder / "model.safetensors", spread, seed)
    model = Qwen3Model.from_pretrained(folder).eval()
    if flat:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
        path.write_text(json.dumps(config, indent=1))
    return model


def states(pipeline: ZImagePipeline) -> dict[str, torch.Tensor]:
    """Token ids and text states: of the prompt, of nothing, and of a prompt that is too long."""
    out: dict[str, torch.Tensor] = {}
    for name, words in (("prompt", PROMPT), ("empty", ""), ("long", LONG)):
        out[f"states.{name}"] = pipeline.encode_prompt(words, max_sequence_length=LENGTH)[0][0][-LAST:]
        message = [{"role": "user", "content": words}]
        text = pipeline.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        ids = pipeline.tokenizer(text, max_length=LENGTH, truncation=True)["input_ids"]
        out[f"ids.{name}"] = torch.tensor(ids)
    return out


def parts(model: ZImageTransformer2DModel, dice: random.Random) -> dict[str, torch.Tensor]:
    """Inputs and outputs of a block with modulation, of one without, and of the transformer with sequences that are no
    multiples of 32, and with some that are."""
    positions = torch.tensor([[1 + i, i % 3, i % 5] for i in range(12)])
    rope = model.rope_embedder(positions)[None]
    x, adaln = torch.randn(1, 12, model.dim), torch.randn(1, min(model.dim, 256))
    out = {"block.positions": positions, "block.x": x, "block.adaln": adaln}
    out["block.modulated"] = model.layers[0](x, None, rope, adaln)
    out["block.plain"] = model.context_refiner[0](x, None, rope)
    channels, text = model.in_channels, model.config.cap_feat_dim
    for name, grid, length in (("odd", (3, dice.choice([5, 7])), dice.choice([5, 40])), ("even", (4, 8), 32)):
        latents, features = torch.randn(channels, 1, 2 * grid[0], 2 * grid[1]), torch.randn(length, text)
        t = torch.tensor([0.3819])
        v = model([latents], t, [features], return_dict=False)[0][0]
        out |= {f"{name}.x": latents[:, 0], f"{name}.features": features, f"{name}.t": t, f"{name}.out": v[:, 0]}
    return out


def pictures(folder: Path, pipeline: ZImagePipeline, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The whole pipeline, several ways, as uint8."""
    width, height = options["width"], options["height"]
    size = {"width": width, "height": height, "num_inference_steps": STEPS, "max_sequence_length": LENGTH}
    common = {"prompt": PROMPT, "output_type": "np", "guidance_scale": 0.0, **size}

    def run(made: Any, **more: Any) -> torch.Tensor:
        image = made(**common | more).images[0]
        return torch.from_numpy((image * 255).round().astype(np.uint8))

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(options["seed"])

    noise = torch.randn(1, 4, height // 8, width // 8)
    picture = Image.fromarray(np.random.default_rng(options["seed"]).integers(0, 255, (6, 8, 3), np.uint8))
    picture = picture.resize((width + 24, height + 8), Image.Resampling.NEAREST)
    picture.save(folder / "picture.png")
    out = {
        "noise": noise,
        "picture.noise": run(pipeline, latents=noise),
        "picture.seed": run(pipeline, generator=seeded()),
    }
    out["sigmas"] = pipeline.scheduler.sigmas.clone()
    out["latents"] = pipeline(**common | {"output_type": "latent"}, latents=noise).images
    for name, guidance in options["guidances"].items():
        out[f"picture.{name}"] = run(pipeline, latents=noise, negative_prompt=NEGATIVE, **guidance)
    again = ZImageImg2ImgPipeline(**pipeline.components)
    again.set_progress_bar_config(disable=True)
    return out | {
        "picture.image": run(again, image=resized(picture, width, height), strength=STRENGTH, generator=seeded())
    }


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """As diffusers' other pipelines do it: Z-Image's takes the picture's own size."""
    return picture.resize((width, height), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    run(draw, __doc__)
