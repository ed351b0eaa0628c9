"""FLUX.2's layouts by name: the original single files (ComfyUI's too), and the names LoRAs use.

Modules carry diffusers' names, so its layout needs no table.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ...autoencoders.layouts import cell_kl_files, mflux_cell_kl_file
from ...loading.name_table import NameTable, Parts
from ...loading.names import RowRange
from ...loading.single_file import DIFFUSION_PREFIXES, SingleFile, Tensors, count, has, renamed, shape
from ...text.layouts import Fits, mflux_qwen3_file, mistral_files, qwen3_files
from ..flux_names import COMMON, DOUBLE, SINGLE, SWAPPED_HALVES
from .spec import LARGER_HEADS

ORIGINAL: dict[str, Parts] = COMMON | {
    "time_in.in_layer": (("time_guidance_embed.timestep_embedder.linear_1", 1),),
    "time_in.out_layer": (("time_guidance_embed.timestep_embedder.linear_2", 1),),
    "guidance_in.in_layer": (("time_guidance_embed.guidance_embedder.linear_1", 1),),
    "guidance_in.out_layer": (("time_guidance_embed.guidance_embedder.linear_2", 1),),
    "double_stream_modulation_img.lin": (("double_stream_modulation_img.linear", 1),),
    "double_stream_modulation_txt.lin": (("double_stream_modulation_txt.linear", 1),),
    "single_stream_modulation.lin": (("single_stream_modulation.linear", 1),),
    "double_blocks.{i}.img_mlp.0": ((DOUBLE + "ff.linear_in", 1),),
    "double_blocks.{i}.img_mlp.2": ((DOUBLE + "ff.linear_out", 1),),
    "double_blocks.{i}.txt_mlp.0": ((DOUBLE + "ff_context.linear_in", 1),),
    "double_blocks.{i}.txt_mlp.2": ((DOUBLE + "ff_context.linear_out", 1),),
    "single_blocks.{i}.linear1": ((SINGLE + "attn.to_qkv_mlp_proj", 1),),
    "single_blocks.{i}.linear2": ((SINGLE + "attn.to_out", 1),),
}
LAYOUT = NameTable(ORIGINAL, (SWAPPED_HALVES,))
# Next to the language model in Mistral's multimodal file.
UNREAD = ("vision_tower.", "multi_modal_projector.", "tekken_model")
STATES, CELL = 3, 4  # language models' states next to each other in the text; latents in a token


def lora_names(component: str, modules: Iterable[str]) -> Mapping[str, list[RowRange]]:
    """What LoRAs call modules in other words than ours: the original's, and a cut one that some exports write."""
    if component != "transformer":
        return {}
    modules = list(modules)
    double = [module for module in modules if module.startswith("transformer_blocks.")]
    return LAYOUT.names(modules) | {module.removeprefix("tran"): [RowRange(module)] for module in double}


def nearest_manifest(name: str, tensors: Tensors) -> str:
    """Nothing in the weights tells the distilled ones from the others, nor those that keep references: only the file's
    name."""
    config = transformer_config(tensors)
    return "flux2-dev" if config["guidance_embeds"] else _klein(name, config["num_attention_heads"])


def mflux_manifest(name: str, tensors: Tensors) -> str:
    inner, head = (shape(tensors, f"{module}.weight")[0] for module in ("x_embedder", IMAGE_NORM))
    return _klein(name, inner // head)


def _klein(name: str, heads: int) -> str:
    large = heads >= LARGER_HEADS
    if large and "kv" in name:
        return "flux2-klein-9b-kv"
    return f"flux2-klein-{'base-' if 'base' in name else ''}{'9b' if large else '4b'}"


def transformer_config(tensors: Tensors) -> dict[str, Any]:
    inner, channels = shape(tensors, "img_in.weight")
    head = shape(tensors, "double_blocks.0.img_attn.norm.key_norm.scale")[0]
    return {
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "in_channels": channels,
        "joint_attention_dim": shape(tensors, "txt_in.weight")[1],
        "num_layers": count(tensors, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(tensors, r"single_blocks\.(\d+)\."),
        "mlp_ratio": shape(tensors, "double_blocks.0.img_mlp.2.weight")[1] / inner,
        "timestep_guidance_channels": shape(tensors, "time_in.in_layer.weight")[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in tensors,
    }


def _fits(guided: bool) -> Fits:
    """dev alone is guided, and its text is Mistral's."""
    return lambda config, transformer: (
        transformer["guidance_embeds"] == guided
        and STATES * config["hidden_size"] == transformer["joint_attention_dim"]
    )


MFLUX = (
    (r"^time_guidance_embed\.linear_", "time_guidance_embed.timestep_embedder.linear_"),
    (r"^(transformer_blocks\.\d+\.attn\.to_out)\.", r"\1.0."),
)
IMAGE_NORM = "transformer_blocks.0.attn.norm_k"
SINGLE_FILES = (
    SingleFile(
        "transformer",
        "FLUX.2's transformer",
        has("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.norm.key_norm.scale"),
        LAYOUT.rename,
        transformer_config,
        DIFFUSION_PREFIXES,
        nearest_manifest,
    ),
    *qwen3_files("text_encoder", _fits(guided=False)),
    *mistral_files("text_encoder", _fits(guided=True)),
    *cell_kl_files("vae", lambda config, transformer: CELL * config["latent_channels"] == transformer["in_channels"]),
    SingleFile(
        "transformer",
        "FLUX.2's transformer, saved by mflux",  # klein alone
        has("time_guidance_embed.linear_1.weight", f"{IMAGE_NORM}.weight"),
        renamed(*MFLUX),
        manifest=mflux_manifest,
    ),
    mflux_qwen3_file("text_encoder"),
    mflux_cell_kl_file("vae"),
)
