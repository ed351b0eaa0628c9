"""Autoencoders in the original's names (ae.safetensors, flux2-vae.safetensors, ComfyUI's vae/) -> diffusers'.

diffusers' own names stay as they are, so that a file may be in either.
"""

import re
from collections.abc import Iterable

from ..loading.names import RowRange

PATTERNS = (
    (r"^(en|de)coder\.mid\.block_(\d)\.", lambda m: f"{m[1]}coder.mid_block.resnets.{int(m[2]) - 1}."),
    (r"\.mid\.attn_1\.norm\.", lambda m: ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", lambda m: ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", lambda m: f".mid_block.attentions.0.to_{m[1]}."),
    (r"\.down\.(\d)\.block\.", lambda m: f".down_blocks.{m[1]}.resnets."),
    (r"\.down\.(\d)\.downsample\.", lambda m: f".down_blocks.{m[1]}.downsamplers.0."),
    # The original counts the decoder's levels from the finest, diffusers from the coarsest; both have four.
    (r"\.up\.(\d)\.block\.", lambda m: f".up_blocks.{3 - int(m[1])}.resnets."),
    (r"\.up\.(\d)\.upsample\.", lambda m: f".up_blocks.{3 - int(m[1])}.upsamplers.0."),
    (r"\.nin_shortcut\.", lambda m: ".conv_shortcut."),
    (r"coder\.norm_out\.", lambda m: "coder.conv_norm_out."),
    (r"^(en|de)coder\.((post_)?quant_conv)\.", lambda m: f"{m[2]}."),
)


def from_original(name: str) -> Iterable[RowRange]:
    for pattern, replacement in PATTERNS:
        name = re.sub(pattern, replacement, name)
    yield RowRange(name)
