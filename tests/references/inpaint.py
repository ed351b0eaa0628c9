"""Adds to a drawn FLUX.1 or Qwen-Image what diffusers' inpaint pipelines make of it.

    python tests/references/inpaint.py FOLDER [--seed N] [--ways WAY …] [--draw KIND …]

FOLDER is a draw of flux.py or of qwen.py (image or edit). It gets masks (mask.hard.png as large as the picture,
mask.soft.png of another size, with soft edges and in colours) and inpaint.safetensors: pictures with either mask, from
pure noise, with a negative prompt, and with the masked part cropped out, drawn at full size and pasted back. With
--draw, FOLDER/KIND are drawn first: models, pictures and options alone. Needs torch, diffusers and transformers.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flux
import numpy as np
import qwen
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxInpaintPipeline,
    FluxTransformer2DModel,
    QwenImageEditInpaintPipeline,
    QwenImageInpaintPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as edit_inpaint
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from weight_descriptions import SUFFIX, write

WAYS = ("hard", "soft", "all", "cfg", "crop")
PADDING = 5
KINDS = ("flux", "image", "edit")
EDIT_SIZE = 128, 64  # what the editing pipeline makes of such a picture: it can crop from no other


def draw(folder: Path, seed: int, ways: Sequence[str]) -> None:
    dice = random.Random(seed)
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    is_flux = kind == "FluxPipeline"
    options: dict[str, Any] = json.loads((folder / ("prompts.json" if is_flux else "options.json")).read_text())
    picture = Image.open(folder / ("picture.png" if is_flux else "picture1.png")).convert("RGB")
    if kind == "QwenImageEditPipeline":
        shrink_references()
        picture = picture.resize(EDIT_SIZE, Image.Resampling.LANCZOS)
        picture.save(folder / "picture.inpaint.png")
    draw_masks(folder, picture.size, dice)
    for description in folder.rglob(f"*{SUFFIX}"):  # of weights that are not stored
        write(description, description.with_name(description.name.removesuffix(SUFFIX) + ".safetensors"))
    made = open_flux(folder) if is_flux else open_qwen(folder, kind)
    made.set_progress_bar_config(disable=True)
    with torch.no_grad():
        save_file(pictures(folder, made, options, picture, ways), folder / "inpaint.safetensors")


def draw_model(folder: Path, kind: str, seed: int) -> None:
    """What flux.py and qwen.py draw, without what diffusers makes of it."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    options: dict[str, Any] = {"width": 16 * dice.choice([3, 4, 5]), "height": 16 * dice.choice([2, 3]), "seed": seed}
    if kind == "flux":
        flux.draw_pipeline(folder, dice, seed)
        options |= {"prompt": flux.PROMPT, "negative_prompt": flux.NEGATIVE, "steps": flux.STEPS, "cfg": flux.CFG}
        options |= {"strength": flux.STRENGTH, "length": flux.LENGTH, "guidance": flux.GUIDANCE}
    else:
        qwen.draw_pipeline(folder, kind, dice, seed)
        options |= {"prompt": qwen.PROMPT, "negative_prompt": qwen.NEGATIVE, "steps": qwen.STEPS, "cfg": qwen.CFG}
        options |= {"strength": qwen.STRENGTH, "kind": kind, "full_size": False}
        options |= {"language_area": qwen.LANGUAGE_AREA, "latent_area": qwen.LATENT_AREA}
    (folder / ("prompts.json" if kind == "flux" else "options.json")).write_text(json.dumps(options, indent=1))
    qwen.draw_picture_files(folder, dice)
    (folder / "picture1.png").rename(folder / ("picture.png" if kind == "flux" else "picture1.png"))


def shrink_references() -> None:
    exact = edit_inpaint.calculate_dimensions
    edit_inpaint.calculate_dimensions = lambda area, ratio: exact(qwen.LATENT_AREA if area == 1024**2 else area, ratio)


def open_flux(folder: Path) -> FluxInpaintPipeline:
    return FluxInpaintPipeline(
        FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        AutoencoderKL.from_pretrained(folder / "vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5EncoderModel.from_pretrained(folder / "text_encoder_2"),
        T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
        FluxTransformer2DModel.from_pretrained(folder / "transformer"),
    )


def open_qwen(folder: Path, kind: str) -> Any:
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    text = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()
    qwen.with_picture_positions(text)
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        "vae": AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        "text_encoder": text,
        "tokenizer": tokenizer,
        "transformer": QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
    }
    if kind == "QwenImagePipeline":
        return QwenImageInpaintPipeline(**parts)
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16384)
    return QwenImageEditInpaintPipeline(**parts, processor=qwen.Processor(images, tokenizer))


def draw_masks(folder: Path, size: tuple[int, int], dice: random.Random) -> None:
    """An ellipse off the middle; the soft one tinted, with a step in one of its colours."""
    hard = ellipse(size, dice)
    hard.save(folder / "mask.hard.png")
    large = (round(size[0] * 1.5), round(size[1] * 1.5))
    levels = np.asarray(ellipse(large, dice).filter(ImageFilter.GaussianBlur(size[1] / 25)))
    tinted = np.stack([levels, levels, np.minimum(levels + 40.0 * (levels > 20), 255)], axis=-1)
    Image.fromarray(tinted.astype(np.uint8)).save(folder / "mask.soft.png")


def ellipse(size: tuple[int, int], dice: random.Random) -> Image.Image:
    rows, columns = np.indices(size[::-1])
    middle = size[0] * dice.uniform(0.3, 0.7), size[1] * dice.uniform(0.3, 0.7)
    radius = size[0] * dice.uniform(0.15, 0.25), size[1] * dice.uniform(0.2, 0.35)
    inside = ((columns - middle[0]) / radius[0]) ** 2 + ((rows - middle[1]) / radius[1]) ** 2 < 1
    return Image.fromarray((inside * 255).astype(np.uint8))


def pictures(
    folder: Path, made: Any, options: dict[str, Any], picture: Image.Image, ways: Sequence[str]
) -> dict[str, torch.Tensor]:
    """As uint8; only `crop` is pasted into the given picture."""
    common = {"prompt": options["prompt"], "num_inference_steps": options["steps"], "image": picture}
    if not isinstance(made, QwenImageEditInpaintPipeline):
        common |= {"width": options["width"], "height": options["height"]}
    if isinstance(made, FluxInpaintPipeline):
        common |= {"guidance_scale": options["guidance"], "max_sequence_length": options["length"]}

    def run(mask: str, strength: float, **more: Any) -> torch.Tensor:
        seeded = torch.Generator().manual_seed(options["seed"])
        opened = Image.open(folder / f"mask.{mask}.png")
        image = made(**common, mask_image=opened, strength=strength, generator=seeded, **more).images[0]
        return torch.from_numpy(np.array(image))

    strength = options["strength"]
    cfg = {"negative_prompt": options["negative_prompt"], "true_cfg_scale": options["cfg"]}
    asked: dict[str, dict[str, Any]] = {
        "hard": {"mask": "hard", "strength": strength},
        "soft": {"mask": "soft", "strength": strength},
        "all": {"mask": "hard", "strength": 1.0},
        "cfg": {"mask": "hard", "strength": strength, **cfg},
        "crop": {"mask": "hard", "strength": strength, "padding_mask_crop": PADDING},
    }
    return {way: run(**asked[way]) for way in ways}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--draw", nargs="+", choices=KINDS)
    arguments = parser.parse_args()
    for kind in arguments.draw or ():
        draw_model(arguments.folder / kind, kind, arguments.seed)
    for folder in [arguments.folder / kind for kind in arguments.draw or ()] or [arguments.folder]:
        draw(folder, arguments.seed, arguments.ways)
