"""Qwen-Image-2.1 as single files: ComfyUI's and GGUF's, whose transformer has the MLP's two inputs in one weight. LoRAs
and control networks in those names are read by the same table."""

import re
from collections.abc import Iterable, Mapping

from ...autoencoders.layouts import mflux_wan_residual_file, wan_residual_files
from ...loading.names import RowRange
from ...loading.single_file import DIFFUSION_PREFIXES, NETWORK, SingleFile, Tensors, count, has, renamed, shape
from ...text.layouts import mflux_qwen3_vl_file, qwen3_vl_files
from ...vision.layouts import qwen3_tower_file

FUSED, PARTS = "img_mlp.gate_up", ("img_mlp.gate_layer", "img_mlp.proj")
PREFIX = "model.diffusion_model."


def from_single_file(name: str) -> Iterable[RowRange]:
    """ComfyUI's file: the MLP's two inputs in one weight, the gate's rows first; perhaps a prefix before all names."""
    name = name.removeprefix(PREFIX)
    if FUSED not in name:
        return [RowRange(name)]
    return [RowRange(name.replace(FUSED, part), index, 1, len(PARTS)) for index, part in enumerate(PARTS)]


def lora_names(component: str, modules: Iterable[str]) -> Mapping[str, list[RowRange]]:
    """What LoRAs trained on the single file call modules in other words than ours."""
    if component != "transformer":
        return {}
    blocks = sorted({number for module in modules for number in re.findall(r"^transformer_blocks\.(\d+)\.", module)})
    return {
        name: [RowRange(target.name, target.start, target.share, target.of) for target in from_single_file(name)]
        for name in (f"transformer_blocks.{number}.{FUSED}" for number in blocks)
    }


def nearest_manifest(name: str, tensors: Tensors) -> str:
    """Turbo's tensors are the other model's in every name and shape: only the file's name tells."""
    return "qwen-image-2.1-turbo" if "turbo" in name else "qwen-image-2.1"


def _config(tensors: Tensors) -> dict[str, object]:
    inner, inputs = shape(tensors, "img_in.weight")
    head = shape(tensors, "transformer_blocks.0.attn.norm_q.weight")[0]
    return {
        "attention_head_dim": head,
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],  # 16, 56, 56 of the published 128
        "context_in_dim": shape(tensors, "txt_in.text_norm.weight")[0],
        "in_channels": inputs,
        "mlp_ratio": shape(tensors, "transformer_blocks.0.img_mlp.out.weight")[1] // inner,
        "num_attention_heads": inner // head,
        "num_layers": count(tensors, r"transformer_blocks\.(\d+)\."),
        "out_channels": shape(tensors, "proj_out.weight")[0],
    }


is_fun_network = has("control_img_in.weight", "control_blocks.0.img_mlp.out.weight")
SINGLE_FILES = (
    SingleFile(
        "transformer",
        "Qwen-Image-2.1's transformer",
        has("txt_in.text_norm.weight", "modulation.1.weight"),
        from_single_file,
        _config,
        DIFFUSION_PREFIXES,
        nearest_manifest,
    ),
    *qwen3_vl_files(
        "text_encoder",
        lambda config, transformer: config["text_config"]["hidden_size"] == transformer["context_in_dim"],
    ),
    *wan_residual_files("vae", lambda config, transformer: config["z_dim"] == transformer["in_channels"]),
    SingleFile(
        "transformer",
        "Qwen-Image-2.1's transformer, saved by mflux",
        has("txt_in.text_norm.weight", "modulation.layers.1.weight"),
        renamed((r"^modulation\.layers\.", "modulation.")),
        manifest=nearest_manifest,
    ),
    qwen3_tower_file("text_encoder"),
    SingleFile(NETWORK, "Qwen-Image-2.1's Fun control network", is_fun_network),
    mflux_qwen3_vl_file("text_encoder"),
    mflux_wan_residual_file("vae"),
)
