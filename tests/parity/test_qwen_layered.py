"""Qwen-Image-Layered on fresh draws: the stored ones cannot be matched by accident or by fitting to them."""

from pathlib import Path

import pytest

from tests.families.qwen_image.test_layered import (
    WAYS,
    check_autoencoder,
    check_layers,
    check_schedules,
    check_transformer,
)
from tests.parity.draws import fresh_seed, run_script

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = fresh_seed()
    folder = tmp_path_factory.mktemp("qwen") / f"layered-{seed}"  # the seed is in every failure's path
    run_script("qwen_layered.py", folder, "--seed", seed)
    return folder


def test_transformer(drawn: Path) -> None:
    check_transformer(drawn)


def test_autoencoder(drawn: Path) -> None:
    check_autoencoder(drawn)


def test_schedules(drawn: Path) -> None:
    check_schedules(drawn)


@pytest.mark.parametrize("way", WAYS)
def test_layers(drawn: Path, way: str) -> None:
    check_layers(drawn, way)
