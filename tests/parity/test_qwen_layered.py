"""Qwen-Image-Layered on fresh draws: the stored ones cannot be matched by accident or by fitting to them."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.qwen_image.test_layered import (
    WAYS,
    check_autoencoder,
    check_layers,
    check_schedules,
    check_transformer,
)

pytestmark = pytest.mark.parity
SCRIPT = Path(__file__).parents[1] / "references/qwen_layered.py"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = str(secrets.randbelow(10**6))
    folder = tmp_path_factory.mktemp("qwen") / f"layered-{seed}"  # the seed is in every failure's path
    subprocess.run([sys.executable, SCRIPT, folder, "--seed", seed], check=True, capture_output=True)
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
