"""Each family's autoencoder against the installed diffusers, on configs, weights and sizes drawn again at every run."""

import importlib
from pathlib import Path

import pytest

from tests.autoencoders import test_flux2 as flux2
from tests.autoencoders import test_kl as flux
from tests.autoencoders import test_qwen_image as qwen
from tests.parity.draws import REFERENCES, fresh_seed

pytestmark = pytest.mark.parity
FAMILIES = {
    "flux_vae": (flux.load, flux.CHECKS),
    "flux2_vae": (flux2.load, flux2.ALL_CHECKS),
    "qwen_vae": (qwen.load, qwen.CHECKS),
}


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("script", FAMILIES)
def test_fresh_draws(script: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, checks = FAMILIES[script]
    seed = fresh_seed()
    print(f"seed {seed}")  # shown when the test fails
    monkeypatch.syspath_prepend(REFERENCES)  # the script imports its neighbours
    importlib.import_module(script).draw(tmp_path, seed)
    for check in checks:
        check(load(tmp_path))
