"""Weights -> modules: what is bound, and what is said on the way. Damage is met in test_cli.py, LoRAs in tests/lora."""

import itertools
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_imagegen.errors import ConfigError
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.limits import bound_cache
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.component import Component
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.tensors import name_tensors
from mlx_imagegen.loading.weights import WeightTransforms, open_weights


def transformer(folder: Path, transforms: WeightTransforms | None = None) -> Component:
    path = folder / "transformer" / "config.json"
    config = FluxConfig.read(read_json(path), path)
    trees = [FluxTransformer(config), FluxModulators(config)]
    weights = open_weights("transformer", open_checkpoint(folder / "transformer"), trees, transforms=transforms)
    return Component(weights, lambda: FluxTransformer(config), mx.float32)


def test_what_was_freed_does_not_lie_beside_what_is_loaded(flux_folder: Path) -> None:
    bound_cache()
    component, freed = transformer(flux_folder), mx.arange(10**7)
    mx.eval(freed)
    del freed
    assert mx.get_cache_memory() >= 4 * 10**7
    component.load()
    assert mx.get_cache_memory() < 4 * 10**7


def test_progress_counts_up_to_all_bytes(flux_folder: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    component = transformer(flux_folder, WeightTransforms(progress=lambda *call: calls.append(call)))
    component.load()
    assert len(calls) == sum(1 for _ in component.loaded_layers()) > 10
    done = [call[1] for call in calls]
    assert {(name, total) for name, _, total in calls} == {("transformer", component.nbytes)}
    assert all(first < second for first, second in itertools.pairwise(done)) and done[-1] == component.nbytes
    component.load()
    assert calls[-1][1] == done[-1] and len(calls) == len(done), "it is loaded once"


@pytest.mark.parametrize("stored", [{"proj_out": True}, {"proj_out": {"nbits": 4}}, [4]])
def test_another_tool_s_packing_is_told_as_such(flux_folder: Path, stored: object) -> None:
    """Yes by path without numbers for all; a number by another name; no table at all."""
    with pytest.raises(ConfigError, match="is another tool's work. Take the full-precision model"):
        name_tensors("transformer", open_checkpoint(flux_folder / "transformer"), config={"quantization": stored})
