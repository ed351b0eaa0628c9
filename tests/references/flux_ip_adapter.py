"""Adds an IP-Adapter in XLabs' layout and one in InstantX' to a drawn FLUX.1, with what torch makes of them.

    python tests/references/flux_ip_adapter.py FOLDER BASE [--seed N]

BASE is a draw of flux.py. FOLDER gets adapter/ and instantx/ (model.safetensors and image_encoder/ each), options.json,
pictures and reference.safetensors: the tower's vector of one picture, the adapter's tokens, and pictures of the whole
pipeline. diffusers has XLabs' adapter alone: InstantX' is here as its authors' attention processor computes it. Needs
torch, diffusers and transformers.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import run_on_base
from diffusers import FluxPipeline
from diffusers.models.embeddings import apply_rotary_emb
from flux_text import save_drawn, spread
from flux_tools import draw_pictures
from inpaint import open_flux
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from weight_descriptions import redraw

SCALES = 0.9, 0.4  # of two pictures
TOKENS = 4  # of a picture, as in the first of XLabs' files
INSTANTX_TOKENS = 5
HALF = (0.5, 0.5, 0.5)


def draw(folder: Path, base: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = json.loads((base / "prompts.json").read_text())
    options |= {"seed": seed, "guidance": 2.5, "width": 16 * dice.choice([3, 4]), "height": 32, "scales": SCALES}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    pipeline = open_flux(base)
    draw_adapter(folder / "adapter", pipeline.transformer, dice, seed)
    draw_pictures(folder, options, dice)
    draw_instantx(folder / "instantx", pipeline.transformer, dice, seed)
    parts = dict(pipeline.components)
    with torch.no_grad():
        found = reference(folder, parts, options) | instantx_reference(folder, parts, options)
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "reference.safetensors")


def draw_adapter(folder: Path, model: Any, dice: random.Random, seed: int) -> None:
    heads, patch = dice.choice([1, 2, 3]), dice.choice([6, 7])
    side = patch * dice.choice([2, 3]) + dice.choice([0, 2])  # what is left over is not seen
    config = CLIPVisionConfig(
        hidden_size=heads * dice.choice([8, 12]), intermediate_size=40, num_hidden_layers=dice.choice([1, 2]),
        num_attention_heads=heads, image_size=side, patch_size=patch, hidden_act=dice.choice(["quick_gelu", "gelu"]),
        layer_norm_eps=dice.choice([1e-5, 1e-3]), projection_dim=dice.choice([16, 24]),
    )  # fmt: skip
    save_drawn(CLIPVisionModelWithProjection(config), folder / "image_encoder", seed)
    dims, inner = model.config.joint_attention_dim, model.inner_dim
    tensors = {
        "ip_adapter_proj_model.proj.weight": torch.zeros(TOKENS * dims, config.projection_dim),
        "ip_adapter_proj_model.proj.bias": torch.zeros(TOKENS * dims),
        "ip_adapter_proj_model.norm.weight": torch.zeros(dims),
        "ip_adapter_proj_model.norm.bias": torch.zeros(dims),
    }
    for block in range(model.config.num_layers):
        for part in "kv":
            name = f"double_blocks.{block}.processor.ip_adapter_double_stream_{part}_proj"
            tensors |= {f"{name}.weight": torch.zeros(inner, dims), f"{name}.bias": torch.zeros(inner)}
    path = folder / "model.safetensors"
    save_file(tensors, path)
    redraw(path, shown, seed)


def shown(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """So that the pictures show in the picture: the drawn transformers' streams are in the millions."""
    if name.endswith("norm.weight"):
        return 1.0, 0.2
    mean, size = spread(name, shape)
    return mean, size * (1e6 if "v_proj" in name else 1e3 if "to_v_ip" in name else 1)


def draw_instantx(folder: Path, model: Any, dice: random.Random, seed: int) -> None:
    """With the whole SigLIP's config and names, as published."""
    heads, patch = dice.choice([1, 2, 3]), dice.choice([6, 7])
    side = patch * dice.choice([2, 3]) + dice.choice([0, 2])
    config = SiglipVisionConfig(
        hidden_size=heads * dice.choice([8, 12]), intermediate_size=40, num_hidden_layers=dice.choice([1, 2]),
        num_attention_heads=heads, image_size=side, patch_size=patch,
    )  # fmt: skip
    save_drawn(SiglipVisionModel(config), folder / "image_encoder", seed)
    names = "hidden_size image_size intermediate_size model_type num_attention_heads num_hidden_layers patch_size"
    whole = {"model_type": "siglip", "vision_config": {name: getattr(config, name) for name in names.split()}}
    (folder / "image_encoder/config.json").write_text(json.dumps(whole | {"text_config": {}}, indent=1))
    dims, inner, width = model.config.joint_attention_dim, model.inner_dim, config.hidden_size
    tensors = {
        "image_proj.proj.0.weight": torch.zeros(2 * width, width),
        "image_proj.proj.0.bias": torch.zeros(2 * width),
        "image_proj.proj.2.weight": torch.zeros(INSTANTX_TOKENS * dims, 2 * width),
        "image_proj.proj.2.bias": torch.zeros(INSTANTX_TOKENS * dims),
        "image_proj.norm.weight": torch.zeros(dims),
        "image_proj.norm.bias": torch.zeros(dims),
    }
    for block in range(model.config.num_layers + model.config.num_single_layers):
        tensors |= {f"ip_adapter.{block}.to_{part}_ip.weight": torch.zeros(inner, dims) for part in "kv"}
    save_file(tensors, folder / "model.safetensors")
    redraw(folder / "model.safetensors", shown, seed)


class InstantXProcessor:
    """diffusers' attention, and next to it the image tokens', whose keys are normed: from InstantX' own processor."""

    def __init__(self, weights: dict[str, torch.Tensor], block: int, pictures: list[tuple[float, torch.Tensor]]):
        self.k, self.v = (weights[f"ip_adapter.{block}.to_{part}_ip.weight"] for part in "kv")
        self.pictures = pictures  # scales and tokens

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None,
        image_rotary_emb: Any = None,
    ) -> Any:  # fmt: skip
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        query = attn.norm_q(split(attn.to_q(hidden_states)))
        key, value = attn.norm_k(split(attn.to_k(hidden_states))), split(attn.to_v(hidden_states))
        alone = query
        count = 0
        if encoder_hidden_states is not None:
            count = encoder_hidden_states.shape[1]
            query = torch.cat([attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states))), query], dim=1)
            key = torch.cat([attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states))), key], dim=1)
            value = torch.cat([split(attn.add_v_proj(encoder_hidden_states)), value], dim=1)
        query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        out = attended(query, key, value)
        text, image = out[:, :count], out[:, count:]
        for scale, tokens in self.pictures:
            k, v = split(tokens @ self.k.T), split(tokens @ self.v.T)
            k = k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + 1e-5)
            image = image + scale * attended(alone, k, v)
        if encoder_hidden_states is None:
            return image
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[B, L, H, D] -> [B, L, H*D]"""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def instantx_reference(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    place = folder / "instantx"
    weights = load_file(place / "model.safetensors")
    part = json.loads((place / "image_encoder/config.json").read_text())["vision_config"]
    tower = SiglipVisionModel(SiglipVisionConfig(**part))
    loaded = load_file(place / "image_encoder/model.safetensors")
    tower.load_state_dict(loaded if "head.probe" in tower.state_dict() else with_prefix(loaded))
    size = {"height": part["image_size"], "width": part["image_size"]}
    processor = SiglipImageProcessorPil(size=size, image_mean=HALF, image_std=HALF)
    vectors, tokens = [], []
    for name in ("picture1", "picture2"):
        image = Image.open(folder / f"{name}.png").convert("RGB")
        vector = tower(**processor(images=image, return_tensors="pt")).pooler_output
        x = torch.nn.functional.linear(vector, *(weights[f"image_proj.proj.0.{each}"] for each in ("weight", "bias")))
        x = torch.nn.functional.gelu(x)
        x = torch.nn.functional.linear(x, *(weights[f"image_proj.proj.2.{each}"] for each in ("weight", "bias")))
        x = x.reshape(1, INSTANTX_TOKENS, -1)
        norm = [weights[f"image_proj.norm.{each}"] for each in ("weight", "bias")]
        vectors.append(vector)
        tokens.append(torch.nn.functional.layer_norm(x, x.shape[-1:], *norm))
    out = {"instantx.vector": vectors[1], "instantx.tokens": tokens[0][None]}
    taken = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    made = FluxPipeline(**taken)
    made.set_progress_bar_config(disable=True)
    for way, count in (("one", 1), ("two", 2)):
        shown = list(zip(SCALES, tokens, strict=True))[:count]
        names = made.transformer.attn_processors
        made.transformer.set_attn_processor(
            {name: InstantXProcessor(weights, block, shown) for block, name in enumerate(names)}
        )
        out[f"instantx.{way}"] = run(made, options)
    return out


def with_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"vision_model.{name}": value for name, value in tensors.items()}


def reference(folder: Path, parts: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    tower = CLIPVisionModelWithProjection.from_pretrained(folder / "adapter/image_encoder")
    side = tower.config.image_size
    processor = CLIPImageProcessorPil(size=side, crop_size=side)  # as diffusers makes it
    first, second = (Image.open(folder / f"{name}.png").convert("RGB") for name in ("picture1", "picture2"))
    out = {"vector": tower(**processor(images=second, return_tensors="pt")).image_embeds}
    pictures = {"one": [first], "two": [first, second], "cfg": [second]}
    for way, images in pictures.items():
        made = open_flux_with(parts, tower, processor, folder, len(images))
        layers = made.transformer.config.num_layers
        made.set_ip_adapter_scale([[scale] * layers for scale in SCALES[: len(images)]])
        cfg = {"negative_prompt": options["negative_prompt"], "true_cfg_scale": options["cfg"]} if way == "cfg" else {}
        out[way] = run(made, options, ip_adapter_image=images, **cfg)
        if way == "one":
            embeds = tower(**processor(images=first, return_tensors="pt")).image_embeds
            (out["tokens"],) = made.transformer.encoder_hid_proj([embeds[None]])
        made.unload_ip_adapter()
    return out


def open_flux_with(parts: dict[str, Any], tower: Any, processor: Any, folder: Path, count: int) -> FluxPipeline:
    """The adapter once for each picture, so that each has its own scale."""
    taken = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    made = FluxPipeline(**taken, image_encoder=tower, feature_extractor=processor)
    made.set_progress_bar_config(disable=True)
    file = "model.safetensors"
    made.load_ip_adapter([str(folder / "adapter")] * count, weight_name=[file] * count)
    return made


def run(made: FluxPipeline, options: dict[str, Any], **more: Any) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(options["seed"])
    common = {"prompt": options["prompt"], "num_inference_steps": options["steps"], "generator": seeded}
    common |= {"guidance_scale": options["guidance"], "max_sequence_length": options["length"]}
    common |= {"width": options["width"], "height": options["height"]}
    return torch.from_numpy(np.array(made(**common, **more).images[0]))


if __name__ == "__main__":
    run_on_base(draw, __doc__)
