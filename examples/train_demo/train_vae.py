"""Train the picture codec of the FLUX.1 or the Qwen-Image demo: f8, 16 latent channels.

In: the pool of pictures. Out: a run folder with averaged weights. Qwen's codec is a video codec; for one frame each
causal 3-D convolution is the 2-D one with its last slice, so that slice alone is trained and the others stay zero.
`flux_decoder` goes on with FLUX.1's decoder alone, on whole pictures.
"""

from __future__ import annotations

import argparse
import sys

import models
import numpy as np
import pool
import torch
import torch.nn.functional as F
import training
from diffusers.models.autoencoders import autoencoder_kl_qwenimage
from torch import Tensor, nn

KL_WEIGHT = 1e-3
WORST_PIXELS = 64


def causal_conv_2d(self: nn.Conv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """A causal 3-D convolution of a single frame: every earlier frame is zero padding."""
    assert x.shape[2] == 1 and cache_x is None
    padding = (self._padding[0], self._padding[2])
    y = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding)
    return y[:, :, None]


def train_in_2d() -> None:
    """Let diffusers' Qwen codec run its single-frame form."""
    autoencoder_kl_qwenimage.QwenImageCausalConv3d.forward = causal_conv_2d


def crops(pictures: np.ndarray, rng: np.random.Generator, batch: int, size: int) -> Tensor:
    """Random windows; most of a whole picture is background, which is learned soon."""
    chosen = rng.integers(len(pictures), size=batch)
    corners = rng.integers(0, (pictures.shape[1] - size) // 8 + 1, (batch, 2)) * 8
    cut = [pictures[i, y : y + size, x : x + size] for i, (y, x) in zip(chosen, corners, strict=True)]
    return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 127.5 - 1


def codec_loss(vae: nn.Module, family: str, arguments: argparse.Namespace) -> training.Loss:
    """Picture to latents and back."""
    pictures, _ = pool.load()
    whole = int(0.85 * arguments.steps)  # the last steps see whole pictures: norms and attention span all of one

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        if step < whole:
            x = crops(pictures, rng, arguments.batch, 64)
        else:
            x = crops(pictures, rng, arguments.batch // 4, 128)
        frames = x if family == "flux" else x[:, :, None]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(frames).latent_dist
            y = vae.decode(posterior.sample()).sample.float().reshape(x.shape)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return {"loss": difference(y, x) + KL_WEIGHT * kl, "kl": kl, "db": decibels(y, x)}

    return loss_of


def decoder_loss(vae: nn.Module, arguments: argparse.Namespace) -> training.Loss:
    """Latents that stay as they are to whole pictures; the worst pixels of a picture's flat parts count once more.

    FLUX.1's codec left a dark speck near the lower right corner: a place where the decoder kept numbers for its group
    norms, too small for a mean over all pixels to mind.
    """
    pictures, _ = pool.load()
    values = np.load(training.ROOT / "flux_vae/latents.npy")
    vae.encoder.requires_grad_(False)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(values), size=arguments.batch // 4)
        x = torch.from_numpy(pictures[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(torch.from_numpy(values[chosen]).float()).sample.float()
        flat = (F.max_pool2d(x, 3, 1, 1) == -F.max_pool2d(-x, 3, 1, 1)).all(1, keepdim=True)
        worst = ((y - x) * flat).pow(2).mean(1).flatten(1).topk(WORST_PIXELS).values.mean()
        return {"loss": difference(y, x) + 10 * worst, "worst": worst, "db": decibels(y, x)}

    return loss_of


def difference(y: Tensor, x: Tensor) -> Tensor:
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x)


def decibels(y: Tensor, x: Tensor) -> Tensor:
    return -10 * torch.log10(F.mse_loss(y, x).detach() / 4)


def main() -> None:
    kind = sys.argv.pop(1)
    family = kind.split("_")[0]
    decoder = kind == "flux_decoder"
    arguments = training.arguments(steps=300 if decoder else 3000, lr=5e-4 if decoder else 2e-3)
    folder = training.ROOT / (arguments.name or (kind if decoder else f"{family}_vae"))
    run = training.Run(folder, arguments.steps, arguments.lr, ema=0.98 if decoder else 0.99, warmup=50)
    vae = models.flux_vae() if family == "flux" else models.qwen_vae()
    if family != "flux":
        train_in_2d()
    if decoder:
        vae.load_state_dict(torch.load(training.ROOT / "flux_vae/ema.pt"))

    def muon(name: str) -> bool:
        return "conv_in" not in name and "conv_out" not in name

    training.train(run, vae, decoder_loss(vae, arguments) if decoder else codec_loss(vae, family, arguments), muon)


if __name__ == "__main__":
    main()
