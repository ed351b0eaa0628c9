"""FLUX.3's layouts by name: the original single files (ComfyUI's too), and the names LoRAs use.

Modules carry diffusers' names, so its layout needs no table.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ...autoencoders.layouts import cell_kl_files, mflux_cell_kl_file
from ...loading.name_table import NameTable, Parts
from ...loading.names import RowRange
from ...loading.single_file import DIFFUSION_PREFIXES, SingleFile, Tensors, count, has, renamed, shape
from ...text.layouts import mflux_qwen3_file, qwen3_vl_text_files
from .transformer import IMAGE, KINDS, REFERENCES

BLOCKS = {
    "single_blocks.{i}.": "single_transformer_blocks.{i}.",
    "txt_mode_blocks.{i}.": "txt_mode_blocks.{i}.",
    **{f"content_mode_blocks.{kind}.{{i}}.": f"mode_blocks.{kind}.{{i}}." for kind in (IMAGE, REFERENCES)},
}
INSIDE = {
    **{f"{part}_proj": f"attn.to_{part}" for part in "qkv"},
    "attn_out": "attn.to_out.0",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "mlp_in": "ff.linear_in",
    "mlp_out": "ff.linear_out",
}
EMBEDDERS = {"time_in": "timestep_embedder", "ref_time_in": "target_timestep_embedder"}
# Original module -> ours.
NAMES = {
    **{f"{theirs}{part}": f"{ours}{inner}" for theirs, ours in BLOCKS.items() for part, inner in INSIDE.items()},
    **{
        f"{theirs}.{layer}": f"{ours}.linear_{number}"
        for theirs, ours in EMBEDDERS.items()
        for number, layer in enumerate(("in_layer", "out_layer"), 1)
    },
    **{
        f"{name}.{kind}.lin": f"{name}.{kind}.linear"
        for name in ("early_stream_modulations", "single_stream_modulations")
        for kind in KINDS
    },
    **{f"emb_in.{kind}": f"x_embedders.{kind}" for kind in (IMAGE, REFERENCES)},
    "txt_in": "context_embedder",
    "final_layer.image.linear": "proj_out",
    "final_layer.image.adaLN_modulation.1": "norm_out.linear",
}
ORIGINAL: dict[str, Parts] = {theirs: ((ours, 1),) for theirs, ours in NAMES.items()}
# The original orders the last norm's rows (shift, scale), diffusers (scale, shift).
LAYOUT = NameTable(ORIGINAL, ("final_layer.image.adaLN_modulation.1",))
TRAINING = ("repa_projectors.",)  # how the names of tensors begin that only the training needed
STATES, CELL = 8, 4  # the language model's states next to each other in the text; latents in a token
VISION = ("visual.",)  # next to the language model; pictures reach the transformer as latents alone


def lora_names(component: str, modules: Iterable[str]) -> Mapping[str, list[RowRange]]:
    """What LoRAs call modules in the original's words."""
    return LAYOUT.names(modules) if component == "transformer" else {}


def nearest_manifest(name: str, tensors: Tensors) -> str:
    return "flux3-klein" if transformer_config(tensors)["flow_map"] else "flux3-klein-base"


def mflux_manifest(name: str, tensors: Tensors) -> str:
    return "flux3-klein" if f"{EMBEDDERS['ref_time_in']}.linear_1.weight" in tensors else "flux3-klein-base"


def transformer_config(tensors: Tensors) -> dict[str, Any]:
    inner, channels = shape(tensors, "emb_in.image.weight")
    head = shape(tensors, "single_blocks.0.norm.key_norm.scale")[0]
    return {
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "in_channels": channels,
        "cond_in_channels": shape(tensors, "emb_in.image_cond.weight")[1],
        "joint_attention_dim": shape(tensors, "txt_in.weight")[1],
        "num_layers": count(tensors, r"txt_mode_blocks\.(\d+)\."),
        "num_single_layers": count(tensors, r"single_blocks\.(\d+)\."),
        "mlp_ratio": shape(tensors, "single_blocks.0.mlp_out.weight")[1] / inner,
        "timestep_channels": shape(tensors, "time_in.in_layer.weight")[1],
        "flow_map": "ref_time_in.in_layer.weight" in tensors,
    }


SINGLE_FILES = (
    SingleFile(
        "transformer",
        "FLUX.3's transformer",
        has("early_stream_modulations.image.lin.weight", "single_blocks.0.norm.key_norm.scale"),
        LAYOUT.rename,
        transformer_config,
        DIFFUSION_PREFIXES,
        nearest_manifest,
    ),
    *qwen3_vl_text_files(
        "text_encoder", lambda config, transformer: STATES * config["hidden_size"] == transformer["joint_attention_dim"]
    ),
    *cell_kl_files("vae", lambda config, transformer: CELL * config["latent_channels"] == transformer["in_channels"]),
    SingleFile(
        "transformer",
        "FLUX.3's transformer, saved by mflux",
        has("early_stream_modulations.image.linear.weight", "single_transformer_blocks.0.attn.to_out.weight"),
        renamed((r"\.attn\.to_out\.", ".attn.to_out.0.")),
        manifest=mflux_manifest,
    ),
    mflux_qwen3_file("text_encoder"),
    mflux_cell_kl_file("vae"),
)
