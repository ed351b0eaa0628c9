"""Our tables for the original single files against diffusers' own converter, at the real numbers of rows.

Columns do not take part in the conversion, so that two of them are enough: the weights stay small.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.autoencoders.layouts import from_ldm
from mlx_imagegen.families.flux1.keys import from_original
from tests.families.flux1.test_original import check_split
from tests.references.names import expand

pytestmark = pytest.mark.parity
NAMES = Path(__file__).parents[1] / "data/names/FLUX.1-dev"


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    import torch  # here, and not above: `make test` collects this file on machines without torch

    torch.manual_seed(0)
    return {name: torch.randn(shape[0], *(min(size, 2) for size in shape[1:])) for name, shape in shapes.items()}


def test_transformer() -> None:
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    _, shapes = expand(NAMES / "bfl_single_file_flux1-dev.json")
    tensors = drawn(shapes)
    ours = {name: value.numpy() for name, value in tensors.items()}
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    check_split(ours, {name: value.numpy() for name, value in theirs.items()}, from_original)


def test_autoencoder() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    _, shapes = expand(NAMES / "bfl_single_file_ae.json")
    tensors = drawn(shapes)
    ours = {name: value.numpy() for name, value in tensors.items()}
    config = json.loads((NAMES / "vae.json").read_text())["config"]
    theirs = convert_ldm_vae_checkpoint(dict(tensors), config)
    check_split(ours, {name: value.numpy() for name, value in theirs.items()}, from_ldm)
