"""What the original single files of FLUX.1 and FLUX.2 call alike, in diffusers' names.

Must not know: either's blocks.
"""

from ..loading.name_table import Parts

DOUBLE, SINGLE = "transformer_blocks.{i}.", "single_transformer_blocks.{i}."

# Original module -> ours, with the number of equal row units each takes (a fused linear holds several of ours).
COMMON: dict[str, Parts] = {
    "img_in": (("x_embedder", 1),),
    "txt_in": (("context_embedder", 1),),
    "double_blocks.{i}.img_attn.qkv": tuple((DOUBLE + f"attn.to_{part}", 1) for part in "qkv"),
    "double_blocks.{i}.txt_attn.qkv": tuple((DOUBLE + f"attn.add_{part}_proj", 1) for part in "qkv"),
    "double_blocks.{i}.img_attn.proj": ((DOUBLE + "attn.to_out.0", 1),),
    "double_blocks.{i}.txt_attn.proj": ((DOUBLE + "attn.to_add_out", 1),),
    "double_blocks.{i}.img_attn.norm.query_norm": ((DOUBLE + "attn.norm_q", 1),),
    "double_blocks.{i}.img_attn.norm.key_norm": ((DOUBLE + "attn.norm_k", 1),),
    "double_blocks.{i}.txt_attn.norm.query_norm": ((DOUBLE + "attn.norm_added_q", 1),),
    "double_blocks.{i}.txt_attn.norm.key_norm": ((DOUBLE + "attn.norm_added_k", 1),),
    "single_blocks.{i}.norm.query_norm": ((SINGLE + "attn.norm_q", 1),),
    "single_blocks.{i}.norm.key_norm": ((SINGLE + "attn.norm_k", 1),),
    "final_layer.linear": (("proj_out", 1),),
    "final_layer.adaLN_modulation.1": (("norm_out.linear", 1),),
}
# The original orders the last norm's rows (shift, scale), diffusers (scale, shift).
SWAPPED_HALVES = "final_layer.adaLN_modulation.1"
