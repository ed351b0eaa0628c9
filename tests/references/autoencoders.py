"""What the draws of autoencoders share: how they are saved, the sizes and numbers they are shown."""

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from weight_descriptions import Rule, redraw

ATTEMPTS = 10**6  # the seeds of a draw's later attempts lie so far apart


def save_drawn(model: Any, folder: Path, rule: Rule, seed: int) -> Any:
    """Saves one of diffusers' models with drawn weights; gives it as diffusers reads it again."""
    model.save_pretrained(folder)
    redraw(folder / "diffusion_pytorch_model.safetensors", rule, seed)
    return type(model).from_pretrained(folder).eval()


def slanted(*shape: int) -> torch.Tensor:
    """Noise whose mean and size change from top to bottom: no part of a picture has the statistics of the whole."""
    rows = torch.linspace(-1, 1, shape[-2])[:, None]
    return torch.randn(shape) * (1 + 0.8 * rows) + 2 * rows


def shown(dice: random.Random, channels: int, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents as a loop leaves them, and a picture in -1..1 of the size that they stand for."""
    batch, height, width = dice.choice([1, 1, 2]), dice.randint(7, 15), dice.randint(5, 12)
    latents = slanted(batch, channels, height, width)
    return latents, slanted(batch, 3, height * factor, width * factor).clamp(-1, 1)


def steady(single: dict[str, torch.Tensor], double: dict[str, torch.Tensor]) -> bool:
    """Whether diffusers' float32 agrees with its own float64. A norm over a few channels, all near nothing where
    chance has it, blows rounding up: such a draw can tell nobody's faults from float32's."""
    return all((single[name] - double[name]).abs().max() < 2e-6 * double[name].abs().max() for name in single)


def store(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Pictures are stored as MLX has them, channels last."""
    turned = {name: tensors[name].permute(0, 2, 3, 1) for name in ("pixels", "picture")}
    stored = {name: tensor.contiguous() for name, tensor in (tensors | turned).items()}
    save_file(stored, folder / "reference.safetensors")
