"""Adds FLUX.1's tools to a drawn FLUX.1 of the dev kind: Fill, Control (Depth, Canny), a control LoRA and Kontext, with
what diffusers makes of them.

    python tests/references/flux_tools.py FOLDER BASE [--seed N] [--kinds KIND …]

BASE is a draw of flux.py with an even seed. FOLDER/KIND gets model_index.json, a transformer with a wider input (fill,
control) or control/model.safetensors, a LoRA laid out as Black Forest Labs' (lora), options.json, pictures, masks and
reference.safetensors: pictures of the whole pipeline. What is not there is as in BASE. Needs torch, diffusers,
transformers and peft.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn
from command import run_on_base_by_kind
from diffusers import (
    FluxControlInpaintPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.loaders import lora_conversion_utils
from diffusers.pipelines.flux import pipeline_flux_kontext, pipeline_flux_kontext_inpaint
from flux_lora_names import linears, norms
from flux_text import spread
from inpaint import draw_masks, open_flux
from PIL import Image
from safetensors.torch import load_file, save_file
from weight_descriptions import redraw

PIPELINES = {"fill": FluxFillPipeline, "control": FluxControlPipeline, "kontext": FluxKontextPipeline}
PIPELINES["lora"] = FluxPipeline
LATENTS, MASK = 16, 256  # channels of a token: of the tiny autoencoder's latents, of a mask's pixels
WIDTHS = {"fill": 2 * LATENTS + MASK, "control": 2 * LATENTS}
SIZES = [(32, 64), (48, 48), (64, 32), (80, 32)]  # in place of Kontext's, whose sides are about 1024
GUIDANCE = {"fill": 30.0, "control": 10.0, "kontext": 2.5, "lora": 10.0}
RANK = 4


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


def draw_lora(folder: Path, model: FluxTransformer2DModel, seed: int) -> dict[str, torch.Tensor]:
    """Every linear layer, its bias too, the first one twice as wide; every norm of queries and keys whole."""
    config = model.config
    depths = config.num_layers, config.num_single_layers
    sizes = (model.inner_dim, LATENTS, config.joint_attention_dim, config.pooled_projection_dim, *depths)
    tensors = {name: torch.ones(config.attention_head_dim) for name in norms(*depths)}
    for name, (rows, columns) in linears(*sizes).items():
        tensors[f"{name}.lora_A.weight"] = torch.zeros(RANK, columns)
        tensors |= {f"{name}.lora_B.weight": torch.zeros(rows, RANK), f"{name}.lora_B.bias": torch.zeros(rows)}
    path = folder / "control/model.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    redraw(path, lora_spread, seed)
    return load_file(path)


def lora_spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if name.endswith("norm.scale"):
        return 1.0, 0.3
    return 0.0, shape[-1] ** -0.5 if "lora_A" in name else 0.2 if name.endswith("weight") else 0.1


def load_control(made: FluxControlPipeline, tensors: dict[str, torch.Tensor]) -> None:
    """diffusers' conversion has the published model's depths and width in its code. For the last norm it swaps the
    halves not of B alone but also of A, whose rows are ranks: here they are swapped before, so that the product is the
    original's."""
    config, convert = made.transformer.config, lora_conversion_utils._convert_bfl_flux_control_lora_to_diffusers
    numbers = {19: config.num_layers, 38: config.num_single_layers, 3072: made.transformer.inner_dim}
    code = convert.__code__
    consts = tuple(numbers.get(value, value) if type(value) is int else value for value in code.co_consts)
    convert.__code__ = code.replace(co_consts=consts)
    name = "final_layer.adaLN_modulation.1.lora_A.weight"
    made.load_lora_weights(tensors | {name: torch.cat(tensors[name].chunk(2)[::-1])})


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
        common |= {"prompt": options["prompt"]}
        common |= {"max_sequence_length": options["length"], "width": options["width"], "height": options["height"]}
        return torch.from_numpy(np.array(made(**(common | more)).images[0]))

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


def lora(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    run = Caller(folder, options)
    tensors = draw_lora(folder, parts["transformer"], options["seed"])
    made = FluxControlPipeline(**{name: part for name, part in parts.items() if not name.startswith(("image", "feat"))})
    load_control(made, tensors)
    return {"seed": run(FluxControlPipeline, dict(made.components), control_image=run.open("picture2"))}


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


WAYS = {"fill": fill, "control": control, "kontext": kontext, "lora": lora}


if __name__ == "__main__":
    run_on_base_by_kind(draw, __doc__, WAYS, WAYS)
