"""Positions, patches and tensor names at real sizes, as upstream's code and the published repositories have them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_imagegen.errors import MismatchError
from mlx_imagegen.families.hidream_o1.config import HiDreamConfig, open_config
from mlx_imagegen.families.hidream_o1.files import Model, check
from mlx_imagegen.families.hidream_o1.tokens import positions
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.names import same_names
from mlx_imagegen.loading.tensors import NamedTensors, name_tensors
from mlx_imagegen.vision.qwen3 import open_tower, read_vision_config

RECORDED = Path(__file__).parents[2] / "data" / "hidream_o1" / "recorded"
IDS = {"<|boi_token|>": 151669, "<|tms_token|>": 151673}
NEVER_LOADED = ("lm_head.", "model.visual.", "model.language_model.embed_tokens.")


def full_size() -> tuple[dict, NamedTensors, HiDreamConfig]:
    """The published index as a checkpoint: names and shapes in float32, no bytes behind them."""
    data = json.loads((RECORDED / "full_size.json").read_text())
    where = Path("HiDream-O1-Image")
    tensors = {
        name: Tensor(where / "model.safetensors", name, "F32", tuple(shape), 0, 4 * math.prod(shape))
        for name, shape in data["shapes"].items()
    }
    weights = name_tensors("transformer", Checkpoint(tensors, [], where), same_names, data["config"])
    return data["config"], weights, open_config(data["config"], where / "config.json", weights, IDS.__getitem__)


def test_full_size_names_and_shapes_bind(tmp_path: Path) -> None:
    data, weights, config = full_size()
    assert len(weights.slices) == 759
    assert (config.patch.patch_size, config.patch.bottleneck_dim, config.patch.timestep_freq_dim) == (32, 1024, 256)
    assert (config.boi, config.tms, config.image_token) == (151669, 151673, 151655)
    checked = check(config, weights)
    preprocessor = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3,
                    "image_std": [0.5] * 3, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    vision, _ = read_vision_config(data["vision_config"], tmp_path / "config.json", tmp_path)
    open_tower(vision, checked)  # the eyes' 351 tensors


def test_what_stays_out_of_memory() -> None:
    """6.98 of 8.80 billion parameters are what text-to-image holds."""
    _, weights, config = full_size()
    held = sum(value.size for _, value in tree_flatten(Model(config).parameters()))
    left = [part for name, part in weights.slices.items() if name.startswith(NEVER_LOADED)]
    assert held + sum(math.prod(part.shape) for part in left) == 8_804_887_792
    assert round(held / 1e9, 2) == 6.98


def test_a_misshapen_tensor_is_named() -> None:
    _, weights, config = full_size()
    name = "model.language_model.layers.7.self_attn.q_norm.weight"
    tensors = dict(weights.checkpoint.tensors)
    tensors[name] = replace(tensors[name], shape=(64,))
    short = name_tensors("transformer", Checkpoint(tensors, [], weights.checkpoint.where))
    with pytest.raises(MismatchError, match=r"1 misshapen: .*layers\.7\.self_attn\.q_norm\.weight \[64\]"):
        check(config, short)


def test_positions_at_real_sizes() -> None:
    """Six cases of upstream's: 2048x2048, wide, a text longer than the target's fixed point, one and three
    references."""
    _, _, config = full_size()
    recorded = np.load(RECORDED / "positions.npz")
    cases = json.loads((RECORDED / "positions.json").read_text())
    config = replace(config, image_token=262)  # the recordings have a small vocabulary
    for name, case in cases.items():
        ids = recorded[f"{name}.text_ids"].tolist()
        got = positions(ids, config, tuple(case["tgt"]), case["conds"], [tuple(grid) for grid in case["refs"]])
        assert (got == recorded[f"{name}.position_ids"]).all(), name
