"""Qwen-Image's control networks against diffusers on freshly drawn models."""

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.flux1.test_tools import assembled
from tests.families.qwen_image.test_controls import EACH, check_picture

pytestmark = pytest.mark.parity
REFERENCES = Path(__file__).parents[1] / "references"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = str(2 * secrets.randbelow(10**6))
    folder = tmp_path_factory.mktemp(f"controls-{seed}")  # the seed is in every failure's path
    for arguments in (
        ["inpaint.py", folder, "--draw", "image", "--ways"],
        ["qwen_controls.py", folder / "drawn", folder / "image"],
    ):
        command = [sys.executable, REFERENCES / arguments[0], *arguments[1:], "--seed", seed]
        subprocess.run(command, check=True, capture_output=True)
    for kind in {kind for kind, _ in EACH}:
        assembled(folder / "drawn" / kind, folder / "image", folder / kind)
    return folder


@pytest.mark.parametrize(("kind", "way"), EACH)
def test_pictures(drawn: Path, kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_picture(drawn / kind, way, monkeypatch)
