"""Qwen-Image as single files: ComfyUI's and GGUF's, which carry diffusers' names, and what mflux saves."""

from collections.abc import Mapping
from typing import Any

from ...autoencoders.layouts import mflux_wan_file, wan_files
from ...loading.single_file import DIFFUSION_PREFIXES, NETWORK, SingleFile, Tensors, count, has, renamed, shape
from ...text.layouts import mflux_qwen2_5_vl_file, qwen2_5_vl_files
from ...vision.layouts import qwen2_5_tower_file

COLOURS = 3
NETWORK_SIGN = "controlnet_x_embedder.weight"


def nearest_manifest(name: str, tensors: Tensors) -> str:
    """The variants' tensors are alike, but for one of -Layered: the file's name tells, and a marker in -Edit-2511."""
    if "time_text_embed.addition_t_embedding.weight" in tensors:
        return "qwen-image-layered"
    if "2511" in name or "__index_timestep_zero__" in tensors:
        return "qwen-image-edit-2511"
    if "2509" in name:
        return "qwen-image-edit-2509"
    if "edit" in name:
        return "qwen-image-edit"
    return "qwen-image-2512" if "2512" in name else "qwen-image"


def _config(tensors: Tensors) -> dict[str, object]:
    inner, inputs = shape(tensors, "img_in.weight")
    head = shape(tensors, "transformer_blocks.0.attn.norm_q.weight")[0]
    return {
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "in_channels": inputs,
        "joint_attention_dim": shape(tensors, "txt_in.weight")[1],
        "num_layers": count(tensors, r"transformer_blocks\.(\d+)\."),
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],  # 16, 56, 56 of the published 128
    }


def _vae_fits(config: Mapping[str, Any], transformer: Mapping[str, Any]) -> bool:
    """In the number of latents, and in whether pictures have alpha."""
    colours = COLOURS + bool(transformer.get("use_layer3d_rope"))
    return (4 * config["z_dim"], config.get("input_channels", COLOURS)) == (transformer["in_channels"], colours)


MFLUX = (
    (r"\.attn\.attn_to_out\.0\.", ".attn.to_out.0."),
    (r"\.(img|txt)_mod_linear\.", r".\1_mod.1."),
    (r"\.(img|txt)_ff\.mlp_in\.", r".\1_mlp.net.0.proj."),
    (r"\.(img|txt)_ff\.mlp_out\.", r".\1_mlp.net.2."),
)
SINGLE_FILES = (
    SingleFile(
        "transformer",
        "Qwen-Image's transformer",
        has("transformer_blocks.0.txt_mod.1.weight", "txt_norm.weight", "img_in.weight", without=(NETWORK_SIGN,)),
        config=_config,
        prefixes=DIFFUSION_PREFIXES,
        manifest=nearest_manifest,
        of_manifest={"qwen-image-edit-2511": {"zero_cond_t": True}},
    ),
    *qwen2_5_vl_files(
        "text_encoder", lambda config, transformer: config["hidden_size"] == transformer["joint_attention_dim"]
    ),
    *wan_files("vae", _vae_fits),
    SingleFile(
        "transformer",
        "Qwen-Image's transformer, saved by mflux",
        has("transformer_blocks.0.txt_mod_linear.weight", "txt_norm.weight"),
        renamed(*MFLUX),
        manifest=nearest_manifest,
        of_manifest={"qwen-image-edit-2511": {"zero_cond_t": True}},
    ),
    qwen2_5_tower_file("text_encoder"),
    SingleFile(NETWORK, "Qwen-Image's control network", has(NETWORK_SIGN, "txt_norm.weight")),
    SingleFile(
        NETWORK,
        "a Fun control network of Qwen-Image, which this library does not run",
        has("control_img_in.weight", "control_blocks.0.img_mod.1.weight"),
    ),
    mflux_qwen2_5_vl_file("text_encoder"),
    mflux_wan_file("vae"),
)
