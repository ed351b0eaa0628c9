"""Draws a tiny random FLUX.1 in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/flux.py FOLDER [--seed N]

FOLDER gets a whole diffusers repository (model_index.json … vae/), prompts.json, picture.png (an input picture) and
reference.safetensors: one double and one single block, the transformer, schedules, and pictures of the whole pipeline
(from given noise, from a seed, with a negative prompt, from a picture). An even seed draws the dev kind (guidance
embedding, dynamic shift), an odd one the schnell kind. Needs torch, diffusers and transformers.
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
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from flux_text import save_drawn as save_text
from flux_text import spread
from PIL import Image
from safetensors.torch import save_file
from text_prompts import prompts
from text_tokenizers import draw_clip_tokenizer, draw_t5_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast
from weight_descriptions import Rule

PROMPT = "a red fox asleep on an old map, morning light"
NEGATIVE = "blurry, low quality"
STEPS, LENGTH = 4, 48
CFG, GUIDANCE, STRENGTH = 2.5, 3.5, 0.6


def draw(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = draw_pipeline(folder, dice, seed)
    width, height = 16 * dice.choice([3, 4, 5]), 16 * dice.choice([2, 6])
    options = {"prompt": PROMPT, "steps": STEPS, "width": width, "height": height, "length": LENGTH, "cfg": CFG}
    options |= {"guidance": GUIDANCE, "negative_prompt": NEGATIVE, "strength": STRENGTH, "seed": seed}
    (folder / "prompts.json").write_text(json.dumps(options, indent=1))
    with torch.no_grad():
        reference = parts(pipeline.transformer, dice) | pictures(folder, pipeline, options)
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors")


def draw_pipeline(folder: Path, dice: random.Random, seed: int) -> FluxPipeline:
    guidance_embeds = seed % 2 == 0
    corpus = prompts(7)[60:] + [PROMPT, NEGATIVE] * 20
    draw_clip_tokenizer(folder / "tokenizer", corpus, 40)
    draw_t5_tokenizer(folder / "tokenizer_2", corpus, "custom")
    clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5_tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    clip = save_text(draw_clip(dice, clip_tokenizer), folder / "text_encoder", seed)
    t5 = save_text(draw_t5(dice, t5_tokenizer), folder / "text_encoder_2", seed)
    transformer = draw_transformer(dice, clip.config.hidden_size, t5.config.d_model, guidance_embeds)
    transformer = save_drawn(transformer, folder / "transformer", spread, seed)
    vae = save_vae(draw_vae(dice), folder / "vae", seed)
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if guidance_embeds else {"shift": dice.choice([1.0, 3.0])}
    scheduler = FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=1.15, **shift)
    pipeline = FluxPipeline(scheduler, vae, clip, clip_tokenizer, t5, t5_tokenizer, transformer)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_clip(dice: random.Random, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=dice.choice([16, 32]), intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=40, eos_token_id=2, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config)


def draw_t5(dice: random.Random, tokenizer: T5TokenizerFast) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=dice.choice([24, 40]), d_kv=8, d_ff=48, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def draw_transformer(dice: random.Random, pooled: int, text: int, guidance_embeds: bool) -> FluxTransformer2DModel:
    axes = dice.choice([(4, 6, 6), (2, 6, 4), (2, 4, 6)])
    return FluxTransformer2DModel(
        in_channels=16, num_layers=dice.choice([1, 2]), num_single_layers=dice.choice([1, 2]),
        attention_head_dim=sum(axes),
        num_attention_heads=dice.choice([2, 3]), joint_attention_dim=text, pooled_projection_dim=pooled,
        guidance_embeds=guidance_embeds, axes_dims_rope=axes,
    )  # fmt: skip


def draw_vae(dice: random.Random) -> AutoencoderKL:
    widths = dice.choice([(4, 4, 8, 8), (4, 8, 8, 12)])
    return AutoencoderKL(
        block_out_channels=widths, layers_per_block=dice.choice([1, 2]), norm_num_groups=dice.choice([2, 4]),
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def save_vae(vae: AutoencoderKL, folder: Path, seed: int) -> AutoencoderKL:
    """Pictures stay inside the range of colours: a clipped picture would hide differences."""
    drawn = save_drawn(vae, folder, vae_spread(1.0), seed)
    with torch.no_grad():
        latents = torch.randn(1, 4, 8, 8) / vae.config.scaling_factor + vae.config.shift_factor
        deviation = float(drawn.decode(latents, return_dict=False)[0].std())
    return save_drawn(vae, folder, vae_spread(0.3 / deviation), seed)


def vae_spread(scale: float) -> Rule:
    """`scale`: of what the last layer gives."""

    def rule(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        mean, size = spread(name, shape)
        return mean, size * {"decoder.conv_out.weight": scale, "decoder.conv_out.bias": 0.0}.get(name, 1.0)

    return rule


def parts(model: FluxTransformer2DModel, dice: random.Random) -> dict[str, torch.Tensor]:
    """Inputs and outputs of one double block, one single block and the whole transformer, at a non-square size."""
    rows, columns, length = dice.choice([2, 3]), dice.choice([4, 5]), dice.choice([5, 7])
    img_ids = torch.tensor([[0, r, c] for r in range(rows) for c in range(columns)], dtype=torch.float32)
    txt_ids = torch.zeros(length, 3)
    dims = model.inner_dim
    img, txt, temb = torch.randn(1, len(img_ids), dims), torch.randn(1, length, dims), torch.randn(1, dims)
    rope = model.pos_embed(torch.cat([txt_ids, img_ids]))
    txt_out, img_out = model.transformer_blocks[0](
        hidden_states=img, encoder_hidden_states=txt, temb=temb, image_rotary_emb=rope
    )
    single_out = model.single_transformer_blocks[0](
        hidden_states=img, encoder_hidden_states=txt, temb=temb, image_rotary_emb=rope
    )
    out = {"ids": torch.cat([txt_ids, img_ids]), "img": img, "txt": txt, "temb": temb}
    out |= {"double.img": img_out, "double.txt": txt_out, "single.txt": single_out[0], "single.img": single_out[1]}
    x, features = torch.randn(1, len(img_ids), 16), torch.randn(1, length, model.config.joint_attention_dim)
    pooled = torch.randn(1, model.config.pooled_projection_dim)
    t = torch.tensor([0.6181])
    guidance = torch.tensor([GUIDANCE]) if model.config.guidance_embeds else None
    v = model(
        hidden_states=x, encoder_hidden_states=features, pooled_projections=pooled, timestep=t, guidance=guidance,
        img_ids=img_ids, txt_ids=txt_ids, return_dict=False,
    )[0]  # fmt: skip
    return out | {"x": x, "features": features, "pooled": pooled, "t": t, "v": v}


def pictures(folder: Path, pipeline: FluxPipeline, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The whole pipeline, four ways, as uint8."""
    width, height = options["width"], options["height"]
    size = {"width": width, "height": height, "num_inference_steps": STEPS, "max_sequence_length": LENGTH}
    common = {"prompt": PROMPT, "guidance_scale": GUIDANCE, "output_type": "np", **size}

    def run(made: Any, **more: Any) -> torch.Tensor:
        image = made(**common, **more).images[0]
        return torch.from_numpy((image * 255).round().astype(np.uint8))

    noise = torch.randn(1, 4, height // 8, width // 8)
    latents = FluxPipeline._pack_latents(noise, 1, 4, height // 8, width // 8)
    picture = Image.fromarray(np.random.default_rng(options["seed"]).integers(0, 255, (6, 8, 3), np.uint8))
    picture = picture.resize((width + 24, height + 8), Image.Resampling.BICUBIC)
    picture.save(folder / "picture.png")
    seeded = {"generator": torch.Generator().manual_seed(options["seed"])}
    out = {"noise": noise, "picture.noise": run(pipeline, latents=latents), "picture.seed": run(pipeline, **seeded)}
    # Packed, after the last step.
    out["latents"] = pipeline(**common | {"output_type": "latent"}, latents=latents).images
    out["picture.cfg"] = run(pipeline, latents=latents, negative_prompt=NEGATIVE, true_cfg_scale=CFG)
    again = FluxImg2ImgPipeline(**pipeline.components)
    again.set_progress_bar_config(disable=True)
    seeded = {"generator": torch.Generator().manual_seed(options["seed"])}
    return out | {"picture.image": run(again, image=picture, strength=STRENGTH, **seeded)}


if __name__ == "__main__":
    run(draw, __doc__)
