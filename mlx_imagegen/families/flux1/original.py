"""Configs for the original single files, which bring none: sizes are read off the tensors' shapes.

In: the header of flux1-*.safetensors or ae.safetensors. Out: the dicts that diffusers' config.json files would hold.
What no shape tells (the latents' scale and shift, the norm's groups) is what was published with the only such files.
"""

import re
from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError
from ...loading.checkpoint import Tensor


def transformer_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        inner, channels = tensors["img_in.weight"].full_shape
        head = tensors["double_blocks.0.img_attn.norm.query_norm.scale"].shape[0]
        return {
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": head,
            "guidance_embeds": "guidance_in.in_layer.weight" in tensors,
            "in_channels": channels,
            "out_channels": tensors["final_layer.linear.weight"].shape[0],
            "joint_attention_dim": tensors["txt_in.weight"].full_shape[1],
            "num_attention_heads": inner // head,
            "num_layers": _count(tensors, r"double_blocks\.(\d+)\."),
            "num_single_layers": _count(tensors, r"single_blocks\.(\d+)\."),
            "pooled_projection_dim": tensors["vector_in.in_layer.weight"].full_shape[1],
            "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],  # 16, 56, 56 of the published 128
        }
    except KeyError as error:
        where = next(iter(tensors.values())).path if tensors else "the file"
        raise CheckpointError(
            f"{where} is not an original FLUX.1 file: it has no {error}. Use flux1-*.safetensors."
        ) from error


def autoencoder_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        levels = _count(tensors, r"encoder\.down\.(\d+)\.")
        widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        return {
            "_class_name": "AutoencoderKL",
            "in_channels": tensors["encoder.conv_in.weight"].shape[1],
            "out_channels": tensors["decoder.conv_out.weight"].shape[0],
            "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
            "block_out_channels": widths,
            "layers_per_block": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "act_fn": "silu",
            "norm_num_groups": 32,
            "sample_size": 1024,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "mid_block_add_attention": True,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "force_upcast": True,
        }
    except KeyError as error:
        where = next(iter(tensors.values())).path if tensors else "the file"
        raise CheckpointError(f"{where} is not FLUX.1's autoencoder: it has no {error}. Use ae.safetensors.") from error


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
