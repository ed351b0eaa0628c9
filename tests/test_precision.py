"""The GPU's precision, run on the CPU: bfloat16 weights and activations give nearly the float32 picture.

On a user's Mac everything runs in bfloat16; here only this test does. It finds what float32 hides: a float32 table that
lifts every later activation to float32 (twice the memory), or two dtypes that a kernel refuses to mix.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.layers.linear import Linear

DATA = Path(__file__).parent / "data"
FOLDERS = [DATA / "flux/dev", DATA / "flux/schnell"]
OPTIONS: dict[str, Any] = {"seed": 5, "steps": 2, "width": 32, "height": 48, "max_sequence_length": 32}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_bfloat16_gives_nearly_the_float32_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = np.asarray(load(folder).generate("a fox", **OPTIONS).image).astype(float)
    monkeypatch.setattr("mlx_imagegen.precision.on_gpu", lambda: True)
    seen = watch_linears(monkeypatch)
    half = np.asarray(load(folder).generate("a fox", **OPTIONS).image).astype(float)
    assert 0 < np.abs(full - half).mean() < 4, "the same picture, and not bit for bit: bfloat16 really ran"
    big = {path for path, (x, w) in seen.items() if (x, w) == (mx.float32, mx.bfloat16)}
    assert not big, f"float32 activations meet bfloat16 weights in {big}"


def watch_linears(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[mx.Dtype, mx.Dtype]]:
    """Shape of each linear that runs -> dtypes of its input and weight."""
    seen: dict[str, tuple[mx.Dtype, mx.Dtype]] = {}
    call = Linear.__call__

    def watched(self: Linear, x: mx.array) -> mx.array:
        seen[f"{list(self.weight.shape)} on {list(x.shape)}"] = (x.dtype, self.weight.dtype)
        return call(self, x)

    monkeypatch.setattr(Linear, "__call__", watched)
    return seen
