"""Z-Image's layouts by name: ComfyUI's single file, whose attention is fused. The same table serves LoRAs in its names.

Modules carry diffusers' names, so its layout needs no table, and the two share no name that would mean another module.
"""

import re
from collections.abc import Iterable, Mapping

from ...autoencoders.layouts import kl_files, mflux_kl_file
from ...loading.names import RowRange
from ...loading.single_file import DIFFUSION_PREFIXES, NETWORK, SingleFile, Tensors, count, has, renamed, shape
from ...text.layouts import mflux_qwen3_file, qwen3_files

PREFIX = "model.diffusion_model."  # in files that hold several models
# ComfyUI's module -> ours: the ends of the model, and what stands in a block's attention.
ENDS = {
    "x_embedder": "all_x_embedder.2-1",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
}
ATTENTION = {"qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",), "q_norm": ("norm_q",), "k_norm": ("norm_k",)}
UNUSED = "norm_final.weight"  # the last norm has no weight
IN_ATTENTION = re.compile(r"(.*\.attention)\.(\w+)$")


def from_comfyui(name: str) -> Iterable[RowRange]:
    """A name of either layout; one outside the table stays as it is."""
    name = name.removeprefix(PREFIX)
    if name == UNUSED:
        return
    module, _, kind = name.rpartition(".")
    for target in comfyui_module(module) or [RowRange(module)]:
        yield RowRange(f"{target.name}.{kind}" if module else kind, target.start, target.share, target.of)


def comfyui_module(module: str) -> list[RowRange]:
    """ComfyUI's name of a module -> ours, as runs of its rows; empty if it is not one."""
    if module in ENDS:
        return [RowRange(ENDS[module])]
    found = IN_ATTENTION.match(module)
    parts = ATTENTION.get(found[2], ()) if found else ()
    return [RowRange(f"{found[1]}.{part}", start, 1, len(parts)) for start, part in enumerate(parts)] if found else []


def lora_names(component: str, modules: Iterable[str]) -> Mapping[str, list[RowRange]]:
    """What LoRAs call modules in other words than ours."""
    if component != "transformer":
        return {}
    blocks = {found[1] for module in modules if (found := re.match(r"(.*\.attention)\.to_q$", module))}
    theirs = [*ENDS, *(f"{block}.{part}" for block in sorted(blocks) for part in ATTENTION)]
    return {name: comfyui_module(name) for name in theirs}


def nearest_manifest(name: str, tensors: Tensors) -> str:
    """Turbo's tensors are the base model's: only the file's name tells."""
    return "z-image-turbo" if "turbo" in name else "z-image"


def _config(tensors: Tensors) -> dict[str, object]:
    dim = shape(tensors, "cap_embedder.1.weight")[0]
    heads = dim // shape(tensors, "noise_refiner.0.attention.k_norm.weight")[0]
    return {
        "dim": dim,
        "n_heads": heads,
        "n_kv_heads": heads,
        "cap_feat_dim": shape(tensors, "cap_embedder.1.weight")[1],
        "n_layers": count(tensors, r"layers\.(\d+)\."),
        "n_refiner_layers": count(tensors, r"noise_refiner\.(\d+)\."),
    }


MFLUX = (
    (r"^t_embedder\.linear1\.", "t_embedder.mlp.0."),
    (r"^t_embedder\.linear2\.", "t_embedder.mlp.2."),
    (r"^(all_final_layer\.[\d-]+\.adaLN_modulation)\.0\.", r"\1.1."),
)
SINGLE_FILES = (
    SingleFile(
        "transformer",
        "Z-Image's transformer",
        has("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight"),
        from_comfyui,
        _config,
        DIFFUSION_PREFIXES,
        nearest_manifest,
    ),
    *qwen3_files("text_encoder", lambda config, transformer: config["hidden_size"] == transformer["cap_feat_dim"]),
    *kl_files("vae", lambda config, transformer: config["latent_channels"] == transformer["in_channels"]),
    SingleFile(
        "transformer",
        "Z-Image's transformer, saved by mflux",
        has("t_embedder.linear1.weight", "noise_refiner.0.attention.norm_k.weight"),
        renamed(*MFLUX),
        manifest=nearest_manifest,
    ),
    SingleFile(
        NETWORK,
        "a Fun control network of Z-Image, which this library does not run",
        has("control_all_x_embedder.2-1.weight"),
    ),
    mflux_qwen3_file("text_encoder"),
    mflux_kl_file("vae"),
)
