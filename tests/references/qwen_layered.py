"""Draws a tiny random Qwen-Image-Layered in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/qwen_layered.py FOLDER [--seed N]

FOLDER gets a whole diffusers repository (model_index.json … vae/), options.json, a picture with alpha and one without,
and reference.safetensors: what is added to the timestep, the transformer's velocity for frames and condition, pixels
through the autoencoder, sigmas at the real sizes, and layers of the whole pipeline. Pictures have 48 x 48 pixels in
place of 640 x 640. Needs torch, diffusers and transformers.
"""

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn, steady
from command import run
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageLayeredPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered
from PIL import Image
from qwen import NEGATIVE, PROMPT, draw_processor, draw_text_encoder, draw_transformer, draw_vae, levels, spread
from qwen_vae import spread as vae_spread
from safetensors.torch import save_file
from text_prompts import prompts
from text_tokenizers import draw_qwen_tokenizer
from transformers import GenerationConfig, Qwen2Tokenizer

STEPS, CFG, LAYERS, AREA = 3, 3.0, 3, 48 * 48
REAL_SIZES = ((640, 640), (1024, 1024), (736, 544))
CHANNELS = 3  # of latents: the pipeline takes a picture with as many for latents
PENALTY, CAPTION_TOKENS = 1.05, 24  # of the captions that are written where no prompt is given
SHARE_OF_ALPHA = 0.25  # that is clear in the picture with alpha
TRIES = 100  # of a picture, until float32 and float64 agree on it


def draw(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shrink()
    pipeline = draw_pipeline(folder, dice, seed)
    options = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": STEPS, "cfg": CFG, "layers": LAYERS}
    options |= {"seed": seed, "area": AREA}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    draw_picture_files(folder, dice)
    bound_captions(pipeline, folder)
    with torch.no_grad():
        reference = parts(pipeline, dice) | sigmas(pipeline) | pictures(folder, pipeline, options)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors"
    )


def shrink() -> None:
    """A tiny model does not make 1600 tokens a layer cheap; the arithmetic of sizes is the same."""
    exact = pipeline_qwenimage_layered.calculate_dimensions
    pipeline_qwenimage_layered.calculate_dimensions = lambda area, ratio: exact(AREA, ratio)


def draw_pipeline(folder: Path, dice: random.Random, seed: int) -> QwenImageLayeredPipeline:
    draw_qwen_tokenizer(folder / "tokenizer", prompts(7)[60:] + [PROMPT, NEGATIVE] * 20)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    text = draw_text_encoder(folder, dice, seed, tokenizer, flat=True)
    vae = save_drawn(draw_vae(dice, CHANNELS, colours=4), folder / "vae", vae_spread, seed)
    flags = {"use_additional_t_cond": True, "use_layer3d_rope": True}
    transformer = draw_transformer(dice, text.config.text_config.hidden_size, vae.config.z_dim, zero=False, **flags)
    transformer = save_drawn(transformer, folder / "transformer", spread, seed)
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192, shift=1.0, shift_terminal=False,
        use_dynamic_shifting=True, time_shift_type="linear",
    )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "QwenImageLayeredPipeline", "transformer": ["diffusers", "QwenImageTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    writing = {"eos_token_id": stops, "pad_token_id": stops[1], "repetition_penalty": PENALTY}
    (folder / "text_encoder/generation_config.json").write_text(json.dumps(writing))
    text.generation_config = GenerationConfig(**writing)
    processor = draw_processor(folder, tokenizer)
    pipeline = QwenImageLayeredPipeline(scheduler, vae, text, tokenizer, processor=processor, transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_picture_files(folder: Path, dice: random.Random) -> None:
    """One with alpha, soft and clear, and one without; of other proportions, larger than what they are resized to."""
    for name, size, channels in (("alpha", (7, 5), 4), ("opaque", (4, 9), 3)):
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (size[1], size[0], channels), np.uint8)
        if channels == 4:
            noise[..., 3] = np.where(noise[..., 3] < 255 * SHARE_OF_ALPHA, 0, noise[..., 3])
        Image.fromarray(noise).resize((size[0] * 9, size[1] * 9), Image.Resampling.BICUBIC).save(folder / f"{name}.png")


def bound_captions(pipeline: QwenImageLayeredPipeline, folder: Path) -> None:
    """Few tokens a caption, which captions.json keeps in the order in which they are written."""
    generate, written = pipeline.text_encoder.generate, []

    def shortly(max_new_tokens: int, **given: Any) -> torch.Tensor:
        kinds = (given["input_ids"] == pipeline.text_encoder.config.image_token_id).int()
        ids = generate(max_new_tokens=CAPTION_TOKENS, mm_token_type_ids=kinds, **given)
        written.append(ids[0, given["input_ids"].shape[1] :].tolist())
        (folder / "captions.json").write_text(json.dumps(written))
        return ids

    pipeline.text_encoder.generate = shortly


def parts(pipeline: QwenImageLayeredPipeline, dice: random.Random) -> dict[str, torch.Tensor]:
    """The transformer with 1 and with 3 frames, one of which is wide enough for its grid to say where text begins, and
    the autoencoder with four channels."""
    model, vae = pipeline.transformer, pipeline.vae
    t, length, is_rgb = torch.tensor([0.6181]), dice.choice([5, 9]), torch.tensor([0])
    features = torch.randn(1, length, model.config.joint_attention_dim)
    out = {"t": t, "features": features}
    for frames, grid in ((2, (3, 7)), (4, (3, 2))):
        shapes = [[(1, *grid)] * (frames + 1)]
        x = torch.randn(1, (frames + 1) * grid[0] * grid[1], model.config.in_channels)
        v = model(x, features, timestep=t, img_shapes=shapes, additional_t_cond=is_rgb, return_dict=False)[0]
        out |= {f"x{frames}": x, f"v{frames}": v[:, : frames * grid[0] * grid[1]], f"grid{frames}": torch.tensor(grid)}
    precise = copy.deepcopy(vae).double()
    for _ in range(TRIES):
        picture = torch.rand(1, 4, 16, 24) * 2 - 1
        mean = vae.encode(picture[:, :, None]).latent_dist.mode()
        made = {"mean": mean, "decoded": vae.decode(mean).sample}
        exact = {"mean": precise.encode(picture.double()[:, :, None]).latent_dist.mode()}
        if steady(made, exact | {"decoded": precise.decode(mean.double()).sample}):
            break
    else:
        raise RuntimeError("no picture on which float32 and float64 agree")
    turned = {"rgba": picture.permute(0, 2, 3, 1), "decoded": made["decoded"][:, :, 0].permute(0, 2, 3, 1)}
    return out | turned | {"mean": made["mean"][:, :, 0]}


def sigmas(pipeline: QwenImageLayeredPipeline) -> dict[str, torch.Tensor]:
    """Of 50 steps at the real sizes, as the pipeline asks its scheduler for them."""
    out = {}
    for width, height in REAL_SIZES:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        mu = (width * height / 16 / 16 / 256) ** 0.5
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0, 51)[:-1], mu=mu)
        out[f"sigmas.{width}x{height}"] = scheduler.sigmas
    return out


def pictures(folder: Path, pipeline: QwenImageLayeredPipeline, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Layers [N, H, W, 4] of the whole pipeline, as uint8."""
    alpha, opaque = (Image.open(folder / f"{name}.png").convert("RGBA") for name in ("alpha", "opaque"))
    common = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "np", "layers": LAYERS}

    def made(image: Image.Image, **more: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(options["seed"])
        return levels(np.stack(pipeline(image, generator=generator, **common | more).images[0]))

    cfg = {"negative_prompt": NEGATIVE, "true_cfg_scale": CFG}
    return {
        "layers.seed": made(alpha),
        "layers.opaque": made(opaque),
        "layers.described": made(alpha, prompt=" ", use_en_prompt=True),
        "layers.one": made(alpha, layers=1),
        "layers.cfg": made(alpha, **cfg),
        "layers.normalized": made(alpha, **cfg, cfg_normalize=True),
    }


if __name__ == "__main__":
    run(draw, __doc__)
