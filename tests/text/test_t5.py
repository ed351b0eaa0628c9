"""T5's encoder against transformers' numbers, stored in tests/data/flux_text (tests/references/flux_text.py)."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.errors import ConfigError
from mlx_imagegen.families.flux1.keys import from_t5
from mlx_imagegen.layers.embed import Table
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import Weights, open_weights
from mlx_imagegen.text.t5 import T5Config, T5Encoder, distance_buckets
from tests.text.test_clip import DATA, TOLERANCE, relative

TABLE = "shared.weight"


def opened(folder: Path) -> tuple[T5Config, Weights]:
    config = T5Config.read(read_json(folder / "config.json"), folder / "config.json")
    trees = [T5Encoder(config), Table(TABLE, config.vocab_size, config.d_model)]
    weights = open_weights("text_encoder_2", open_checkpoint(folder), trees, rename=from_t5)
    return config, weights


def check_t5(folder: Path, name: str) -> None:
    """Features of a model saved under `name`, padding and all, against the folder's reference.safetensors."""
    config, weights = opened(folder / name)
    model = weights.fill(T5Encoder(config))
    want = mx.load(str(folder / "reference.safetensors"))
    rows = [weights.gather(TABLE, ids, mx.float32) for ids in np.array(want["t5.ids"]).tolist()]
    assert relative(model(mx.stack(rows)), want["t5.features"]) < TOLERANCE


def check_buckets(folder: Path) -> None:
    """Every length's buckets are a corner of the longest's; transformers' own, for several configs."""
    want = mx.load(str(folder / "reference.safetensors"))
    names = [name for name in want if name.startswith("buckets.")]
    assert names
    for name in names:
        _, buckets, max_distance = name.split(".")
        row = np.array(want[name])  # by key - query, from -(length - 1) to length - 1
        length = (len(row) + 1) // 2
        got = distance_buckets(length, int(buckets), int(max_distance))
        assert np.array_equal(got[0], row[length - 1 :]), name
        assert np.array_equal(got[-1], row[:length]), name


@pytest.mark.parametrize("name", ["t5", "t5_saved"])
def test_equals_transformers(name: str) -> None:
    check_t5(DATA, name)


def test_distance_buckets_equal_transformers() -> None:
    check_buckets(DATA)


def test_buckets_depend_on_the_distance_alone() -> None:
    long, short = distance_buckets(40, 32, 128), distance_buckets(9, 32, 128)
    assert np.array_equal(long[:9, :9], short)
    assert np.array_equal(long[1:, 1:], long[:-1, :-1])


def test_a_table_under_its_other_name_alone(tmp_path: Path) -> None:
    """`encoder.embed_tokens.weight` without `shared.weight`, as some versions save a tied table."""
    tensors = mx.load(str(DATA / "t5" / "model.safetensors"))
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    (tmp_path / "config.json").write_bytes((DATA / "t5" / "config.json").read_bytes())
    _, weights = opened(tmp_path)
    _, published = opened(DATA / "t5")
    assert mx.array_equal(weights.gather(TABLE, [3, 1], mx.float32), published.gather(TABLE, [3, 1], mx.float32))


@pytest.mark.parametrize(
    "change", [{"feed_forward_proj": "relu"}, {"dense_act_fn": "silu"}, {"feed_forward_proj": "gated-silu"}]
)
def test_another_feed_forward_is_refused(change: dict[str, str]) -> None:
    data = read_json(DATA / "t5" / "config.json") | change
    with pytest.raises(ConfigError, match=r"T5 v1\.1 alone") as caught:
        T5Config.read(data, "text_encoder_2/config.json")
    assert "text_encoder_2/config.json" in str(caught.value) and next(iter(change.values())) in str(caught.value)


def test_a_missing_width_is_named() -> None:
    data = read_json(DATA / "t5" / "config.json")
    del data["d_kv"]
    with pytest.raises(ConfigError, match="field 'd_kv' is missing"):
        T5Config.read(data, "text_encoder_2/config.json")
