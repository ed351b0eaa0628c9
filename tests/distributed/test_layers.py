"""Layers shared out: the picture of one process, by ranks that are threads, and by processes on MLX's ring."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import quantize
from mlx_imagegen.errors import RequestError
from mlx_imagegen.families.qwen_image_21.config import QwenImage21Config
from mlx_imagegen.families.qwen_image_21.modulation import QwenImage21Modulators
from mlx_imagegen.families.qwen_image_21.transformer import QwenImage21Transformer
from mlx_imagegen.layers.sharing import Sharing
from mlx_imagegen.pipeline import Pipeline, load
from tests.conftest import DATA
from tests.shared_out import Ring
from tests.tiny import WEIGHTS, draw_flux, draw_tensors

ASKED: dict[str, Any] = {"seed": 1, "width": 64, "height": 64, "steps": 2}
PROMPT = "a red circle on a white background"
STORED = (
    "flux/dev", "flux/schnell", "flux2/klein", "flux2/dev", "flux3/klein", "flux3/base", "hidream_o1",
    "qwen_image/image", "z_image/base",
)  # fmt: skip
Open = Callable[[], Pipeline]


def pixels(pipeline: Pipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipeline.generate(PROMPT, **ASKED | more).image).astype(np.int32)


def by_ranks(parts: tuple[int, ...], open_pipeline: Open, **more: Any) -> list[np.ndarray]:
    def drawn(sharing: Sharing) -> np.ndarray:
        pipeline = open_pipeline()
        pipeline.family.check_sharing(sharing)
        pipeline.family.share_layers(sharing)
        return pixels(pipeline, **more)

    return Ring(parts).run(drawn)


def check(open_pipeline: Open, parts: tuple[int, ...] = (1, 1), **more: Any) -> None:
    """To one level of one process's."""
    alone = pixels(open_pipeline(), **more)
    assert alone.std() > 1
    for picture in by_ranks(parts, open_pipeline, **more):
        assert np.abs(picture - alone).max() <= 1


@pytest.mark.parametrize("model", STORED)
def test_every_family(model: str) -> None:
    check(lambda: load(DATA / model))


def test_qwen_image_21(tmp_path: Path) -> None:
    """Its stored draw has one head."""
    folder = shutil.copytree(DATA / "qwen_image_21/model", tmp_path / "model")
    path = folder / "transformer/config.json"
    data = json.loads(path.read_text()) | {"attention_head_dim": 12, "num_attention_heads": 2}
    config = QwenImage21Config.read(data | {"axes_dims_rope": [4, 4, 4]}, path)
    path.write_text(json.dumps(data | {"axes_dims_rope": [4, 4, 4]}))
    trees = (QwenImage21Transformer(config), QwenImage21Modulators(config))
    mx.save_safetensors(str(folder / WEIGHTS), draw_tensors(trees, 0, mx.float32))
    check(lambda: load(folder))


def test_three_ranks_with_parts_of_their_own() -> None:
    check(lambda: load(DATA / "flux/schnell"), (1, 1, 1))
    check(lambda: load(DATA / "flux/schnell"), (1, 2))


def test_a_demo_model_on_four_ranks() -> None:
    check(lambda: load("flux-demo"), (1, 1, 1, 1), steps=1)


def test_references() -> None:
    check(lambda: load(DATA / "flux3/klein"), references=[DATA / "hidream_o1/ref0.png"])


def lora(folder: Path) -> Path:
    """For layers that are cut by rows, by columns, and by columns in two spans."""
    dice, tensors = np.random.default_rng(5), {}
    shapes = {
        "transformer_blocks.0.attn.to_q": (64, 64), "transformer_blocks.1.ff.net.2": (64, 256),
        "single_transformer_blocks.0.proj_out": (64, 320),
    }  # fmt: skip
    for name, (outputs, inputs) in shapes.items():
        for kind, shape in (("lora_A", (2, inputs)), ("lora_B", (outputs, 2))):
            tensors[f"transformer.{name}.{kind}.weight"] = mx.array(dice.standard_normal(shape).astype(np.float32) / 4)
    mx.save_safetensors(str(folder / "lora.safetensors"), tensors)
    return folder / "lora.safetensors"


def test_weights_packed_while_they_are_loaded(tmp_path: Path) -> None:
    """Heads of 32 columns are half a group."""
    folder = draw_flux(tmp_path / "model")
    check(lambda: load(folder, quant="q4"), steps=1)


def test_loras_on_a_packed_folder(tmp_path: Path) -> None:
    packed = quantize(draw_flux(tmp_path / "model"), tmp_path / "packed", quant="q4")
    file = lora(tmp_path)
    check(lambda: load(packed, lora=[file]), steps=1)


def test_a_lora_comes_and_goes_on_every_rank(tmp_path: Path) -> None:
    folder, file = draw_flux(tmp_path / "model"), lora(tmp_path)
    alone = [pixels(load(folder, lora=files)) for files in ([], [file])]

    def drawn(sharing: Sharing) -> list[np.ndarray]:
        pipeline = load(folder, resident=True)
        pipeline.family.share_layers(sharing)
        pictures = [pixels(pipeline)]
        pipeline.set_lora([file])
        return [*pictures, pixels(pipeline)]

    for pictures in Ring((1, 1)).run(drawn):
        assert all(np.abs(one - other).max() <= 1 for one, other in zip(pictures, alone, strict=True))


@pytest.mark.parametrize("model", ["flux/dev", "qwen_image/image"])
def test_more_ranks_than_heads_are_refused(model: str) -> None:
    family = load(DATA / model).family
    with pytest.raises(RequestError, match=r"cannot be shared out over 4 machines, for .* has [23] heads"):
        family.check_sharing(Sharing(0, (1,) * 4))
