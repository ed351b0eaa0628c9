"""Random weights of a few blocks at the real width, as diffusers has them on disk, and the inputs of a few steps.

Out, in the given folder: transformer/config.json and .safetensors (bfloat16 values, so that every library reads the
same numbers), and inputs.safetensors: x, txt, pooled and the timesteps (0..1000). Runs in this library's environment.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.families.flux2.config import Flux2Config
from mlx_imagegen.families.flux2.modulation import Flux2Modulators
from mlx_imagegen.families.flux2.transformer import Flux2Transformer
from mlx_imagegen.families.qwen_image.config import QwenImageConfig
from mlx_imagegen.families.qwen_image.modulation import QwenImageModulators
from mlx_imagegen.families.qwen_image.transformer import QwenImageTransformer
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.modulation import ZImageModulators
from mlx_imagegen.families.z_image.transformer import PromptRefiner, ZImageTransformer
from mlx_imagegen.loading.weights import join, layers, own_parameters

SHARED = {"attention_head_dim": 128, "num_attention_heads": 24, "in_channels": 64, "guidance_embeds": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "flux": SHARED
    | {
        "_class_name": "FluxTransformer2DModel", "joint_attention_dim": 4096, "num_layers": 1, "num_single_layers": 1,
        "patch_size": 1, "pooled_projection_dim": 768,
    },
    "flux2": {
        "_class_name": "Flux2Transformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [32, 32, 32, 32],
        "guidance_embeds": False, "in_channels": 128, "joint_attention_dim": 7680, "num_attention_heads": 24,
        "num_layers": 1, "num_single_layers": 1, "rope_theta": 2000,
    },
    "qwen_image": SHARED
    | {
        "_class_name": "QwenImageTransformer2DModel", "joint_attention_dim": 3584, "num_layers": 1, "out_channels": 16,
        "patch_size": 2, "axes_dims_rope": [16, 56, 56],
    },
    "z_image": {
        "_class_name": "ZImageTransformer2DModel", "all_f_patch_size": [1], "all_patch_size": [2],
        "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "cap_feat_dim": 2560, "dim": 3840, "in_channels": 16,
        "n_heads": 30, "n_kv_heads": 30, "n_layers": 1, "n_refiner_layers": 1, "norm_eps": 1e-5, "qk_norm": True,
        "rope_theta": 256.0, "t_scale": 1000.0,
    },
}  # fmt: skip
SIDE, TEXT_TOKENS = 128, 32  # pixels a side: 64 tokens
TIMESTEPS = (1000.0, 500.0)


def draw(family: str, folder: Path, seed: int = 0) -> Path:
    transformer = folder / "transformer"
    transformer.mkdir(parents=True, exist_ok=True)
    (transformer / "config.json").write_text(json.dumps(CONFIGS[family], indent=1))
    dice = np.random.default_rng(seed)
    tensors = {}
    for tree in _trees(family):
        for path, layer in layers(tree):
            for name, value in own_parameters(layer).items():
                spread = 0.02 if value.ndim > 1 else 0.1
                drawn = dice.standard_normal(value.shape, np.float32) * spread + (name == "weight" and value.ndim == 1)
                tensors[join(path, name)] = mx.array(drawn).astype(mx.bfloat16)
    mx.save_safetensors(str(transformer / "diffusion_pytorch_model.safetensors"), tensors)
    config, latents = CONFIGS[family], SIDE // 8
    shapes = {
        "x": (1, 16, latents, latents) if family == "z_image" else (1, (SIDE // 16) ** 2, config["in_channels"]),
        "txt": (1, TEXT_TOKENS, config.get("joint_attention_dim") or config["cap_feat_dim"]),
        "pooled": (1, 768),
    }
    inputs = {name: mx.array(dice.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    mx.save_safetensors(str(folder / "inputs.safetensors"), inputs | {"timesteps": mx.array(TIMESTEPS)})
    return folder


def _trees(family: str) -> list[nn.Module]:
    data, where = CONFIGS[family], "draw.py"
    if family == "flux":
        flux = FluxConfig.read(data, where)
        return [FluxTransformer(flux), FluxModulators(flux)]
    if family == "flux2":
        flux2 = Flux2Config.read(data, where)
        return [Flux2Transformer(flux2), Flux2Modulators(flux2)]
    if family == "z_image":
        z = ZImageConfig.read(data, where)
        return [ZImageTransformer(z), PromptRefiner(z), ZImageModulators(z)]
    qwen = QwenImageConfig.read(data, where)
    return [QwenImageTransformer(qwen), QwenImageModulators(qwen)]
