"""Adds Qwen-Image's control networks to a drawn Qwen-Image, with what diffusers makes of them.

    python tests/references/qwen_controls.py FOLDER BASE [--seed N] [--kinds KIND …]

BASE is a draw of qwen.py or inpaint.py of the kind image. FOLDER/KIND gets a transformer with more blocks than BASE's,
network/ (the union, or the one that fills holes), options.json, pictures, masks and reference.safetensors: pictures of
the whole pipeline. What is not there is as in BASE. Needs torch, diffusers and transformers.
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
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.controlnets.controlnet_qwenimage import QwenImageMultiControlNetModel
from flux_tools import draw_pictures
from inpaint import open_qwen
from PIL import Image
from qwen import spread
from safetensors.torch import save_file

DEPTH = 5  # of the transformer: no multiple of the networks'
NETWORKS = {
    "union": {"num_layers": 2, "extra_condition_channels": 0},
    "inpainting": {"num_layers": 3, "extra_condition_channels": 4},
}
STRENGTHS = 0.7, 0.4
START, END = 0.2, 0.8
KEYS = ("attention_head_dim", "axes_dims_rope", "in_channels", "joint_attention_dim", "num_attention_heads")
KEYS += ("out_channels", "patch_size")


def draw(folder: Path, base: Path, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = json.loads((base / "options.json").read_text())
    options |= {"network": kind, "seed": seed, "width": 16 * dice.choice([3, 4]), "height": 32}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    parts = dict(open_qwen(base, "QwenImagePipeline").components)
    config = dict(parts["transformer"].config)
    deeper = QwenImageTransformer2DModel.from_config(config | {"num_layers": DEPTH})
    parts["transformer"] = save_drawn(deeper, folder / "transformer", spread, seed)
    network = QwenImageControlNetModel(**{key: config[key] for key in KEYS} | NETWORKS[kind])
    parts["controlnet"] = save_drawn(network, folder / "network", spread, seed + 1)
    draw_pictures(folder, options, dice)
    with torch.no_grad():
        made = (union if kind == "union" else inpainting)(folder, parts, options)
    save_file(made, folder / "reference.safetensors")


def run(kind: type, parts: dict[str, Any], options: dict[str, Any], **more: Any) -> torch.Tensor:
    taken = set(kind.__init__.__code__.co_varnames)
    made = kind(**{name: part for name, part in parts.items() if name in taken})
    made.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": options["steps"], "generator": torch.Generator().manual_seed(options["seed"])}
    common |= {"width": options["width"], "height": options["height"]}
    return torch.from_numpy(np.array(made(prompt=options["prompt"], **(common | more)).images[0]))


def cfg_of(options: dict[str, Any]) -> dict[str, Any]:
    return {"negative_prompt": options["negative_prompt"], "true_cfg_scale": options["cfg"]}


def union(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    first, second = (Image.open(folder / f"picture{index}.png") for index in (1, 2))
    kind, one = QwenImageControlNetPipeline, {"control_image": second, "controlnet_conditioning_scale": STRENGTHS[0]}
    window = {"control_guidance_start": START, "control_guidance_end": END}
    twice = parts | {"controlnet": QwenImageMultiControlNetModel([parts["controlnet"]])}
    both = {"control_image": [second, first], "controlnet_conditioning_scale": list(STRENGTHS)}
    both |= {"control_guidance_start": [0.0, 0.0], "control_guidance_end": [1.0, 1.0]}  # one each: else one counts
    return {
        "one": run(kind, parts, options, **one),
        "window": run(kind, parts, options, **one, **window),
        "cfg": run(kind, parts, options, **one, **cfg_of(options)),
        "two": run(kind, twice, options, **both),
    }


def inpainting(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """diffusers samples the picture with a hole from torch's own state, which no seed of the request fixes: here it
    takes the mode."""
    DiagonalGaussianDistribution.sample = lambda posterior, generator=None: posterior.mode()
    picture, *masks = (Image.open(folder / f"{name}.png") for name in ("picture1", "mask.hard", "mask.soft"))
    given = {"control_image": picture, "controlnet_conditioning_scale": STRENGTHS[0]}
    made = {
        way: run(QwenImageControlNetInpaintPipeline, parts, options, **given, control_mask=mask)
        for way, mask in zip(("hard", "soft"), masks, strict=True)
    }
    cfg = run(QwenImageControlNetInpaintPipeline, parts, options, **given, control_mask=masks[0], **cfg_of(options))
    return made | {"cfg": cfg}


if __name__ == "__main__":
    run_on_base_by_kind(draw, __doc__, NETWORKS, ["union", "inpainting"])
