"""LoRAs in every format: merged weights against stored references, what is refused, and warm pipelines."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.checkpoint import open_checkpoint
from mlx_imagegen.errors import LoraError, MissingFile
from mlx_imagegen.flux import Flux
from mlx_imagegen.hidream_o1 import HiDream
from mlx_imagegen.keys import Target
from mlx_imagegen.loading import Weights
from mlx_imagegen.lora import Lora, Merge, Vocabulary, match_loras, open_loras, parse_lora
from mlx_imagegen.lora_file import open_lora

DATA = Path(__file__).parent / "data" / "lora"
SCALE = 0.7  # tests/references/lora.py merges at this one
TITLES = {"flux": "FLUX.1", "qwen_image": "Qwen-Image", "hidream_o1": "HiDream-O1-Image"}
FORMATS = sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in DATA.glob("*/*/lora.safetensors"))


def other_names(family: str, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[Target]]:
    known = {"flux": Flux, "hidream_o1": HiDream}.get(family)
    return known.lora_names(known.__new__(known), component, modules) if known else {}


def open_base(folder: Path, family: str) -> list[Weights]:
    """base.safetensors as components: `text_encoder/…` names are another component's."""
    whole = open_checkpoint(folder / family / "base.safetensors")
    names = {name.rpartition("/")[0] or "transformer" for name in whole}

    def rename(component: str):  # noqa: ANN202
        prefix = "" if component == "transformer" else f"{component}/"
        return lambda name: [Target(ours(name.removeprefix(prefix)))] if (name.rpartition("/")[0] or "transformer") == component else []

    def ours(name: str) -> str:
        return name.removeprefix("text_model.")

    return [Weights.open(component, whole, rename(component)) for component in sorted(names)]


def known(weights: Sequence[Weights], family: str) -> list[Vocabulary]:
    prefixes = Flux.lora_prefixes if family == "flux" else {}
    return [
        Vocabulary.of(
            each,
            lambda component, modules: other_names(family, component, modules),
            [prefix for prefix, component in prefixes.items() if component == each.component],
        )
        for each in weights
    ]


def merged(weights: Sequence[Weights], merge: Merge) -> dict[str, np.ndarray]:
    """Every tensor by its name in base.safetensors."""
    out = {}
    for each in weights:
        for name, part in each.slices.items():
            path, _, parameter = name.rpartition(".")
            value = merge(each.component, path, parameter, part.read())
            out[part.tensor.name] = np.array(value.astype(mx.float32))
    return out


def check_format(folder: Path, name: str) -> None:
    family = name.split("/")[0]
    weights = open_base(folder, family)
    merge = Merge()
    plain = merged(weights, merge)
    file = open_lora(folder / name / "lora.safetensors")
    merge.choose(match_loras([Lora(file, SCALE)], known(weights, family), TITLES[family]))
    result = merged(weights, merge)
    expected = {tensor: np.array(part.read()) for tensor, part in open_checkpoint(folder / name / "merged.safetensors").items()}
    assert expected
    for tensor, value in result.items():
        if tensor in expected:
            scale = np.abs(expected[tensor]).max()
            np.testing.assert_allclose(value, expected[tensor], atol=1e-6 * scale, rtol=0, err_msg=f"{name}: {tensor}")
            assert np.abs(value - plain[tensor]).max() > 1e-3 * scale, f"{name}: {tensor} did not change"
        else:
            assert np.array_equal(value, plain[tensor]), f"{name}: {tensor} should not change"
    assert len(merge.matches[0].matched) == len(file.entries)


@pytest.mark.parametrize("name", FORMATS)
def test_merged_weights_equal_the_reference(name: str) -> None:
    check_format(DATA, name)
