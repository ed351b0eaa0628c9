"""The pool's pictures as latents, made once per codec.

In: a trained codec and the pool. Out: `latents.npy` (float16 [N, 16, 16, 16]) in the codec's run folder, and the
numbers that bring them to mean zero and deviation one: one pair for FLUX.1, one pair a channel for Qwen-Image.
"""

from __future__ import annotations

import models
import numpy as np
import torch
import train_vae
import training
from torch import Tensor, nn

COUNT = 12_288


def codec(family: str) -> nn.Module:
    """The trained codec, in the form that handles single pictures fast."""
    vae = models.flux_vae() if family == "flux" else models.qwen_vae()
    if family != "flux":
        train_vae.train_in_2d()
    later = training.ROOT / f"{family}_decoder" / "ema.pt"  # the same encoder
    vae.load_state_dict(torch.load(later if later.exists() else training.ROOT / f"{family}_vae" / "ema.pt"))
    return vae.eval()


@torch.no_grad()
def encoded(vae: nn.Module, family: str, pictures: np.ndarray) -> Tensor:
    """Mean latents [B, 16, h, w] of uint8 pictures [B, H, W, 3]."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        if family == "flux":
            return vae.encode(x).latent_dist.mean.float()
        return vae.encode(x[:, :, None]).latent_dist.mean.float()[:, :, 0]


@torch.no_grad()
def decoded(vae: nn.Module, family: str, latents: Tensor) -> np.ndarray:
    """Pictures, uint8 [B, H, W, 3], of latents [B, 16, h, w] in the codec's own scale."""
    y = vae.decode(latents).sample if family == "flux" else vae.decode(latents[:, :, None]).sample[:, :, 0]
    return ((y / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def load(family: str, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, their mean and their deviation, the last two [16]."""
    values = of_pool(family, pictures, "latents.npy")
    sampled = values[::8].astype(np.float32)
    if family == "flux":
        return values, np.full(16, sampled.mean()), np.full(16, sampled.std())
    return values, sampled.mean((0, 2, 3)), sampled.std((0, 2, 3))


def of_pool(family: str, pictures: np.ndarray, name: str) -> np.ndarray:
    """The latents of a pool's first pictures, kept under a name of their own for each pool."""
    path = training.ROOT / f"{family}_vae" / name
    if not path.exists():
        vae = codec(family)
        parts = [encoded(vae, family, pictures[i : i + 64]).half().numpy() for i in range(0, COUNT, 64)]
        np.save(path.with_suffix(".tmp.npy"), np.concatenate(parts))
        path.with_suffix(".tmp.npy").rename(path)
    return np.load(path)


def statistics(run: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation that a run's latents were brought to zero and one with."""
    numbers = np.load(training.ROOT / run / "statistics.npz")
    return numbers["mean"], numbers["deviation"]


def packed(latents: Tensor) -> Tensor:
    """[B, 16, h, w] -> [B, h/2 * w/2, 64]: channel first within a two-by-two block."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpacked(x: Tensor, height: int, width: int) -> Tensor:
    b = x.shape[0]
    x = x.view(b, height // 2, width // 2, 16, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, 16, height, width)
