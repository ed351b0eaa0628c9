"""The GPU's precision, run on the CPU: bfloat16 weights and activations give nearly the float32 picture.

On a user's Mac everything runs in bfloat16; here only this test does. It finds what float32 hides: a float32 table that
lifts every later activation to float32 (twice the memory), or two dtypes that a kernel refuses to mix.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load
from mlx_imagegen.layers.linear import Linear
from mlx_imagegen.layers.products import Product
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.pipeline import Pipeline
from tests.draw import drawn_data
from tests.families.qwen_image.test_qwen_image import open_pipeline
from tests.families.qwen_image_21.test_qwen_image_21 import open_pipeline as open_qwen_image_21

DATA = drawn_data()
PICTURES = [DATA / "qwen_image/zero" / f"picture{index}.png" for index in (1, 2)]
OPTIONS: dict[str, Any] = {"seed": 5, "steps": 2, "width": 32, "height": 48}
SHORT = OPTIONS | {"max_sequence_length": 32}
HIDREAM = {"width": 32, "height": 24, "guidance": 2.0}


def open_hidream() -> Pipeline:
    """Without its manifest's least side: the draw's patches are small, and bfloat16 is slow here."""
    pipeline = load(DATA / "hidream_o1")
    manifest = pipeline.model.manifest
    sizes = {name: value for name, value in manifest.extras["sizes"].items() if name != "least_side"}
    manifest = replace(manifest, extras=manifest.extras | {"sizes": sizes})
    pipeline.model = replace(pipeline.model, manifest=manifest)
    return pipeline


# Each with what is drawn, and how to open it (editing: with references as small as the draw).
CASES: dict[str, tuple[Callable[[], Pipeline], dict[str, Any]]] = {
    "flux-dev": (lambda: load(DATA / "flux/dev"), SHORT),
    "flux-schnell": (lambda: load(DATA / "flux/schnell"), SHORT),
    "qwen-image": (lambda: load(DATA / "qwen_image/image"), SHORT | {"guidance": 3.0, "negative_prompt": "two foxes"}),
    "qwen-image-start": (
        lambda: load(DATA / "qwen_image/image"), OPTIONS | {"image": PICTURES[0], "strength": 0.5, "guidance": 1.0}
    ),
    "qwen-image-edit": (lambda: open_pipeline(DATA / "qwen_image/edit"), OPTIONS | {"references": PICTURES[:1]}),
    "qwen-image-edit-2511": (lambda: open_pipeline(DATA / "qwen_image/zero"), OPTIONS | {"references": PICTURES}),
    "qwen-image-2.1": (
        lambda: open_qwen_image_21(DATA / "qwen_image_21/model"),
        OPTIONS | {"references": PICTURES[:1], "height": 64, "guidance": 2.0, "negative_prompt": "two foxes"},
    ),
    "hidream": (open_hidream, OPTIONS | HIDREAM),
    "flux-q4": (lambda: load("flux-demo", quant="q4"), OPTIONS | {"steps": 1}),
    "qwen-image-q4": (lambda: load("qwen-demo", quant="q4"), OPTIONS | {"steps": 1}),
    "hidream-edit": (open_hidream, OPTIONS | HIDREAM | {"references": [DATA / "hidream_o1/ref0.png"]}),
}  # fmt: skip


def full_precision_ends() -> set[tuple[int, ...]]:
    """The shapes of HiDream-O1's first and last layers, which take float32 whatever their weights are
    (hidream_o1/transformer.py): they are small, and stand at both ends of the float32 residual stream."""
    config = read_json(DATA / "hidream_o1/config.json")
    dims, patch = config["text_config"]["hidden_size"], config["hidream_o1"]
    values, bottleneck = 3 * patch["patch_size"] ** 2, patch["bottleneck_dim"]
    return {
        (dims, patch["timestep_freq_dim"]), (dims, dims), (bottleneck, values), (dims, bottleneck), (values, dims)
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_gives_nearly_the_float32_picture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, options = CASES[name]
    full = np.asarray(opened().generate("a fox", **options).image).astype(float)
    monkeypatch.setattr("mlx_imagegen.precision.on_gpu", lambda: True)
    monkeypatch.setattr(
        "mlx_imagegen.families.qwen_image.family.on_gpu", lambda: True
    )  # guidance in one batch, as on a GPU
    seen = watch_linears(monkeypatch)
    half = np.asarray(opened().generate("a fox", **options).image).astype(float)
    assert full.std() > 10 and 0 < np.abs(full - half).mean() < 4, "the same picture, and bfloat16 really ran"
    big = {shape for shape, dtypes in seen if dtypes == (mx.float32, mx.bfloat16)}
    allowed = full_precision_ends() if name.startswith("hidream") else set()
    assert big <= allowed, f"float32 activations meet bfloat16 weights of the shapes {big - allowed}"


def watch_linears(monkeypatch: pytest.MonkeyPatch) -> set[tuple[tuple[int, ...], tuple[mx.Dtype, mx.Dtype]]]:
    """Of each linear that runs: its weight's shape, and the dtypes of its input and weight (or of a packed one's
    scales)."""
    seen: set[tuple[tuple[int, ...], tuple[mx.Dtype, mx.Dtype]]] = set()
    product = Linear.product_of_parts

    def watched(self: Linear, *parts: mx.array) -> Product:
        weight = self.get("scales", self.weight)
        seen.update((tuple(self.weight.shape), (x.dtype, weight.dtype)) for x in parts)
        return product(self, *parts)

    monkeypatch.setattr(Linear, "product_of_parts", watched)
    return seen
