"""Draws an autoencoder like Qwen-Image's, tiny and random, in its real layout, with what diffusers makes of it.

    python tests/references/qwen_vae.py FOLDER [--seed N]

FOLDER gets vae/ (config.json and diffusion_pytorch_model.safetensors, as published, with 5-D weights) and
reference.safetensors: latents as a loop leaves them and the pixels decoded from them; a picture, the posterior it is
encoded to and its normalised mode. Needs torch and diffusers.
tests/data/qwen_vae is seed 124: three levels of two blocks, one of them downsampled in time.
"""

import copy
import math
import random
from itertools import count
from pathlib import Path

import torch
from autoencoders import ATTEMPTS, save_drawn, shown, steady, store
from command import run
from diffusers import AutoencoderKLQwenImage


def config(dice: random.Random) -> dict[str, object]:
    levels, channels = dice.choice([2, 3, 4]), dice.choice([3, 4, 6])
    return {
        "attn_scales": [],
        "base_dim": dice.choice([4, 6]),
        "dim_mult": [dice.choice([1, 2, 3]) for _ in range(levels)],
        "dropout": 0.0,
        "latents_mean": [round(dice.uniform(-1, 1), 4) for _ in range(channels)],
        "latents_std": [round(dice.uniform(0.5, 3), 4) for _ in range(channels)],
        "num_res_blocks": dice.choice([1, 2]),
        "temperal_downsample": [dice.random() < 0.6 for _ in range(levels - 1)],
        "z_dim": channels,
    }


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of weights of a size at which every part of the model shows in its output; pixels mostly within
    -1..1, where diffusers clamps them. Time slices that one picture never meets are no smaller than the last."""
    if name.endswith("gamma"):
        return 1.0, 0.3
    met = math.prod(shape[1:]) // (shape[2] if len(shape) == 5 else 1)
    size = 0.3 if name.endswith("bias") else (2 / met) ** 0.5
    return 0.0, size * (0.3 if name.startswith("decoder.conv_out") else 1)


def seen(model: AutoencoderKLQwenImage, latents: torch.Tensor, picture: torch.Tensor) -> dict[str, torch.Tensor]:
    """What diffusers makes of them, in the type that all three are of."""
    mean, std = (latents.new_tensor(model.config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        pixels = model.decode((latents * std + mean)[:, :, None]).sample[:, :, 0]
        posterior = model.encode(picture[:, :, None]).latent_dist
    made = {"pixels": pixels, "mean": posterior.mode()[:, :, 0], "logvar": posterior.logvar[:, :, 0]}
    return made | {"normalised": (made["mean"] - mean) / std}


def draw(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    for attempt in count():
        model = save_drawn(AutoencoderKLQwenImage(**config(dice)), folder / "vae", spread, seed + ATTEMPTS * attempt)
        latents, picture = shown(dice, model.config.z_dim, factor=2 ** len(model.config.temperal_downsample))
        reference = seen(model, latents, picture)
        if steady(reference, seen(copy.deepcopy(model).double(), latents.double(), picture.double())):
            break
    store(folder, reference | {"latents": latents, "picture": picture})


if __name__ == "__main__":
    run(draw, __doc__)
