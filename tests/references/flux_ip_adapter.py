"""Adds an IP-Adapter in XLabs' layout to a drawn FLUX.1, with what transformers and diffusers make of it.

    python tests/references/flux_ip_adapter.py FOLDER BASE [--seed N]

BASE is a draw of flux.py. FOLDER gets adapter/ (model.safetensors and image_encoder/), options.json, pictures and
reference.safetensors: CLIP's vector of one picture, the adapter's tokens, and pictures of the whole pipeline. Needs
torch, diffusers and transformers.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from flux_text import save_drawn, spread
from flux_tools import draw_pictures
from inpaint import open_flux
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from weight_descriptions import redraw

SCALES = 0.9, 0.4  # of two pictures
TOKENS = 4  # of a picture, as in the first of XLabs' files


def draw(folder: Path, base: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = json.loads((base / "prompts.json").read_text())
    options |= {"seed": seed, "guidance": 2.5, "width": 16 * dice.choice([3, 4]), "height": 32, "scales": SCALES}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    pipeline = open_flux(base)
    draw_adapter(folder / "adapter", pipeline.transformer, dice, seed)
    draw_pictures(folder, options, dice)
    with torch.no_grad():
        save_file(reference(folder, dict(pipeline.components), options), folder / "reference.safetensors")


def draw_adapter(folder: Path, model: Any, dice: random.Random, seed: int) -> None:
    heads, patch = dice.choice([1, 2, 3]), dice.choice([6, 7])
    side = patch * dice.choice([2, 3]) + dice.choice([0, 2])  # what is left over is not seen
    config = CLIPVisionConfig(
        hidden_size=heads * dice.choice([8, 12]), intermediate_size=40, num_hidden_layers=dice.choice([1, 2]),
        num_attention_heads=heads, image_size=side, patch_size=patch, hidden_act=dice.choice(["quick_gelu", "gelu"]),
        layer_norm_eps=dice.choice([1e-5, 1e-3]), projection_dim=dice.choice([16, 24]),
    )  # fmt: skip
    save_drawn(CLIPVisionModelWithProjection(config), folder / "image_encoder", seed)
    dims, inner = model.config.joint_attention_dim, model.inner_dim
    tensors = {
        "ip_adapter_proj_model.proj.weight": torch.zeros(TOKENS * dims, config.projection_dim),
        "ip_adapter_proj_model.proj.bias": torch.zeros(TOKENS * dims),
        "ip_adapter_proj_model.norm.weight": torch.zeros(dims),
        "ip_adapter_proj_model.norm.bias": torch.zeros(dims),
    }
    for block in range(model.config.num_layers):
        for part in "kv":
            name = f"double_blocks.{block}.processor.ip_adapter_double_stream_{part}_proj"
            tensors |= {f"{name}.weight": torch.zeros(inner, dims), f"{name}.bias": torch.zeros(inner)}
    path = folder / "model.safetensors"
    save_file(tensors, path)
    redraw(path, shown, seed)


def shown(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """So that the pictures show in the picture: the drawn transformers' streams are in the millions."""
    if name.endswith("norm.weight"):
        return 1.0, 0.2
    mean, size = spread(name, shape)
    return mean, size * (1e6 if "v_proj" in name else 1)


def reference(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    tower = CLIPVisionModelWithProjection.from_pretrained(folder / "adapter/image_encoder")
    side = tower.config.image_size
    processor = CLIPImageProcessorPil(size=side, crop_size=side)  # as diffusers makes it
    first, second = (Image.open(folder / f"{name}.png").convert("RGB") for name in ("picture1", "picture2"))
    out = {"vector": tower(**processor(images=second, return_tensors="pt")).image_embeds}
    pictures = {"one": [first], "two": [first, second], "cfg": [second]}
    for way, images in pictures.items():
        made = open_flux_with(parts, tower, processor, folder, len(images))
        layers = made.transformer.config.num_layers
        made.set_ip_adapter_scale([[scale] * layers for scale in SCALES[: len(images)]])
        cfg = {"negative_prompt": options["negative_prompt"], "true_cfg_scale": options["cfg"]} if way == "cfg" else {}
        out[way] = run(made, options, ip_adapter_image=images, **cfg)
        if way == "one":
            embeds = tower(**processor(images=first, return_tensors="pt")).image_embeds
            (out["tokens"],) = made.transformer.encoder_hid_proj([embeds[None]])
        made.unload_ip_adapter()
    return {name: value.contiguous() for name, value in out.items()}


def open_flux_with(parts: dict[str, Any], tower: Any, processor: Any, folder: Path, count: int) -> FluxPipeline:
    """The adapter once for each picture, so that each has its own scale."""
    taken = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    made = FluxPipeline(**taken, image_encoder=tower, feature_extractor=processor)
    made.set_progress_bar_config(disable=True)
    file = "model.safetensors"
    made.load_ip_adapter([str(folder / "adapter")] * count, weight_name=[file] * count)
    return made


def run(made: FluxPipeline, options: dict[str, Any], **more: Any) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(options["seed"])
    common = {"prompt": options["prompt"], "num_inference_steps": options["steps"], "generator": seeded}
    common |= {"guidance_scale": options["guidance"], "max_sequence_length": options["length"]}
    common |= {"width": options["width"], "height": options["height"]}
    return torch.from_numpy(np.array(made(**common, **more).images[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.base, arguments.seed)
