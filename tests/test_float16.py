"""FLUX.1's transformer in float16: near the float32 picture, within float16's range, chosen by the chip or by hand."""

from fnmatch import fnmatchcase

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_imagegen import load
from mlx_imagegen.errors import RequestError
from mlx_imagegen.families import family_spec
from mlx_imagegen.families.flux1 import transformer
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.transformer import FluxTransformer, Modulation
from mlx_imagegen.layers import joint, products
from mlx_imagegen.layers.products import Product
from mlx_imagegen.layers.rope import rope_table
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.measuring.quality import psnr
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.precision import denoiser_precision
from tests.draw import drawn_data

LARGEST = 65504.0  # float16's


@pytest.mark.parametrize(("quant", "steps"), [(None, 2), ("q4", 1)])
def test_pictures_are_nearer_to_float32_s_than_bfloat16_s(quant: str | None, steps: int) -> None:
    def picture(precision: str) -> np.ndarray:
        result = load("flux-demo", quant=quant, precision=precision).generate(
            "a red circle", seed=1, steps=steps, width=32, height=32
        )
        assert result.report.choices["precision"] == f"{precision} (asked for)"
        assert result.record["precision"] == precision and precision in result.record["quantization"]["transformer"]
        return np.asarray(result.image) / 255

    full = picture("float32")
    bfloat16, float16 = (psnr(picture(name), full) or 99.0 for name in ("bfloat16", "float16"))
    assert float16 > 60 and float16 > bfloat16 + 6


def drawn(shape: tuple[int, ...], seed: int, size: float = 1.0) -> mx.array:
    return size * mx.random.normal(shape, key=mx.random.key(seed))


def grown_transformer() -> FluxTransformer:
    """Its feed-forwards' outputs are several times float16's largest number, and its stream becomes larger yet."""
    config = FluxConfig.read(read_json(drawn_data() / "flux/dev/transformer/config.json"), "config.json")
    model = FluxTransformer(config)
    seeds = iter(range(1000))

    def filled(x: mx.array) -> mx.array:
        return drawn(x.shape, next(seeds), x.shape[-1] ** -0.5) if x.ndim > 1 else mx.ones(x.shape)

    model.update(tree_map(filled, model.parameters()))
    for block in model.transformer_blocks:
        for feed_forward in (block.ff, block.ff_context):
            feed_forward.net["2"].weight *= 1e5
    return model


def run(model: FluxTransformer, dtype: mx.Dtype) -> np.ndarray:
    config = FluxConfig.read(read_json(drawn_data() / "flux/dev/transformer/config.json"), "config.json")
    model.update(tree_map(lambda x: x.astype(dtype), model.parameters()))
    dims = config.inner_dim
    doubles, singles = config.num_layers, config.num_single_layers
    tables = (
        drawn((doubles, 6, dims), 1),
        drawn((doubles, 6, dims), 2),
        drawn((singles, 3, dims), 3),
        drawn((2, dims), 4),
    )
    rope = rope_table(np.arange(27).reshape(9, 3), config.axes_dims_rope, 10000.0)
    x, txt = drawn((1, 6, config.in_channels), 5), drawn((1, 3, config.joint_attention_dim), 6)
    modulation = Modulation(*(table.astype(dtype) for table in tables))
    return np.array(model(x.astype(dtype), txt.astype(dtype), rope, modulation).astype(mx.float32))


def test_what_outgrows_float16_stays_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = {"product": 0.0, "stream": 0.0}

    def note(name: str, x: mx.array) -> None:
        largest[name] = max(largest[name], float(mx.abs(x).max().item()))

    def feed_forward(self: joint.FeedForward, x: mx.array) -> Product:
        product = real(self, x)
        note("product", product.sum())
        return product

    def gated(x: mx.array, gate: mx.array, y: Product) -> mx.array:
        out = products.gated_sum_of(x, gate, y)
        note("stream", out)
        return out

    real = joint.FeedForward.__call__
    with monkeypatch.context() as patch:
        patch.setattr(joint.FeedForward, "__call__", feed_forward)
        patch.setattr(transformer, "gated_sum_of", gated)
        full = run(grown_transformer(), mx.float32)
    assert 4 * LARGEST < largest["product"] < 8 * LARGEST, "as large as the divisor is for"
    assert largest["stream"] > 10 * LARGEST
    narrow = run(grown_transformer(), mx.float16)
    assert np.isfinite(narrow).all() and np.abs(narrow - full).max() < 0.01 * np.abs(full).max()
    # Neither is enough without the other.
    with monkeypatch.context() as patch:
        patch.setattr(joint, "divided_gelu_tanh_of", lambda y: 8 * products.divided_gelu_tanh_of(y))
        assert not np.isfinite(run(grown_transformer(), mx.float16)).all()
    monkeypatch.setattr(transformer, "stream_dtype", lambda dtype: dtype)
    assert not np.isfinite(run(grown_transformer(), mx.float16)).all()


@pytest.mark.parametrize(
    ("architecture", "fits", "expected"),
    [
        ("applegpu_g13s", True, "float16 (this chip only emulates bfloat16)"),  # M1 Max
        ("applegpu_g14g", True, "float16 (this chip only emulates bfloat16)"),  # M2
        ("applegpu_g15d", True, "bfloat16"),  # M3 Max
        ("applegpu_g14g", False, "bfloat16"),
        ("sm_90", True, "bfloat16"),
    ],
)
def test_the_chip_chooses(architecture: str, fits: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_imagegen.precision.on_gpu", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda _: {"architecture": architecture})
    assert str(denoiser_precision(None, "", fits, ())) == expected
    assert str(denoiser_precision("bfloat16", "", fits, ())) == "bfloat16 (asked for)"


def test_without_a_gpu_nothing_is_narrow() -> None:
    assert str(denoiser_precision(None, "", True, ())) == "float32"
    assert "precision" not in load("flux-demo").generate("a", seed=1, steps=1).record


def test_the_plan_counts_the_precision_s_bytes() -> None:
    def resident(precision: str | None) -> int:
        pipeline = load("flux-demo", precision=precision)
        made = plan(pipeline.family, pipeline.jobs("a", seed=1)[0].settings, gpu=False)
        return {stage.name: stage.resident_bytes for stage in made.stages}["denoise"]

    assert resident("float16") == resident(None) / 2


@pytest.mark.parametrize(
    ("model", "precision", "words"),
    [
        ("flux-demo", "half", "'half', which is not known; give one of float32, bfloat16, float16"),
        ("hidream-demo", "float16", "HiDream-O1-Image runs in float32 here, and in nothing else; leave precision out"),
        ("qwen-demo", "float16", r"these layers overflow: \*.attn.to_\[qkv\], .*\*_mlp.net.2; leave precision out"),
    ],
)
def test_what_is_refused(model: str, precision: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load(model, precision=precision)


def test_layers_that_would_have_to_stay_are_the_family_s() -> None:
    paths = list(load("qwen-demo").family.weights["transformer"].linears)
    overflowing = family_spec("qwen_image").overflowing
    assert overflowing
    for glob in overflowing:
        assert any(fnmatchcase(path, glob) for path in paths), glob
