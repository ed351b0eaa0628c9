"""Adds FLUX.1's control networks to a drawn FLUX.1 of the dev kind, with what diffusers makes of them.

    python tests/references/flux_controls.py FOLDER BASE [--seed N] [--kinds KIND …]

BASE is a draw of flux.py with an even seed. FOLDER/KIND gets a transformer with more blocks than BASE's, network/ (a
union that is told kinds of pictures, one without, one of XLabs' that looks at pixels), options.json, pictures, masks,
a LoRA (style, of plain) and reference.safetensors: pictures of the whole pipeline. What is not there is as in BASE.
Needs torch, diffusers, transformers and peft.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from autoencoders import save_drawn
from command import run_on_base_by_kind
from diffusers import (
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.controlnets.controlnet_flux import FluxMultiControlNetModel
from flux_text import spread
from flux_tools import LATENTS, RANK, Caller, draw_pictures, lora_spread
from inpaint import open_flux
from safetensors.torch import load_file, save_file
from weight_descriptions import redraw

DEPTHS = {"num_layers": 5, "num_single_layers": 4}  # of the transformer: no multiples of the networks'
NETWORKS = {
    "union": {"num_layers": 2, "num_single_layers": 3, "num_mode": 10},
    "plain": {"num_layers": 3, "num_single_layers": 0, "num_mode": None},
    "xlabs": {
        "num_layers": 2,
        "num_single_layers": 0,
        "patch_size": 2,
        "conditioning_embedding_channels": LATENTS // 4,
    },
}
BASE_PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
FIRST, SECOND = (2, 0.7), (1, 0.4)  # the mode (depth, tile) and the strength of each picture
START, END = 0.2, 0.8
KEYS = ("attention_head_dim", "axes_dims_rope", "guidance_embeds", "in_channels", "joint_attention_dim")
KEYS += ("num_attention_heads", "pooled_projection_dim")


def draw(folder: Path, base: Path, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = json.loads((base / "prompts.json").read_text())
    options |= {"kind": kind, "seed": seed, "guidance": 3.5, "width": 16 * dice.choice([3, 4]), "height": 32}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    parts = dict(open_flux(base).components)
    config = dict(parts["transformer"].config)
    parts["transformer"] = save_drawn(
        FluxTransformer2DModel.from_config(config | DEPTHS), folder / "transformer", spread, seed
    )
    network = FluxControlNetModel(**{key: config[key] for key in KEYS} | NETWORKS[kind])
    parts["controlnet"] = save_drawn(network, folder / "network", spread, seed + 1)
    draw_pictures(folder, options, dice)
    with torch.no_grad():
        save_file(pictures(folder, kind, parts, options), folder / "reference.safetensors")


def pictures(folder: Path, kind: str, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    run = Caller(folder, options)
    first, second, mask = (run.open(name) for name in ("picture1", "picture2", "mask.hard"))
    mode, strength = FIRST
    cfg = {"negative_prompt": options["negative_prompt"], "true_cfg_scale": options["cfg"]}
    told: dict[str, Any] = {"control_mode": mode} if kind == "union" else {}
    one = {"control_image": second, "controlnet_conditioning_scale": strength, **told}
    out = {"one": run(FluxControlNetPipeline, parts, **one)}
    if kind == "xlabs":
        return out
    window = {"control_guidance_start": START, "control_guidance_end": END}
    out["window"] = run(FluxControlNetPipeline, parts, **one, **window)
    out["cfg"] = run(FluxControlNetPipeline, parts, **one, **cfg)
    inpaint = {"image": first, "mask_image": mask, "strength": options["strength"]}
    out["mask"] = run(FluxControlNetInpaintPipeline, parts, **one, **inpaint)
    if kind == "union":
        twice = parts | {"controlnet": FluxMultiControlNetModel([parts["controlnet"]])}
        modes, strengths = zip(FIRST, SECOND, strict=True)
        both = {"control_image": [second, first], "controlnet_conditioning_scale": list(strengths)}
        both |= {"control_guidance_start": [0.0, 0.0], "control_guidance_end": [1.0, 1.0]}  # one each: else one counts
        out["two"] = run(FluxControlNetPipeline, twice, **both, control_mode=list(modes))
    else:
        made = FluxPipeline(**{name: part for name, part in parts.items() if name in BASE_PARTS})
        made.load_lora_weights(draw_lora(folder, parts["transformer"], options["seed"]))
        out["lora"] = run(FluxControlNetPipeline, parts, **one)
    return out


def draw_lora(folder: Path, model: FluxTransformer2DModel, seed: int) -> dict[str, torch.Tensor]:
    """On the queries and values of the image's stream, in both kinds of blocks."""
    path = folder / "style/model.safetensors"
    path.parent.mkdir(exist_ok=True)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith((".to_q", ".to_v")):
            tensors[f"transformer.{name}.lora_A.weight"] = torch.zeros(RANK, module.in_features)
            tensors[f"transformer.{name}.lora_B.weight"] = torch.zeros(module.out_features, RANK)
    save_file(tensors, path)
    redraw(path, lora_spread, seed)
    return load_file(path)


if __name__ == "__main__":
    run_on_base_by_kind(draw, __doc__, NETWORKS, NETWORKS)
