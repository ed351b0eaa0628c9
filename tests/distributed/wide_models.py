"""Tiny models of each family with four heads of 32: four ranks have one each, and packed weights have whole groups.

The stored draws under tests/data are narrower. Only what their denoisers and language models are is drawn again.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.families.flux2.config import Flux2Config
from mlx_imagegen.families.flux2.modulation import Flux2Modulators
from mlx_imagegen.families.flux2.transformer import Flux2Transformer
from mlx_imagegen.families.flux3.config import Flux3Config
from mlx_imagegen.families.flux3.modulation import Flux3Modulators
from mlx_imagegen.families.flux3.transformer import Flux3Transformer
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.modulation import QwenImageModulators
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.families.qwen_image_21.config import QwenImage21Config
from mlx_imagegen.families.qwen_image_21.modulation import QwenImage21Modulators
from mlx_imagegen.families.qwen_image_21.transformer import QwenImage21Transformer
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.modulation import ZImageModulators
from mlx_imagegen.families.z_image.transformer import PromptRefiner, ZImageTransformer
from tests.draw import drawn_data
from tests.tiny import draw_tensors

HEADS, SIZE, INNER = 4, 32, 256
WIDTH = HEADS * SIZE
DIFFUSERS = {"num_attention_heads": HEADS, "attention_head_dim": SIZE}
Shapes = dict[str, tuple[int, ...]]  # by the ends of tensors' names


class Wide(NamedTuple):
    config: Any  # of the denoiser; None where it is the language model
    trees: tuple[Callable[[Any], nn.Module], ...]
    changes: Mapping[str, Any]


MODELS = {
    "flux/dev": Wide(FluxConfig, (FluxTransformer, FluxModulators), DIFFUSERS | {"axes_dims_rope": [4, 14, 14]}),
    "flux2/klein": Wide(
        Flux2Config, (Flux2Transformer, Flux2Modulators), DIFFUSERS | {"axes_dims_rope": [8, 8, 8, 8]}
    ),
    "flux3/base": Wide(
        Flux3Config, (Flux3Transformer, Flux3Modulators), DIFFUSERS | {"axes_dims_rope": [4, 8, 8, 12]}
    ),
    "qwen_image/image": Wide(
        QwenImageConfig, (QwenImageTransformer, QwenImageModulators), DIFFUSERS | {"axes_dims_rope": [4, 14, 14]}
    ),
    "qwen_image_21/model": Wide(
        QwenImage21Config, (QwenImage21Transformer, QwenImage21Modulators),
        DIFFUSERS | {"axes_dims_rope": [4, 14, 14]},
    ),
    "z_image/base": Wide(
        ZImageConfig, (ZImageTransformer, PromptRefiner, ZImageModulators),
        {"dim": WIDTH, "n_heads": HEADS, "n_kv_heads": HEADS, "axes_dims": [8, 12, 12]},
    ),
    "hidream_o1": Wide(None, (), {}),
}  # fmt: skip


def draw_wide(name: str, folder: Path) -> Path:
    shutil.copytree(drawn_data() / name, folder)
    wide = MODELS[name]
    if wide.config:
        path = folder / "transformer/config.json"
        data = json.loads(path.read_text()) | wide.changes
        path.write_text(json.dumps(data))
        config = wide.config.read(data, path)
        _replace(path.parent, draw_tensors([tree(config) for tree in wide.trees], 0, mx.float32))
    for text in (folder, folder / "text_encoder", folder / "text_encoder_2"):
        if (text / "config.json").is_file():
            _widen_text(text)
    return folder


def _widen_text(folder: Path) -> None:
    """Qwen's and Mistral's, or T5; CLIP is complete on every rank."""
    data = json.loads((folder / "config.json").read_text())
    text = data.get("text_config", data)
    if "d_kv" in text:
        _replace(folder, {}, _t5(text))
    elif "num_key_value_heads" in text:
        _replace(folder, {}, _language_model(text))
    (folder / "config.json").write_text(json.dumps(data))


def _t5(config: dict[str, Any]) -> Shapes:
    config |= {"num_heads": HEADS, "d_kv": SIZE, "d_ff": INNER}
    width = config["d_model"]
    attention = {f"SelfAttention.{name}.weight": (WIDTH, width) for name in "qkv"}
    attention |= {"SelfAttention.o.weight": (width, WIDTH), "relative_attention_bias.weight": (32, HEADS)}
    return attention | {"wi_0.weight": (INNER, width), "wi_1.weight": (INNER, width), "wo.weight": (width, INNER)}


def _language_model(config: dict[str, Any]) -> Shapes:
    width = config["hidden_size"]
    size = SIZE if "head_dim" in config else width // HEADS
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "intermediate_size": INNER}
    config |= {"head_dim": size} if "head_dim" in config else {}
    for rope in (config.get("rope_scaling"), config.get("rope_parameters")):
        if rope and "mrope_section" in rope:
            rope["mrope_section"] = [size // 2 - 2 * (size // 8), size // 8, size // 8]
    inner, heads = HEADS * size, [f"{name}_proj" for name in "qkv"]
    attention = {f"{name}.weight": (inner, width) for name in heads} | {f"{name}.bias": (inner,) for name in heads}
    attention |= {"o_proj.weight": (width, inner), "q_norm.weight": (size,), "k_norm.weight": (size,)}
    rows = {f"{name}_proj.weight": (INNER, width) for name in ("gate", "up")}
    return attention | rows | {"down_proj.weight": (width, INNER)}


def _replace(folder: Path, drawn: dict[str, mx.array], ends: Shapes | None = None) -> None:
    """The folder's tensors by these; and those whose names end so, by others of that shape."""
    dice, tensors = np.random.default_rng(1), {}
    single = folder / "model.safetensors"  # HiDream-O1's folder has other tensors as well
    for file in [single] if single.is_file() else list(folder.glob("*.safetensors")):
        tensors |= mx.load(str(file))
        file.unlink()
    for index in folder.glob("*.index.json"):
        index.unlink()
    for name in tensors:
        shape = next((shape for end, shape in (ends or {}).items() if name.endswith(end)), None)
        if shape and "vis" not in name:
            spread = 0.8 / shape[1] ** 0.5 if len(shape) > 1 else 0.1
            values = dice.standard_normal(shape) * spread + ("norm" in name)
            drawn[name] = mx.array(values.astype(np.float32))
    kept = {} if ends is None else tensors
    mx.save_safetensors(str(single), kept | drawn)
