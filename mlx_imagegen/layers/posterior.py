"""What an encoder says of a picture: for each latent a mean and a log-variance (FLUX.1, Qwen-Image)."""

import mlx.core as mx

from ..random import TorchGenerator

LOGVAR_RANGE = (-30.0, 20.0)  # diffusers' DiagonalGaussianDistribution


def posterior(moments: mx.array) -> tuple[mx.array, mx.array]:
    """The encoder's last activation [B, h, w, 2 C] -> mean and log-variance, [B, C, h, w] each."""
    mean, logvar = mx.split(moments.transpose(0, 3, 1, 2), 2, axis=1)
    return mean, mx.clip(logvar, *LOGVAR_RANGE)


def sample(mean: mx.array, logvar: mx.array, stream: TorchGenerator) -> mx.array:
    """The next sample of a stream."""
    return mean + mx.exp(logvar / 2) * stream.randn(mean.shape)
