"""FLUX.1-Redux and the IP-Adapters against transformers and diffusers on freshly drawn models."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlx_imagegen.families.flux1.ip_adapter import CONVERSION, PICKLE
from tests.families.flux1 import test_ip_adapter, test_redux
from tests.parity.draws import draw_adapters

pytestmark = pytest.mark.parity

ADAPTERS: dict[str, ModuleType] = {"redux": test_redux, "ip_adapter": test_ip_adapter}
KINDS = [(name, kind) for name, tests in ADAPTERS.items() for kind in tests.KINDS]
WAYS = [(name, kind, way) for name, kind in KINDS for way in ADAPTERS[name].WAYS]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: draw_adapters(f"flux_{name}.py", tmp_path_factory.mktemp(name), tests.KINDS)
        for name, tests in ADAPTERS.items()
    }


@pytest.mark.parametrize(("adapter", "kind"), KINDS)
def test_features(drawn: dict[str, Path], adapter: str, kind: str) -> None:
    ADAPTERS[adapter].check_features(drawn[adapter] / kind)


@pytest.mark.parametrize(("adapter", "kind", "way"), WAYS)
def test_pictures(drawn: dict[str, Path], adapter: str, kind: str, way: str) -> None:
    ADAPTERS[adapter].check_picture(drawn[adapter] / kind, way)


def test_instantx_s_pickle_is_converted_as_its_refusal_says(drawn: dict[str, Path], tmp_path: Path) -> None:
    import torch  # here, and not above: `make test` collects this file on machines without torch
    from safetensors.torch import load_file

    tensors = load_file(drawn["ip_adapter"] / "dev/instantx/model.safetensors")
    parts = ("image_proj", "ip_adapter")
    nested = {part: {name.removeprefix(f"{part}."): t for name, t in tensors.items() if part in name} for part in parts}
    torch.save(nested, tmp_path / PICKLE)
    subprocess.run([sys.executable, "-c", CONVERSION], cwd=tmp_path, check=True)
    converted = load_file(tmp_path / "ip-adapter.safetensors")
    assert converted.keys() == tensors.keys() and all(torch.equal(converted[name], tensors[name]) for name in tensors)
