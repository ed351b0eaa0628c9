"""LoRAs on freshly drawn models; at full size by the formula; FLUX.1's fused formats against diffusers' converter."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.families import family_spec
from mlx_imagegen.lora.file import open_lora
from mlx_imagegen.lora.match import Change, Lora, ModuleNames, match_loras
from mlx_imagegen.lora.names import split_key
from tests.lora.test_merge import check_format
from tests.lora.test_names import FAMILIES, FORMATS, full_size

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "references" / "lora.py"
SCALE = 0.8
VOCABULARIES: dict[str, ModuleNames] = {}


@pytest.mark.parity
@pytest.mark.parametrize("seed", [1, 2])
def test_fresh_draws(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--seed", str(seed)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    names = [f"{path.parent.parent.name}/{path.parent.name}" for path in tmp_path.glob("*/*/lora.safetensors")]
    assert len(names) == 59
    for name in names:
        check_format(tmp_path, name)


def draw_modules(name: str) -> Iterator[tuple[str, dict[str, np.ndarray], float]]:
    """One kind of module after another, in its last block, with random numbers in the real shapes: (module, tensors,
    alpha)."""
    dice = np.random.default_rng(len(name))
    groups: dict[str, dict[str, np.ndarray]] = {}
    alphas: dict[str, float] = {}
    for pattern, entry in FORMATS[name].items():
        key = pattern.replace("{i}", str(entry.get("count", 1) - 1))
        split = split_key(key)
        assert split is not None
        value = entry.get("value")
        drawn = dice.standard_normal(entry["shape"], np.float32) if value is None else np.float32(value)
        groups.setdefault(split[0], {})[key] = np.asarray(drawn)
        alphas[split[0]] = value or alphas.get(split[0], 0.0)
    for module, tensors in groups.items():
        yield module, tensors, alphas[module]


def changes(path: Path, tensors: dict[str, Any], family: str) -> list[Change]:
    mx.save_safetensors(str(path), {key: mx.array(value) for key, value in tensors.items()})
    vocabulary = VOCABULARIES.setdefault(family, full_size(family))
    (match,) = match_loras([Lora(open_lora(path), SCALE)], [vocabulary], family_spec(family).title)
    return [change for each in match.changes.values() for change in each]


@pytest.mark.parity
@pytest.mark.parametrize("name", FORMATS)
def test_full_size_equals_the_formula(name: str, tmp_path: Path) -> None:
    """W + SCALE * alpha / rank * B A, its rows cut into our modules; in numpy."""
    family = FAMILIES[name.partition("_")[0]]
    dice = np.random.default_rng(7)
    for module, tensors, alpha in draw_modules(name):
        down = next(
            value
            for key, value in tensors.items()
            if key.endswith(("down.weight", "lora_A.weight", "A.default.weight"))
        )
        up = next(
            value for key, value in tensors.items() if key.endswith(("up.weight", "lora_B.weight", "B.default.weight"))
        )
        delta = SCALE * (alpha / len(down) if alpha else 1.0) * (up @ down)
        if "adaLN" in module:
            delta = np.concatenate([delta[len(delta) // 2 :], delta[: len(delta) // 2]])
        row = 0
        for change in changes(tmp_path / "one.safetensors", tensors, family):
            height, columns = VOCABULARIES[family].shapes[f"{change.target.name}.weight"]
            base = np.resize(dice.standard_normal(10**6, np.float32), (height, columns))
            merged = np.array(mx.array(base) + change.of(mx.array(base)))
            expected = base + delta[row : row + height]
            assert np.abs(merged - expected).max() <= 1e-6 * np.abs(expected).max(), f"{module} -> {change.target.name}"
            row += height
        assert row == len(delta), module


@pytest.mark.parity
@pytest.mark.parametrize("name", ["flux_kohya", "flux_comfy", "flux_xlabs"])
def test_full_size_equals_diffusers_converter(name: str, tmp_path: Path) -> None:
    """The product of the pairs that diffusers takes a fused file apart into is the change."""
    import torch
    from diffusers import FluxPipeline

    groups = list(draw_modules(name))
    everything = {key: value for _, tensors, _ in groups for key, value in tensors.items()}
    state = FluxPipeline.lora_state_dict({key: torch.from_numpy(value.copy()) for key, value in everything.items()})
    seen = set()
    for module, tensors, _ in groups:
        for change in changes(tmp_path / "one.safetensors", tensors, "flux1"):
            pair = [state[f"transformer.{change.target.name}.lora_{end}.weight"].numpy() for end in "AB"]
            seen |= {f"transformer.{change.target.name}.lora_{end}.weight" for end in "AB"}
            ours = np.array(change.of(mx.zeros((len(pair[1]), pair[0].shape[1]))))
            theirs = SCALE * (pair[1] @ pair[0])
            assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), f"{module} -> {change.target.name}"
    assert seen == set(state)
