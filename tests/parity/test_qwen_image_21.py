"""Qwen-Image-2.1 against diffusers on freshly drawn models: other widths, heads, axes and sizes each time."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.autoencoders import test_qwen_image_21 as autoencoder
from tests.families.flux1.test_tools import assembled
from tests.families.qwen_image_21 import test_controls as controls
from tests.families.qwen_image_21.test_qwen_image_21 import (
    WAYS,
    check_block,
    check_ids,
    check_picture,
    check_states,
    check_transformer,
    opened,
)
from tests.parity.draws import REFERENCES, fresh_seed

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def script() -> Any:
    return imported("qwen_image_21")


def imported(script: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REFERENCES)  # the script imports its neighbours
        return importlib.import_module(script)


@pytest.fixture(scope="module", params=["own_sigmas", "even"])
def drawn(request: pytest.FixtureRequest, script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed = fresh_seed()
    folder = tmp_path_factory.mktemp("qwen21") / f"{request.param}-{seed}"  # the seed is in every failure's path
    script.draw(folder, seed, turbo=request.param == "own_sigmas")
    return folder


def test_ids_and_text_states(drawn: Path) -> None:
    check_ids(drawn)
    check_states(drawn)


def test_block_and_transformer(drawn: Path) -> None:
    check_block(drawn)
    check_transformer(drawn)


@pytest.mark.parametrize("way", WAYS)
def test_pictures(drawn: Path, way: str) -> None:
    check_picture(drawn, way)
    assert bool(opened(drawn)[0].files.sigmas) == drawn.name.startswith("own_sigmas")


@pytest.fixture(scope="module")
def controlled(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed, place = fresh_seed(), tmp_path_factory.mktemp("controls")
    imported("qwen_image_21_controls").draw(place / "drawn", drawn, seed)
    return assembled(place / "drawn", drawn, place / f"{drawn.name}-controls-{seed}")


@pytest.mark.parametrize("way", [*controls.WAYS, "reference"])
def test_control_networks(controlled: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    controls.check_picture(controlled, way, monkeypatch)


@pytest.mark.parametrize("number", range(4))
def test_the_autoencoder_alone(number: int, script: Any, tmp_path: Path) -> None:
    seed = fresh_seed()
    print(f"seed {seed}")  # shown when the test fails
    script.draw_autoencoder(tmp_path, seed)
    for check in autoencoder.CHECKS:
        check(autoencoder.load(tmp_path))
