"""Qwen's language model against transformers' numbers, stored in tests/data/qwen_text
(tests/references/qwen_text.py)."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen.errors import ConfigError
from mlx_imagegen.layers.embed import Table
from mlx_imagegen.layers.rope import Rope
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.loading.weights import open_weights
from mlx_imagegen.text.qwen import LanguageModel, from_published, mrope, read_config, text_positions
from tests.draw import drawn_data

DATA = drawn_data() / "qwen_text"
KINDS = ("qwen2_5", "qwen3")
TABLE = "embed_tokens.weight"
TOLERANCE = 2e-5


def largest(a: mx.array, b: mx.array) -> float:
    assert a.shape == b.shape
    return float(mx.max(mx.abs(a - b)))


def check_model(folder: Path) -> None:
    """Every layer, the last hidden state, and the prefix path, against the folder's reference.safetensors."""
    config = read_config(read_json(folder / "config.json"), folder / "config.json")
    trees = [LanguageModel(config), Table(TABLE, config.vocab_size, config.hidden_size)]
    weights = open_weights("text_encoder", open_checkpoint(folder / "model.safetensors"), trees)
    model = weights.fill(LanguageModel(config))
    want = mx.load(str(folder / "reference.safetensors"))
    ids = np.array(want["ids"]).tolist()
    image = read_json(folder / "config.json")["image_token_id"]
    positions = text_positions(ids, image, np.array(want["grids"]).tolist())
    assert (positions == np.array(want["positions"])).all()
    rope = mrope(positions, config)
    assert largest(rope[0], want["cos"]) < 1e-6 and largest(rope[1], want["sin"]) < 1e-6

    start = x = weights.gather(TABLE, ids, mx.float32)[None]
    deepstack = spread(want, ids, image)
    for index, layer in enumerate(model.layers):
        x, _ = layer(x, rope, "causal", None)
        assert largest(x, want[f"layer{index}"]) < TOLERANCE, f"layer {index}"
        if index < len(deepstack):
            x = x + deepstack[index]
    assert largest(model.norm(x), want["last"]) < TOLERANCE
    if not deepstack:
        assert largest(model(start, rope), want["last"]) < TOLERANCE
    check_prefix(model, start, rope, deepstack, want["last"])


def spread(want: dict[str, mx.array], ids: list[int], image: int) -> list[mx.array]:
    """The reference's features, one row a picture token, as [1, L, D] with zeros elsewhere."""
    places = mx.array([index for index, token in enumerate(ids) if token == image])
    names = sorted(name for name in want if name.startswith("deepstack"))
    out = [mx.zeros((1, len(ids), want[name].shape[-1])) for name in names]
    for place, name in zip(out, names, strict=True):
        place[0, places] = want[name]
    return out


def check_prefix(model: LanguageModel, x: mx.array, rope: Rope, deepstack: list[mx.array], whole: mx.array) -> None:
    """The end of the sequence after cached keys and values, against the whole sequence at once."""
    cut = x.shape[1] - 2  # what follows has no picture tokens, hence no features
    cos, sin = rope
    prefix = model.keys_values(x[:, :cut], (cos[:cut], sin[:cut]), [part[:, :cut] for part in deepstack])
    tail = model(x[:, cut:], (cos[cut:], sin[cut:]), prefix=prefix)
    assert largest(tail, whole[:, cut:]) < TOLERANCE


def check_text_only(folder: Path) -> None:
    """Every state, asked for together and one alone; padding after the ids changes none of theirs."""
    data = read_json(folder / "config.json")
    config = read_config(data, folder / "config.json")
    trees = [LanguageModel(config), Table(TABLE, config.vocab_size, config.hidden_size)]
    checkpoint = open_checkpoint(folder / "model.safetensors")
    weights = open_weights("text_encoder", checkpoint, trees, rename=from_published)
    model = weights.fill(LanguageModel(config))
    want = mx.load(str(folder / "reference.safetensors"))
    ids = np.array(want["ids"]).tolist()
    x, rope = weights.gather(TABLE, ids, mx.float32)[None], mrope(text_positions(ids), config)
    before_norm = range(config.num_hidden_layers)  # the last of transformers' states is normed
    for count, state in zip(before_norm, model.states(x, rope, before_norm), strict=True):
        assert largest(state[0], want[f"state{count}"]) < TOLERANCE, f"after {count} layers"
        assert largest(state[0], want[f"padded{count}"]) < TOLERANCE, f"after {count} layers, with padding"
    assert largest(model(x, rope)[0], want[f"state{config.num_hidden_layers}"]) < TOLERANCE
    few = weights.fill(LanguageModel(replace(config, num_hidden_layers=2)))
    (alone,) = few.states(x, rope, [2])
    assert largest(alone[0], want["state2"]) < TOLERANCE
    rest = {key: value for key, value in data.items() if key != "rope_parameters"}
    published = rest | {"rope_theta": data["rope_parameters"]["rope_theta"], "rope_scaling": None}
    assert read_config(published, folder / "config.json") == config


def test_the_text_only_model_equals_transformers() -> None:
    check_text_only(DATA / "qwen3_text")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str) -> None:
    check_model(DATA / kind)


def test_published_files_put_the_fields_at_the_top() -> None:
    """Qwen-Image's own text_encoder/config.json, from before text_config existed."""
    data = read_json(DATA / "qwen2_5" / "config.json")
    old = {key: value for key, value in data.items() if key != "text_config"} | data["text_config"]
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    old["model_type"] = "qwen2_5_vl"
    new = read_config(data, Path("config.json"))
    assert read_config(old, Path("config.json")).mrope_section == new.mrope_section
    assert read_config(old, Path("config.json")).rope_theta == new.rope_theta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "sliding"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}, "yarn"),
        ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 4]}}, "mrope_section"),
        ({"qk_clip": 3}, "qk_clip"),
    ],
)
def test_another_architecture_is_refused(change: dict[str, object], message: str) -> None:
    data = json.loads((DATA / "qwen2_5" / "config.json").read_text())
    data["text_config"] |= change
    with pytest.raises(ConfigError, match=message):
        read_config(data, Path("config.json"))
