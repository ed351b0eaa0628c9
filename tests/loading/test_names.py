"""Stored tensors -> ours, by rows. Swapped halves and fused modules are met in tests/flux/test_original.py and
tests/quantization/test_convert.py, with real layouts."""

from pathlib import Path

import pytest

from mlx_imagegen.errors import CheckpointError
from mlx_imagegen.loading.checkpoint import Tensor
from mlx_imagegen.loading.names import same_names, slices


def fp8(dtype: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A layer in fp8 with a scale of that form."""
    kinds = {"proj.weight": ("F8_E4M3", (4, 64)), "proj.weight_scale": (dtype, shape)}
    return {name: Tensor(Path("model.safetensors"), name, *kind, 0, 0) for name, kind in kinds.items()}


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
def test_fp8_has_a_scale_for_all_or_for_each_row(shape: tuple[int, ...]) -> None:
    tensors = fp8("BF16", shape)
    found = slices(tensors, same_names)
    assert found.keys() == {"proj.weight"} and found["proj.weight"].scale is tensors["proj.weight_scale"]


@pytest.mark.parametrize(("dtype", "shape"), [("U8", (4, 2)), ("U8", (4,)), ("F32", (4, 2)), ("F32", (3,))])
def test_scales_for_blocks_are_refused(dtype: str, shape: tuple[int, ...]) -> None:
    """The first numbers of as many as there are rows would be taken for the rows' own."""
    with pytest.raises(CheckpointError, match=r"'proj.weight_scale' .* is neither one scale for 'proj.weight' nor"):
        slices(fp8(dtype, shape), same_names)
