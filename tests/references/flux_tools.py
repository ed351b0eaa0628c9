"""Adds FLUX.1's tools to a drawn FLUX.1 of the dev kind: Fill, Control (Depth, Canny) and Kontext, with what diffusers
makes of them.

    python tests/references/flux_tools.py FOLDER BASE [--seed N] [--kinds KIND …]

BASE is a draw of flux.py with an even seed. FOLDER/KIND gets model_index.json, a transformer with a wider input (fill,
control), options.json, pictures, masks and reference.safetensors: pictures of the whole pipeline. What is not there is
as in BASE. Needs torch, diffusers and transformers.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn
from diffusers import (
    FluxControlInpaintPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux import pipeline_flux_kontext, pipeline_flux_kontext_inpaint
from flux_text import spread
from inpaint import draw_masks, open_flux
from PIL import Image
from safetensors.torch import save_file

PIPELINES = {"fill": FluxFillPipeline, "control": FluxControlPipeline, "kontext": FluxKontextPipeline}
LATENTS, MASK = 16, 256  # channels of a token: of the tiny autoencoder's latents, of a mask's pixels
WIDTHS = {"fill": 2 * LATENTS + MASK, "control": 2 * LATENTS}
SIZES = [(32, 64), (48, 48), (64, 32), (80, 32)]  # in place of Kontext's, whose sides are about 1024
GUIDANCE = {"fill": 30.0, "control": 10.0, "kontext": 2.5}


def draw(folder: Path, base: Path, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = json.loads((base / "prompts.json").read_text())
    options |= {"kind": kind, "seed": seed, "guidance": GUIDANCE[kind], "sizes": SIZES}
    options |= {"width": 16 * dice.choice([3, 4]), "height": 32}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    name = PIPELINES[kind].__name__
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    parts = dict(open_flux(base).components)
    if kind in WIDTHS:
        config = dict(parts["transformer"].config) | {"in_channels": WIDTHS[kind], "out_channels": LATENTS}
        model = FluxTransformer2DModel.from_config(config)
        parts["transformer"] = save_drawn(model, folder / "transformer", spread, seed)
    draw_pictures(folder, options, dice)
    with torch.no_grad():
        reference = WAYS[kind](folder, parts, options)
    save_file(reference, folder / "reference.safetensors")


def draw_pictures(folder: Path, options: dict[str, Any], dice: random.Random) -> None:
    """One of the picture's size and a little more, with masks for it, and one of other proportions."""
    for index, size in enumerate([(options["width"] + 8, options["height"] + 5), (45, 70)], start=1):
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / f"picture{index}.png")
    draw_masks(folder, (options["width"] + 8, options["height"] + 5), dice)


class Caller:
    """Runs a pipeline with what all ways share."""

    def __init__(self, folder: Path, options: dict[str, Any]):
        self.folder = folder
        self.options = options

    def __call__(self, kind: type, parts: dict[str, Any], **more: Any) -> torch.Tensor:
        options = self.options
        taken = set(kind.__init__.__code__.co_varnames)
        made = kind(**{name: part for name, part in parts.items() if name in taken})
        made.set_progress_bar_config(disable=True)
        seeded = torch.Generator().manual_seed(options["seed"])
        common = {"num_inference_steps": options["steps"], "guidance_scale": options["guidance"], "generator": seeded}
        common |= {"max_sequence_length": options["length"], "width": options["width"], "height": options["height"]}
        return torch.from_numpy(np.array(made(prompt=options["prompt"], **(common | more)).images[0]))

    def open(self, name: str) -> Image.Image:
        return Image.open(self.folder / f"{name}.png")


def fill(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    run = Caller(folder, options)
    picture, hard, soft = (run.open(name) for name in ("picture1", "mask.hard", "mask.soft"))
    return {
        "hard": run(FluxFillPipeline, parts, image=picture, mask_image=hard),
        "soft": run(FluxFillPipeline, parts, image=picture, mask_image=soft),
        "part": run(FluxFillPipeline, parts, image=picture, mask_image=hard, strength=options["strength"]),
    }


def control(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    run = Caller(folder, options)
    picture, other, hard = (run.open(name) for name in ("picture1", "picture2", "mask.hard"))
    masked = {"image": picture, "mask_image": hard, "strength": options["strength"]}
    return {
        "seed": run(FluxControlPipeline, parts, control_image=other),
        "mask": run(FluxControlInpaintPipeline, parts, control_image=other, **masked),
    }


def kontext(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    for module in (pipeline_flux_kontext, pipeline_flux_kontext_inpaint):
        module.PREFERRED_KONTEXT_RESOLUTIONS = SIZES
    run = Caller(folder, options)
    picture, other, hard = (run.open(name) for name in ("picture1", "picture2", "mask.hard"))
    area = {"max_area": options["width"] * options["height"]}  # else 1024 * 1024 pixels are made
    cfg = {"negative_prompt": options["negative_prompt"], "true_cfg_scale": options["cfg"]}
    masked = {"image": picture, "mask_image": hard, "strength": options["strength"]}
    return {
        "seed": run(FluxKontextPipeline, parts, image=other, **area),
        "cfg": run(FluxKontextPipeline, parts, image=picture, **area, **cfg),
        "plain": run(FluxKontextPipeline, parts, **area),
        "mask": run(FluxKontextInpaintPipeline, parts, **masked, **area),
    }


WAYS = {"fill": fill, "control": control, "kontext": kontext}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        draw(arguments.folder / kind, arguments.base, kind, arguments.seed)
