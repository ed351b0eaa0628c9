"""Draws a tiny random Z-Image-Omni in its folder layout, with what diffusers makes of it, step by step.

    python tests/references/z_image_omni.py FOLDER [--seed N]

FOLDER gets a whole diffusers repository, options.json, picture1.png … picture3.png (references) and
reference.safetensors: token ids of a prompt's pieces, what SigLIP2 sees of the pictures, the transformer with 0, 1 and
3 references, and pictures of the whole pipeline with as many, and from a picture. Needs torch, diffusers and
transformers.
"""

import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from command import run
from diffusers import ZImageOmniPipeline, ZImageTransformer2DModel
from flux_text import save_drawn
from PIL import Image
from safetensors.torch import save_file
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from z_image import GUIDANCE, LENGTH, NEGATIVE, PROMPT, STEPS, STRENGTH, draw_pipeline

SIZES = (66, 83), (131, 64), (64, 64)  # of references: one is cut, one is cut and filled up, one fits
COUNTS = {"none": 0, "one": 1, "three": 3}


def draw(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    heads, patch_size = dice.choice([1, 2]), dice.choice([3, 4])
    config = Siglip2VisionConfig(
        hidden_size=heads * dice.choice([8, 12]), intermediate_size=40, num_hidden_layers=dice.choice([1, 2]),
        num_attention_heads=heads, patch_size=patch_size, num_patches=dice.choice([4, 16, 25]),
        layer_norm_eps=dice.choice([1e-6, 1e-4]),
    )  # fmt: skip
    parts = draw_pipeline(folder, dice, seed, base=True, seen=config.hidden_size).components
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ZImageOmniPipeline"}))
    tower = save_drawn(Siglip2VisionModel(config), folder / "siglip", seed)
    processor = Siglip2ImageProcessorPil(patch_size=patch_size, max_num_patches=dice.choice([13, 36]))
    processor.save_pretrained(folder / "siglip_processor")
    pipeline = ZImageOmniPipeline(**parts, siglip=tower, siglip_processor=processor)
    pipeline.set_progress_bar_config(disable=True)
    options = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": STEPS, "length": LENGTH, "seed": seed}
    options |= {
        "width": 16 * dice.choice([2, 3]),
        "height": 16 * dice.choice([3, 4]),
        "guidance": GUIDANCE,
        "strength": STRENGTH,
    }
    (folder / "options.json").write_text(json.dumps(options, indent=1, ensure_ascii=False), encoding="utf-8")
    for index, size in enumerate(SIZES, 1):
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(folder / f"picture{index}.png")
    with torch.no_grad(), patch.object(torch.Tensor, "bfloat16", lambda self: self):  # pictures are encoded in float32
        reference = (
            transformer(pipeline.transformer, dice) | seen(folder, pipeline) | pictures(folder, pipeline, options)
        )
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors")


def open_pictures(folder: Path, count: int) -> list[Image.Image]:
    return [Image.open(folder / f"picture{index}.png").convert("RGB") for index in range(1, count + 1)]


def transformer(model: ZImageTransformer2DModel, dice: random.Random) -> dict[str, torch.Tensor]:
    """With sequences that have to be filled up, and some that have not; the same inputs for each count."""
    config, t = model.config, torch.tensor([0.3819])
    grids = [(3, 5), (4, 8), (5, dice.choice([3, 7])), (dice.choice([3, 4]), 5)]  # the last one is drawn
    seen = [(2, dice.choice([3, 7])), (4, 8), (1, 5)]
    lengths = [dice.choice([3, 32]), 2, 5, dice.choice([9, 40]), 2]
    x = [torch.randn(model.in_channels, 1, 2 * rows, 2 * columns) for rows, columns in grids]
    states = [torch.randn(length, config.cap_feat_dim) for length in lengths]
    features = [torch.randn(*grid, config.siglip_feat_dim) for grid in seen]
    out = {"t": t}
    for name, tensors in (("x", x), ("states", states), ("features", features)):
        out |= {f"{name}.{place}": tensor for place, tensor in enumerate(tensors)}
    for name, count in COUNTS.items():
        shown = [[*features[:count], None]] if count else [None]
        words = states[: count + 2] if count else states[3:4]
        noisy = [[0] * count + [1]]
        v = model([[*x[:count], x[-1]]], t, [words], True, None, shown, noisy).sample[0]
        out[f"out.{name}"] = v[:, 0]
    return out


def seen(folder: Path, pipeline: ZImageOmniPipeline) -> dict[str, torch.Tensor]:
    found = pipeline.prepare_siglip_embeds(open_pictures(folder, 3), 1, "cpu", torch.float32)[0]
    return {f"seen.{index}": features for index, features in enumerate(found, 1)}


class Recorder:
    """A tokenizer that keeps the texts it is given."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.texts = texts
        return self.tokenizer(texts, **options)


def pictures(folder: Path, pipeline: ZImageOmniPipeline, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Ids of a prompt's pieces, and pictures as uint8: without references, with one whose size is taken and without
    guidance, with three and two branches."""
    size = {"width": options["width"], "height": options["height"]}
    tokenizer = Recorder(pipeline.tokenizer)
    pipeline.tokenizer, out = tokenizer, {}
    ways = {"none": size | {"guidance_scale": 0.0}, "one": {"guidance_scale": 0.0}}
    ways["three"] = size | {"guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    for name, way in ways.items():
        count = COUNTS[name]
        pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, num_condition_images=count)
        ids = [tokenizer.tokenizer(text)["input_ids"] for text in tokenizer.texts]
        out |= {f"ids.{name}.{place}": torch.tensor(each) for place, each in enumerate(ids)}
        shown = {"image": open_pictures(folder, count)} if count else {}
        out[f"picture.{name}"] = drawn(pipeline, generator=seeded(options), **shown, **way)
    return out | {"picture.image": from_picture(folder, pipeline, options)}


def seeded(options: dict[str, Any]) -> torch.Generator:
    return torch.Generator().manual_seed(options["seed"])


def drawn(pipeline: ZImageOmniPipeline, **options: Any) -> torch.Tensor:
    common = {"prompt": PROMPT, "num_inference_steps": STEPS, "max_sequence_length": LENGTH, "output_type": "np"}
    return torch.from_numpy((pipeline(**common, **options).images[0] * 255).round().astype(np.uint8))


def from_picture(folder: Path, pipeline: ZImageOmniPipeline, options: dict[str, Any]) -> torch.Tensor:
    """Part of the schedule, from one picture by the other two. diffusers has no pipeline for it, so that this one is
    given what Z-Image's for pictures makes: latents, drawn and then noised, and sigmas."""
    first, *others = open_pictures(folder, 3)
    size, generator, vae = {name: options[name] for name in ("width", "height")}, seeded(options), pipeline.vae
    pixels = pipeline.image_processor.preprocess(first.resize(tuple(size.values()), Image.Resampling.LANCZOS))
    sample = vae.encode(pixels).latent_dist.sample(generator)
    clean = (sample - vae.config.shift_factor) * vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=generator)
    sigmas = np.linspace(1.0, 1 / STEPS, STEPS)[int(STEPS - STEPS * STRENGTH) :].tolist()
    pipeline.scheduler.set_timesteps(sigmas=sigmas)
    latents = pipeline.scheduler.scale_noise(clean, pipeline.scheduler.timesteps[:1], noise)
    return drawn(pipeline, image=others, latents=latents, sigmas=sigmas, guidance_scale=0.0, **size)


if __name__ == "__main__":
    run(draw, __doc__)
