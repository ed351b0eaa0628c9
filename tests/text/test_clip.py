"""CLIP's text tower against transformers' numbers, stored in tests/data/flux_text (tests/references/flux_text.py)."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.errors import ConfigError, MismatchError, RequestError
from mlx_imagegen.families.flux1.keys import from_clip
from mlx_imagegen.layers.embed import Table
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import Weights, open_weights
from mlx_imagegen.text.clip import CLIPConfig, ClipTextModel
from tests.draw import drawn_data

DATA = drawn_data() / "flux_text"
TABLE = "embeddings.token_embedding.weight"
TOLERANCE = 1e-5


def relative(got: mx.array, want: mx.array) -> float:
    """The largest difference, in units of the largest value."""
    assert got.shape == want.shape
    return float(mx.max(mx.abs(got - want)) / mx.max(mx.abs(want)))


def config_of(folder: Path) -> CLIPConfig:
    return CLIPConfig.read(read_json(folder / "config.json"), folder / "config.json")


def weights_of(folder: Path, config: CLIPConfig) -> Weights:
    trees = [ClipTextModel(config), Table(TABLE, config.vocab_size, config.hidden_size)]
    return open_weights("text_encoder", open_checkpoint(folder), trees, rename=from_clip)


def check_clip(folder: Path, name: str) -> None:
    """Features and pooled vectors of a model saved under `name`, against the folder's reference.safetensors."""
    config = config_of(folder / name)
    weights = weights_of(folder / name, config)
    model = weights.fill(ClipTextModel(config))
    want = mx.load(str(folder / "reference.safetensors"))
    rows = [weights.gather(TABLE, ids, mx.float32) for ids in np.array(want["clip.ids"]).tolist()]
    features, pooled = model(mx.stack(rows), want["clip.ids"])
    assert relative(features, want["clip.features"]) < TOLERANCE
    assert relative(pooled, want["clip.pooled"]) < TOLERANCE


@pytest.mark.parametrize("name", ["clip", "clip_saved"])
def test_equals_transformers(name: str) -> None:
    check_clip(DATA, name)


@pytest.mark.parametrize(("eos_token_id", "place"), [(2, 4), (40, 3), (41, 4)])
def test_pooled_is_the_features_at_the_end_token(eos_token_id: int, place: int) -> None:
    """Id 2 stands in old configs for "the largest id"; any other is looked for, and its first place counts."""
    folder = DATA / "clip"
    config = CLIPConfig.read(read_json(folder / "config.json") | {"eos_token_id": eos_token_id}, "config.json")
    model = weights_of(folder, config).fill(ClipTextModel(config))
    x = mx.random.normal((1, 7, config.hidden_size), key=mx.random.key(1))
    features, pooled = model(x, mx.array([[39, 5, 2, 40, 41, 40, 41]]))
    assert mx.array_equal(pooled, features[:, place])


def test_later_tokens_do_not_change_earlier_features() -> None:
    config = config_of(DATA / "clip")
    model = weights_of(DATA / "clip", config).fill(ClipTextModel(config))
    x = mx.random.normal((1, 9, config.hidden_size), key=mx.random.key(2))
    ids = mx.arange(9)[None]
    whole, part = model(x, ids)[0], model(x[:, :5], ids[:, :5])[0]
    assert relative(whole[:, :5], part) < TOLERANCE


def test_more_tokens_than_positions_are_refused() -> None:
    config = config_of(DATA / "clip")
    too_many = config.max_position_embeddings + 1
    with pytest.raises(RequestError, match=f"{too_many} tokens are more"):
        ClipTextModel(config)(mx.zeros((1, too_many, config.hidden_size)), mx.zeros((1, too_many), mx.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu6"}, "field 'hidden_act' is 'relu6', where one of quick_gelu"),
        ({"num_attention_heads": 5}, r"'hidden_size' is .*, where a multiple of num_attention_heads \(5\) is needed"),
        ({"hidden_size": "12"}, "'hidden_size' is '12'"),
        ({"use_rope": True}, "'use_rope' is not known"),
    ],
)
def test_configs_of_another_architecture_are_refused(change: dict[str, object], message: str) -> None:
    data = read_json(DATA / "clip" / "config.json") | change
    with pytest.raises(ConfigError, match=message) as caught:
        CLIPConfig.read(data, "text_encoder/config.json")
    assert "text_encoder/config.json" in str(caught.value)


def test_a_config_that_does_not_fit_the_tensors_is_refused() -> None:
    data = read_json(DATA / "clip" / "config.json") | {"intermediate_size": 65, "num_hidden_layers": 4}
    with pytest.raises(MismatchError, match=r"16 missing.*misshapen: encoder\.layers\.0\.mlp\.fc1\.bias"):
        weights_of(DATA / "clip", CLIPConfig.read(data, "config.json"))
