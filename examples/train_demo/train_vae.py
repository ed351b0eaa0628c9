"""Train the picture codec of the FLUX.1 or the Qwen-Image demo: f8, 16 latent channels.

In: the pool of pictures. Out: a run folder with averaged weights. Qwen's codec is a video codec; for one frame each
causal 3-D convolution is the 2-D one with its last slice, so that slice alone is trained and the others stay zero.
"""

from __future__ import annotations

import sys

import numpy as np
import pool
import torch
import torch.nn.functional as F
import training
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from diffusers.models.autoencoders import autoencoder_kl_qwenimage
from torch import Tensor, nn

KL_WEIGHT = 1e-3


def flux_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=16,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    vae = AutoencoderKLQwenImage(
        base_dim=16,
        z_dim=16,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    with torch.no_grad():
        for p in vae.parameters():
            if p.ndim == 5:
                p[:, :, :-1] = 0
                p[:, :, -1] *= p.shape[2] ** 0.5
    return vae


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


def main() -> None:
    family = sys.argv.pop(1)
    arguments = training.arguments(steps=3000, lr=2e-3)
    run = training.Run(
        training.ROOT / (arguments.name or f"{family}_vae"), arguments.steps, arguments.lr, ema=0.99, warmup=50
    )
    vae = flux_vae() if family == "flux" else qwen_vae()
    if family != "flux":
        train_in_2d()
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
        square = F.mse_loss(y, x)
        db = -10 * torch.log10(square.detach() / 4)
        return {"loss": F.l1_loss(y, x) + 2 * square + KL_WEIGHT * kl, "kl": kl, "db": db}

    def muon(name: str) -> bool:
        return "conv_in" not in name and "conv_out" not in name

    training.train(run, vae, loss_of, muon)


if __name__ == "__main__":
    main()
