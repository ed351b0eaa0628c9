"""Draws a tiny random FLUX.1 in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/flux.py FOLDER [--seed N]

FOLDER gets a whole diffusers repository (model_index.json … vae/), prompts.json, picture.png (an input picture) and
reference.safetensors: one double and one single block, the transformer, schedules, and pictures of the whole pipeline
(from given noise, from a seed, with a negative prompt, from a picture). An even seed draws the dev kind (guidance embedding,
dynamic shift), an odd one the schnell kind. Needs torch, diffusers and transformers.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTokenizer, T5TokenizerFast

from tests.references.flux_text import draw_clip, draw_clip_tokenizer, draw_t5, draw_t5_tokenizer, prompts, randomise

PROMPT = "a red fox asleep on an old map, morning light"
NEGATIVE = "blurry, low quality"
STEPS, LENGTH = 4, 48
CFG, GUIDANCE, STRENGTH = 2.5, 3.5, 0.6


def draw(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = draw_pipeline(folder, dice, guidance_embeds=seed % 2 == 0)
    width, height = 16 * dice.choice([3, 4, 5]), 16 * dice.choice([2, 6])
    options = {"prompt": PROMPT, "steps": STEPS, "width": width, "height": height, "length": LENGTH, "cfg": CFG}
    options |= {"guidance": GUIDANCE, "negative_prompt": NEGATIVE, "strength": STRENGTH, "seed": seed}
    (folder / "prompts.json").write_text(json.dumps(options, indent=1))
    with torch.no_grad():
        reference = parts(pipeline.transformer, dice) | pictures(folder, pipeline, options)
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors")


def draw_pipeline(folder: Path, dice: random.Random, guidance_embeds: bool) -> FluxPipeline:
    corpus = prompts(7)[60:] + [PROMPT, NEGATIVE] * 20
    draw_clip_tokenizer(folder / "tokenizer", corpus, 40)
    draw_t5_tokenizer(folder / "tokenizer_2", corpus, 0, "custom")
    clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5_tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    clip = draw_clip(folder / "text_encoder", dice, len(clip_tokenizer), 40, clip_tokenizer.eos_token_id)
    t5 = draw_t5(folder / "text_encoder_2", dice, len(t5_tokenizer))
    for saved in ("text_encoder_saved", "text_encoder_2_saved"):
        for file in (folder / saved).iterdir():
            file.unlink()
        (folder / saved).rmdir()
    transformer = draw_transformer(dice, clip.config.hidden_size, t5.config.d_model, guidance_embeds)
    vae = draw_vae(dice)
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if guidance_embeds else {"shift": dice.choice([1.0, 3.0])}
    scheduler = FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=1.15, **shift)
    pipeline = FluxPipeline(scheduler, vae, clip, clip_tokenizer, t5, t5_tokenizer, transformer)
    for name in ("transformer", "vae", "scheduler"):
        getattr(pipeline, name).save_pretrained(folder / name)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_transformer(dice: random.Random, pooled: int, text: int, guidance_embeds: bool) -> FluxTransformer2DModel:
    axes = dice.choice([(4, 6, 6), (8, 12, 12), (2, 4, 6)])
    model = FluxTransformer2DModel(
        in_channels=16, num_layers=dice.choice([1, 2]), num_single_layers=dice.choice([1, 3]), attention_head_dim=sum(axes),
        num_attention_heads=dice.choice([2, 3]), joint_attention_dim=text, pooled_projection_dim=pooled,
        guidance_embeds=guidance_embeds, axes_dims_rope=axes,
    )  # fmt: skip
    randomise(model)
    return model.eval()


def draw_vae(dice: random.Random) -> AutoencoderKL:
    widths = dice.choice([(8, 8, 16, 16), (8, 16, 16, 24)])
    vae = AutoencoderKL(
        block_out_channels=widths, layers_per_block=dice.choice([1, 2]), norm_num_groups=dice.choice([2, 4]),
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    randomise(vae)
    return vae.eval()


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
    out["picture.cfg"] = run(pipeline, latents=latents, negative_prompt=NEGATIVE, true_cfg_scale=CFG)
    again = FluxImg2ImgPipeline(**pipeline.components)
    again.set_progress_bar_config(disable=True)
    seeded = {"generator": torch.Generator().manual_seed(options["seed"])}
    return out | {"picture.image": run(again, image=picture, strength=STRENGTH, **seeded)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.seed)
