"""Draws an autoencoder like FLUX.2's, tiny and random, in its real layout, with what diffusers makes of it.

    python tests/references/flux2_vae.py FOLDER [--seed N]

FOLDER gets vae/ (config.json and diffusion_pytorch_model.safetensors, as published) and reference.safetensors: latents
as a loop leaves them and the pixels decoded from them; a picture, the posterior it is encoded to, and its mode as the
loop has it. Half of the draws have a decoder of other widths. Needs torch and diffusers. tests/data/flux2_vae is
seed 8.
"""

import copy
import random
from itertools import count
from pathlib import Path
from typing import Any

import flux_vae
import torch
from autoencoders import ATTEMPTS, save_drawn, shown, steady, store
from command import run
from diffusers import AutoencoderKLFlux2

NOT_FLUX2 = ("force_upcast", "latents_mean", "latents_std", "scaling_factor", "shift_factor")


def config(dice: random.Random) -> dict[str, Any]:
    drawn: dict[str, Any] = {name: value for name, value in flux_vae.config(dice).items() if name not in NOT_FLUX2}
    groups = drawn["norm_num_groups"]
    thin = [groups * dice.choice([1, 2]) for _ in drawn["block_out_channels"]]
    drawn |= {"use_quant_conv": True, "use_post_quant_conv": True, "latent_channels": dice.choice([2, 4])}
    return drawn | {"decoder_block_out_channels": thin if dice.random() < 0.5 else None}


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of weights; a batch norm's running variance stays well above 0."""
    if name.startswith("bn."):
        return (1.5, 0.3) if name.endswith("var") else (0.0, 0.3)
    return flux_vae.spread(name, shape)


def build(settings: dict[str, Any]) -> AutoencoderKLFlux2:
    """Without the batch norm's counter of the training, which is no number to draw."""
    model = AutoencoderKLFlux2(**settings)
    model.bn.num_batches_tracked = None
    return model


def seen(model: AutoencoderKLFlux2, latents: torch.Tensor, picture: torch.Tensor) -> dict[str, torch.Tensor]:
    """What diffusers makes of them, in the type that all three are of."""
    deviation = (model.bn.running_var + model.config.batch_norm_eps).sqrt()
    with torch.no_grad():
        cells = torch.nn.functional.pixel_unshuffle(latents, 2)
        cells = cells * deviation[:, None, None] + model.bn.running_mean[:, None, None]
        pixels = model.decode(torch.nn.functional.pixel_shuffle(cells, 2)).sample
        posterior = model.encode(picture).latent_dist
        clean = torch.nn.functional.pixel_unshuffle(posterior.mode(), 2)
        clean = (clean - model.bn.running_mean[:, None, None]) / deviation[:, None, None]
    clean = torch.nn.functional.pixel_shuffle(clean, 2)
    return {"pixels": pixels, "mean": posterior.mean, "logvar": posterior.logvar, "clean": clean}


def draw(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    for attempt in count():
        model = save_drawn(build(config(dice)), folder / "vae", spread, seed + ATTEMPTS * attempt)
        factor = 2 ** (len(model.config.block_out_channels) - 1)
        latents, picture = shown(dice, model.config.latent_channels, factor)
        latents, picture = even(latents, 2), even(picture, 2 * factor)
        reference = seen(model, latents, picture)
        if steady(reference, seen(copy.deepcopy(model).double(), latents.double(), picture.double())):
            break
    store(folder, reference | {"latents": latents, "picture": picture})


def even(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Sides of whole cells."""
    height, width = (side // multiple * multiple for side in x.shape[-2:])
    return x[..., :height, :width]


if __name__ == "__main__":
    run(draw, __doc__)
