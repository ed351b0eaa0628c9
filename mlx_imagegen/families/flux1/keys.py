"""FLUX.1's layouts by name: the original single file, and what transformers re-saves.

Modules carry diffusers' names, so its layout needs no table. The same tables serve LoRAs in the original names.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...autoencoders.layouts import kl_files, mflux_kl_file, original_kl_config
from ...loading.name_table import NameTable, Parts
from ...loading.names import RowRange
from ...loading.single_file import (
    DIFFUSION_PREFIXES,
    IP_ADAPTER,
    NETWORK,
    REDUX,
    SingleFile,
    Tensors,
    count,
    has,
    renamed,
    shape,
    substitute,
)
from ...text.layouts import Fits, clip_l_files, mflux_t5_file, t5_files
from ..flux_names import COMMON, DOUBLE, SINGLE, SWAPPED_HALVES
from .spec import by_name

ORIGINAL: dict[str, Parts] = COMMON | {
    "time_in.in_layer": (("time_text_embed.timestep_embedder.linear_1", 1),),
    "time_in.out_layer": (("time_text_embed.timestep_embedder.linear_2", 1),),
    "vector_in.in_layer": (("time_text_embed.text_embedder.linear_1", 1),),
    "vector_in.out_layer": (("time_text_embed.text_embedder.linear_2", 1),),
    "guidance_in.in_layer": (("time_text_embed.guidance_embedder.linear_1", 1),),
    "guidance_in.out_layer": (("time_text_embed.guidance_embedder.linear_2", 1),),
    "double_blocks.{i}.img_mlp.0": ((DOUBLE + "ff.net.0.proj", 1),),
    "double_blocks.{i}.img_mlp.2": ((DOUBLE + "ff.net.2", 1),),
    "double_blocks.{i}.txt_mlp.0": ((DOUBLE + "ff_context.net.0.proj", 1),),
    "double_blocks.{i}.txt_mlp.2": ((DOUBLE + "ff_context.net.2", 1),),
    "double_blocks.{i}.img_mod.lin": ((DOUBLE + "norm1.linear", 1),),
    "double_blocks.{i}.txt_mod.lin": ((DOUBLE + "norm1_context.linear", 1),),
    "single_blocks.{i}.linear1": (*((SINGLE + f"attn.to_{part}", 1) for part in "qkv"), (SINGLE + "proj_mlp", 4)),
    "single_blocks.{i}.linear2": ((SINGLE + "proj_out", 1),),
    "single_blocks.{i}.modulation.lin": ((SINGLE + "norm.linear", 1),),
}

# XLabs' LoRAs sit in attention processors; its qkv of a single block leaves linear1's MLP rows alone.
XLABS: dict[str, Parts] = {
    "double_blocks.{i}.processor.qkv_lora1": ORIGINAL["double_blocks.{i}.img_attn.qkv"],
    "double_blocks.{i}.processor.qkv_lora2": ORIGINAL["double_blocks.{i}.txt_attn.qkv"],
    "double_blocks.{i}.processor.proj_lora1": ORIGINAL["double_blocks.{i}.img_attn.proj"],
    "double_blocks.{i}.processor.proj_lora2": ORIGINAL["double_blocks.{i}.txt_attn.proj"],
    "single_blocks.{i}.processor.qkv_lora": ORIGINAL["single_blocks.{i}.linear1"][:3],
    "single_blocks.{i}.processor.proj_lora": ORIGINAL["single_blocks.{i}.linear2"],
}

# An IP-Adapter's layers: XLabs' names -> diffusers', which InstantX' are like.
XLABS_ADAPTER = (
    (r"^ip_adapter_proj_model\.", "image_proj."),
    (r"^double_blocks\.", "ip_adapter."),
    (r"\.processor\.ip_adapter_double_stream_([kv])_proj\.", r".to_\1_ip."),
)
PROJECTION, NORM = "image_proj.proj.weight", "image_proj.norm.weight"
INNER, OUTER = "image_proj.proj.0.weight", "image_proj.proj.2.weight"  # InstantX', in PROJECTION's place
FIRST_KEYS = "ip_adapter.0.to_k_ip.weight"

LAYOUT = NameTable(ORIGINAL, (SWAPPED_HALVES,))
original_module, from_original = LAYOUT.targets, LAYOUT.rename


def lora_names(component: str, modules: Iterable[str]) -> Mapping[str, list[RowRange]]:
    """What LoRAs call modules in other words than ours."""
    if component == "text_encoder":
        return {f"text_model.{module}": [RowRange(module)] for module in modules}
    if component != "transformer":
        return {}
    return LAYOUT.names(modules) | NameTable(XLABS).names(modules)


def from_clip(name: str) -> Iterable[RowRange]:
    """CLIP, as published (`text_model.` before every name) or as newer transformers saves it (without)."""
    if not name.endswith("position_ids"):  # older files store a constant counter
        yield RowRange(name.removeprefix("text_model."))


def from_t5(name: str) -> Iterable[RowRange]:
    """T5, with the table as `shared.weight`, as `encoder.embed_tokens.weight`, or (tied, equal) both."""
    yield RowRange("shared.weight" if name == "encoder.embed_tokens.weight" else name)


def nearest_manifest(name: str, tensors: Tensors) -> str:
    """Where several models have these tensors, the file's name tells."""
    width, latents = shape(tensors, "img_in.weight")[1], shape(tensors, "final_layer.linear.weight")[0]
    if width > latents:  # further channels: a control picture's are as many, a hole's are more
        return by_name("flux-depth-dev", name) if width == 2 * latents else "flux-fill-dev"
    if "guidance_in.in_layer.weight" not in tensors:
        return "flux-schnell"
    return by_name("flux-dev", name)


def mflux_manifest(name: str, tensors: Tensors) -> str:
    """Packed weights do not show how many channels they take: the name tells FLUX.1's tools."""
    if not any(tensor.startswith("time_text_embed.guidance_embedder.") for tensor in tensors):
        return "flux-schnell"
    return next(
        (f"flux-{tool}-dev" for tool in ("kontext", "krea", "fill", "depth", "canny") if tool in name), "flux-dev"
    )


def transformer_config(tensors: Tensors) -> dict[str, Any]:
    inner, channels = shape(tensors, "img_in.weight")
    head = shape(tensors, "double_blocks.0.img_attn.norm.query_norm.scale")[0]
    return {
        "attention_head_dim": head,
        "guidance_embeds": "guidance_in.in_layer.weight" in tensors,
        "in_channels": channels,
        "out_channels": shape(tensors, "final_layer.linear.weight")[0],
        "joint_attention_dim": shape(tensors, "txt_in.weight")[1],
        "num_attention_heads": inner // head,
        "num_layers": count(tensors, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(tensors, r"single_blocks\.(\d+)\."),
        "pooled_projection_dim": shape(tensors, "vector_in.in_layer.weight")[1],
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],  # 16, 56, 56 of the published 128
    }


def autoencoder_config(tensors: Tensors) -> dict[str, Any]:
    """Of ae.safetensors. What no shape tells is what was published with the only such file."""
    published = {"norm_num_groups": 32, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    return original_kl_config(tensors) | published | {"use_quant_conv": False, "use_post_quant_conv": False}


def _shaped(*layers: str, norm: str = "") -> Callable[[Tensors], bool]:
    """Whether these linear layers' weights, and a norm's, are there with their axes."""
    axes = dict.fromkeys(layers, 2) | ({norm: 1} if norm else {})
    return lambda tensors: all(
        name in tensors and len(shape(tensors, name)) == count and all(shape(tensors, name))
        for name, count in axes.items()
    )


def adapter_sizes(tensors: Tensors) -> dict[str, int]:
    """An IP-Adapter's: the picture's vector that it reads, the tokens that it makes of it, the blocks that see them."""
    shapes = {substitute(name, XLABS_ADAPTER): tensor.full_shape for name, tensor in tensors.items()}
    first, last = (INNER, OUTER) if INNER in shapes else (PROJECTION, PROJECTION)
    (token_width,) = shapes[NORM]
    blocks = sum(name.endswith(".to_k_ip.weight") for name in shapes)
    return {
        "picture_width": shapes[first][1], "tokens": shapes[last][0] // token_width, "token_width": token_width,
        "blocks": blocks, "block_width": shapes[FIRST_KEYS][0],
    }  # fmt: skip


def redux_sizes(tensors: Tensors) -> dict[str, int]:
    return {
        "picture_width": shape(tensors, "redux_up.weight")[1], "token_width": shape(tensors, "redux_down.weight")[0]
    }  # fmt: skip


def _fits(of_encoder: str, of_transformer: str) -> Fits:
    return lambda config, transformer: config.get(of_encoder) == transformer.get(of_transformer)


def _latent_width(transformer: Mapping[str, Any]) -> int:
    """Of a token, without the further channels of FLUX.1's tools."""
    return int(transformer.get("out_channels") or transformer["in_channels"])


MFLUX = (
    (r"\.(ff|ff_context)\.linear1\.", r".\1.net.0.proj."),
    (r"\.(ff|ff_context)\.linear2\.", r".\1.net.2."),
)
SINGLE_FILES = (
    SingleFile(
        "transformer",
        "FLUX.1's transformer",
        has("double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight", "img_in.weight"),
        from_original,
        transformer_config,
        DIFFUSION_PREFIXES,
        nearest_manifest,
    ),
    *clip_l_files("text_encoder", _fits("hidden_size", "pooled_projection_dim")),
    *t5_files("text_encoder_2", _fits("d_model", "joint_attention_dim")),
    *kl_files("vae", lambda config, transformer: 4 * config["latent_channels"] == _latent_width(transformer)),
    SingleFile(
        "transformer",
        "FLUX.1's transformer, saved by mflux",
        has("transformer_blocks.0.ff.linear1.weight", "single_transformer_blocks.0.proj_mlp.weight"),
        renamed(*MFLUX),
        manifest=mflux_manifest,
    ),
    SingleFile(NETWORK, "FLUX.1's control network", has("controlnet_x_embedder.weight", "context_embedder.weight")),
    SingleFile(
        IP_ADAPTER,
        "XLabs' IP-Adapter for FLUX.1",
        _shaped(
            "ip_adapter_proj_model.proj.weight",
            "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight",
            norm="ip_adapter_proj_model.norm.weight",
        ),
        config=adapter_sizes,
    ),
    SingleFile(
        IP_ADAPTER,
        "XLabs' IP-Adapter for FLUX.1, in diffusers' names",
        _shaped(PROJECTION, FIRST_KEYS, norm=NORM),
        config=adapter_sizes,
    ),
    SingleFile(
        IP_ADAPTER,
        "InstantX' IP-Adapter for FLUX.1",
        _shaped(INNER, OUTER, FIRST_KEYS, norm=NORM),
        config=adapter_sizes,
    ),
    SingleFile(REDUX, "FLUX.1-Redux' embedder", _shaped("redux_up.weight", "redux_down.weight"), config=redux_sizes),
    mflux_t5_file("text_encoder_2"),
    mflux_kl_file("vae"),
)
