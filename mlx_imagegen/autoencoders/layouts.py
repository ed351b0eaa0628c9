"""Autoencoders as single files: the names of their first publishers, in ComfyUI's `vae` folder.

Sizes are read off the shapes; what no shape tells is as published with the family. Must not know: families.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..loading.names import RowRange, slices
from ..loading.single_file import (
    VAE_PREFIXES,
    SingleFile,
    Tensors,
    count,
    has,
    renamed,
    saved_by_mflux,
    shape,
    substitute,
)

Fits = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
ALL = ""  # modules take no codes: a regular expression that matches every one
LEVELS = 4  # of the decoder, which the original counts from the finest and diffusers from the coarsest
LDM = (
    (r"^(en|de)coder\.mid\.block_1\.", r"\1coder.mid_block.resnets.0."),
    (r"^(en|de)coder\.mid\.block_2\.", r"\1coder.mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.down\.(\d)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    *((rf"\.up\.{i}\.block\.", rf".up_blocks.{LEVELS - 1 - i}.resnets.") for i in range(LEVELS)),
    *((rf"\.up\.{i}\.upsample\.", rf".up_blocks.{LEVELS - 1 - i}.upsamplers.0.") for i in range(LEVELS)),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"^(?:en|de)coder\.((?:post_)?quant_conv)\.", r"\1."),  # FLUX.2's
)
from_ldm = renamed(*LDM)
WAN_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
WAN = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"coder\.conv1\.", "coder.conv_in."),
    (r"coder\.head\.0\.", "coder.norm_out."),
    (r"coder\.head\.2\.", "coder.conv_out."),
    (r"coder\.middle\.0\.", "coder.mid_block.resnets.0."),
    (r"coder\.middle\.1\.", "coder.mid_block.attentions.0."),
    (r"coder\.middle\.2\.", "coder.mid_block.resnets.1."),
    (r"^encoder\.downsamples\.", "encoder.down_blocks."),
    *((rf"\.{module.replace('.', chr(92) + '.')}\.", f".{ours}.") for module, ours in WAN_RESIDUAL.items()),
    (r"\.shortcut\.", ".conv_shortcut."),
)
# Wan 2.2's, whose levels are modules of their own; a level's resampler is after its blocks, however many they are.
WAN_RESIDUAL_LEVELS = tuple(
    (rf"^{half}coder\.{kind}samples\.(\d+)\.{kind}samples\.{place}\.", rf"{half}coder.{kind}_blocks.\1.{ours}.")
    for half, kind in (("en", "down"), ("de", "up"))
    for place, ours in ((r"\d+\.(resample|time_conv)", rf"{kind}sampler.\2"), (r"(\d+)", r"resnets.\2"))
)
MFLUX_WAN = (
    (r"\.conv3d\.", "."),
    (r"\.up_block(\d)\.", r".up_blocks.\1."),
    (r"\.skip_conv\.", ".conv_shortcut."),
    (r"\.resample_conv\.", ".resample.1."),
    (r"(\.norm\d?|\.norm_out)\.weight$", r"\1.gamma"),
)
MFLUX_LEVEL = 3  # modules of a level of the encoder: two residual blocks and a downsampler
WAN_LEVEL = 4  # modules of a level of the decoder: three residual blocks, and an upsampler but in the last


def _kl_config(level: str, block: str) -> Callable[[Tensors], dict[str, Any]]:
    """By what the layout calls a level of the encoder, and a block of one."""

    def config(tensors: Tensors) -> dict[str, Any]:
        levels = count(tensors, rf"encoder\.{level}\.(\d+)\.")
        return {
            "in_channels": shape(tensors, "encoder.conv_in.weight")[1],
            "out_channels": shape(tensors, "decoder.conv_out.weight")[0],
            "latent_channels": shape(tensors, "decoder.conv_in.weight")[1],
            "block_out_channels": [
                shape(tensors, f"encoder.{level}.{i}.{block}.0.conv1.weight")[0] for i in range(levels)
            ],
            "layers_per_block": count(tensors, rf"encoder\.{level}\.0\.{block}\.(\d+)\."),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }

    return config


original_kl_config, diffusers_kl_config = _kl_config("down", "block"), _kl_config("down_blocks", "resnets")


def kl_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """AutoencoderKL in its original names, and in diffusers'."""
    title, video = "AutoencoderKL", ("encoder.downsamples.0.residual.0.gamma",)
    sign = has("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight", without=video)
    ours = has("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight")
    return (
        SingleFile(
            component, f"{title} in its original names", sign, from_ldm, original_kl_config, VAE_PREFIXES, fits=fits
        ),
        SingleFile(component, title, ours, config=diffusers_kl_config, prefixes=VAE_PREFIXES, fits=fits),
    )


def cell_kl_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """FLUX.2's autoencoder, whose decoder may be thinner than its encoder."""

    def with_decoder(layout: SingleFile, convolution: str) -> SingleFile:
        def config(tensors: Tensors) -> dict[str, Any]:
            read = layout.config(tensors)
            levels = range(len(read["block_out_channels"]))
            widths = [shape(tensors, convolution.format(up=i, down=levels[-1] - i))[0] for i in levels]
            return read | {"decoder_block_out_channels": None if widths == read["block_out_channels"] else widths}

        matches = has("bn.running_mean", "bn.running_var")
        return replace(layout, config=config, matches=lambda tensors: layout.matches(tensors) and matches(tensors))

    original, diffusers = kl_files(component, fits)
    return (
        with_decoder(original, "decoder.up.{up}.block.0.conv1.weight"),
        with_decoder(diffusers, "decoder.up_blocks.{down}.resnets.0.conv1.weight"),
    )


def mflux_kl_file(component: str) -> SingleFile:
    """AutoencoderKL as mflux saves it, with MLX's order of a convolution's axes."""
    rename = renamed((r"\.(conv_in|conv_out)\.conv(2d)?\.", r".\1."), (r"\.conv_norm_out\.norm\.", ".conv_norm_out."))
    return saved_by_mflux(component, "AutoencoderKL", has("encoder.conv_in.conv2d.weight"), rename, ALL)


def mflux_cell_kl_file(component: str) -> SingleFile:
    """FLUX.2's autoencoder as mflux saves it: diffusers' names but one, with MLX's order of a convolution's axes."""
    matches = has("bn.running_mean", "decoder.mid_block.attentions.0.to_out.weight")
    rename = renamed((r"\.to_out\.(\w+)$", r".to_out.0.\1"))
    return saved_by_mflux(component, "FLUX.2's AutoencoderKL", matches, rename, ALL)


def from_wan(name: str) -> Iterator[RowRange]:
    """Wan 2.1's autoencoder, which is Qwen-Image's: diffusers numbers the decoder's modules level by level."""
    name = substitute(name, WAN)
    head, _, rest = name.partition("decoder.upsamples.")
    if rest and not head:
        number, _, inner = rest.partition(".")
        level, place = divmod(int(number), WAN_LEVEL)
        module = f"resnets.{place}" if place < WAN_LEVEL - 1 else "upsamplers.0"
        name = f"decoder.up_blocks.{level}.{module}.{inner}"
    yield RowRange(name)


def wan_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """Wan 2.1's autoencoder in its original names, and in those of diffusers' AutoencoderKLQwenImage."""

    def config(first: str, latents: str) -> Callable[[Tensors], dict[str, Any]]:
        """By what the layout calls the encoder's first layer, and the decoder's layer before all others."""

        def read(tensors: Tensors) -> dict[str, Any]:
            width, inputs = shape(tensors, f"{first}.weight")[:2]
            return {"base_dim": width, "z_dim": shape(tensors, f"{latents}.weight")[0], "input_channels": inputs}

        return read

    title = "Wan 2.1's autoencoder"
    sign = has("encoder.downsamples.0.residual.0.gamma", "decoder.upsamples.0.residual.0.gamma", "conv2.weight")
    ours = has("encoder.down_blocks.0.norm1.gamma", "decoder.up_blocks.0.resnets.0.norm1.gamma")
    original, diffusers = config("encoder.conv1", "conv2"), config("encoder.conv_in", "post_quant_conv")
    return (
        SingleFile(component, f"{title} in its original names", sign, from_wan, original, VAE_PREFIXES, fits=fits),
        SingleFile(component, title, ours, config=diffusers, prefixes=VAE_PREFIXES, fits=fits),
    )


def from_wan_residual(name: str) -> Iterator[RowRange]:
    """Wan 2.2's autoencoder, whose architecture is Qwen-Image-2.1's."""
    yield RowRange(substitute(name, (*WAN_RESIDUAL_LEVELS, *WAN)))


def wan_residual_files(component: str, fits: Fits) -> tuple[SingleFile, ...]:
    """Its original names, and those of diffusers' AutoencoderKLQwenImage21."""

    def config(tensors: Tensors) -> dict[str, Any]:
        ours = slices(tensors, from_wan_residual)
        (width, inputs), (outputs, decoder_width) = (
            shape(ours, f"{conv}.weight")[:2] for conv in ("encoder.conv_in", "decoder.conv_out")
        )
        z_dim = shape(ours, "post_quant_conv.weight")[0]
        widths = {"base_dim": width, "decoder_base_dim": decoder_width, "z_dim": z_dim}
        return widths | {"in_channels": inputs, "out_channels": outputs}

    title = "Qwen-Image-2.1's autoencoder"
    sign = has("encoder.downsamples.0.downsamples.0.residual.0.gamma", "conv2.weight")
    ours = has("encoder.down_blocks.0.resnets.0.norm1.gamma", "post_quant_conv.weight")
    return tuple(
        SingleFile(component, title, matches, from_wan_residual, config, VAE_PREFIXES, fits=fits)
        for matches in (sign, ours)
    )


def from_mflux_wan(name: str) -> Iterator[RowRange]:
    """mflux's names: the encoder's modules by level, where diffusers numbers them through."""
    name = substitute(name, MFLUX_WAN)
    if found := re.match(r"encoder\.down_blocks\.(\d+)\.(resnets|downsamplers)\.(\d+)\.", name):
        place = int(found[3]) if found[2] == "resnets" else MFLUX_LEVEL - 1
        name = f"encoder.down_blocks.{MFLUX_LEVEL * int(found[1]) + place}.{name[found.end() :]}"
    yield RowRange(name)


def mflux_wan_file(component: str) -> SingleFile:
    matches = has("decoder.conv_in.conv3d.weight", "decoder.up_block0.resnets.0.norm1.weight")
    return saved_by_mflux(component, "Wan 2.1's autoencoder", matches, from_mflux_wan, ALL)


def mflux_wan_residual_file(component: str) -> SingleFile:
    """Qwen-Image-2.1's as mflux saves it: diffusers' names, with MLX's order of a convolution's axes."""

    def matches(tensors: Tensors) -> bool:
        names = has("encoder.down_blocks.0.resnets.0.norm1.gamma", "encoder.conv_out.weight", "post_quant_conv.weight")
        return names(tensors) and shape(tensors, "encoder.conv_out.weight")[1:3] == (3, 3)

    return saved_by_mflux(component, "Qwen-Image-2.1's autoencoder", matches, from_wan_residual)
