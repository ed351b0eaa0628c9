"""Draws an autoencoder like FLUX.1's, tiny and random, in its real layout, with what diffusers makes of it.

    python tests/references/flux_vae.py FOLDER [--seed N]

FOLDER gets vae/ (config.json and diffusion_pytorch_model.safetensors, as published) and reference.safetensors: latents
as a loop leaves them and the pixels decoded from them; a picture and the posterior it is encoded to. Needs torch and
diffusers. tests/data/flux_vae is seed 50: three widths, attention, two blocks a level.
"""

import copy
import math
import random
from itertools import count
from pathlib import Path

import torch
from autoencoders import ATTEMPTS, save_drawn, shown, steady, store
from command import run
from diffusers import AutoencoderKL


def config(dice: random.Random) -> dict[str, object]:
    levels, groups = dice.choice([2, 3, 4]), dice.choice([2, 4])
    return {
        "act_fn": "silu",
        "block_out_channels": [groups * dice.choice([2, 3, 4]) for _ in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": dice.choice([3, 4, 6]),
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": dice.choice([1, 2]),
        "mid_block_add_attention": dice.random() < 0.8,
        "norm_num_groups": groups,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": round(dice.uniform(0.2, 1.2), 4),
        "shift_factor": round(dice.uniform(-0.3, 0.3), 4),
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of weights of a size at which every part of the model shows in its output."""
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.3
    size = 0.3 if name.endswith("bias") else (2 / math.prod(shape[1:])) ** 0.5
    return 0.0, size * (0.002 if "conv_in" in name else 1)  # so small that the first norm's eps shows


def seen(model: AutoencoderKL, latents: torch.Tensor, picture: torch.Tensor) -> dict[str, torch.Tensor]:
    """What diffusers makes of them, in the type that all three are of."""
    with torch.no_grad():
        pixels = model.decode(latents / model.config.scaling_factor + model.config.shift_factor).sample
        posterior = model.encode(picture).latent_dist
    return {"pixels": pixels, "mean": posterior.mean, "logvar": posterior.logvar}


def draw(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    for attempt in count():
        model = save_drawn(AutoencoderKL(**config(dice)), folder / "vae", spread, seed + ATTEMPTS * attempt)
        latents, picture = shown(dice, model.config.latent_channels, 2 ** (len(model.config.block_out_channels) - 1))
        reference = seen(model, latents, picture)
        if steady(reference, seen(copy.deepcopy(model).double(), latents.double(), picture.double())):
            break
    store(folder, reference | {"latents": latents, "picture": picture})


if __name__ == "__main__":
    run(draw, __doc__)
