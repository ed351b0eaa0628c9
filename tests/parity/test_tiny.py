"""The tiny decoder against the installed diffusers'; TAEF2's norms are not in it."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.autoencoders.tiny import open_tiny_decoder
from tests.autoencoders.test_tiny import write_decoder
from tests.parity.draws import fresh_seed

pytestmark = pytest.mark.parity


def test_fresh_latents(tmp_path: Path) -> None:
    import torch
    from diffusers import AutoencoderTiny

    weights = write_decoder(tmp_path / "tiny.safetensors", 16, False)
    reference = AutoencoderTiny(latent_channels=16)
    ours = {name: torch.from_numpy(np.array(value.astype(mx.float32))) for name, value in weights.items()}
    lacking, unexpected = reference.load_state_dict(ours, strict=False)
    assert not unexpected and all(name.startswith("encoder.") for name in lacking)
    seed = fresh_seed()
    print(f"seed {seed}")
    z = np.random.default_rng(seed).normal(0, 2, (1, 16, 5, 4)).astype(np.float32)
    with torch.no_grad():
        expected = reference.decode(torch.from_numpy(z)).sample.permute(0, 2, 3, 1).numpy()
    out = np.array(open_tiny_decoder(tmp_path / "tiny.safetensors", 16).decode(mx.array(z)))
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()
