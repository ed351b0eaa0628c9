"""Draws tiny transformers, LoRAs for them in every trainer's format, and what the weights become.

    python tests/references/lora.py FOLDER [--seed N]

FOLDER/<family>/base.safetensors holds a transformer (for FLUX.1 with its text encoders) by the checkpoint's names;
FOLDER/<family>/<format>/ holds lora.safetensors (and adapter_config.json, where the format has one) and
merged.safetensors, of the tensors that differ after merging at SCALE the signed sums of their rows. Where diffusers or
peft load the format rightly, they do the merging; for the others the formula is written out here, in float64. Needs
torch, diffusers, peft, transformers.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from command import run
from diffusers import (
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import (
    Flux2LoraLoaderMixin,
    Flux3LoraLoaderMixin,
    QwenImageLoraLoaderMixin,
    ZImageLoraLoaderMixin,
)
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from weight_descriptions import signed_sums

SCALE = 0.7  # the user's
State = dict[str, torch.Tensor]
Rows = list[tuple[str, int, int]]  # our module, first row, rows


def draw(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    draw_flux(folder / "flux1")
    draw_qwen(folder / "qwen_image")
    draw_hidream(folder / "hidream_o1")
    draw_z_image(folder / "z_image")
    draw_flux2(folder / "flux2")
    draw_flux3(folder / "flux3")


# ---- families -------------------------------------------------------------------------------------------------------


def draw_flux(folder: Path) -> None:
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=6, pooled_projection_dim=5, guidance_embeds=True, axes_dims_rope=(2, 2, 0),
    )  # fmt: skip
    base = randomised(model)
    widths = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 4}
    clip = CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, num_attention_heads=2, **widths))
    widths = {"vocab_size": 10, "d_model": 8, "d_kv": 4, "d_ff": 16}
    t5 = T5EncoderModel(T5Config(num_layers=1, num_heads=2, feed_forward_proj="gated-gelu", **widths))
    texts = {f"text_encoder/{published_clip(name)}": tensor for name, tensor in randomised(clip).items()}
    texts |= {
        f"text_encoder_2/{name}": t for name, t in randomised(t5).items() if name != "encoder.embed_tokens.weight"
    }
    save(folder / "base.safetensors", base | texts)
    whole = dict(original_flux(base))
    block = {name: rows for name, rows in whole.items() if "blocks" in name}
    # One format has the sinusoids' wide linears too; for the others they would only make the stored files larger.
    original = {name: rows for name, rows in whole.items() if name not in ("time_in.in_layer", "guidance_in.in_layer")}
    kept = {name for rows in original.values() for name, _, _ in rows}
    ours = {name: rows for name, rows in own_rows(base).items() if name in kept}
    # Names are checked at full size, from tables; arithmetic needs a module of each kind, and stored draws stay small.
    few = {name: rows for name, rows in ours.items() if "attn" in name or "ff.net" in name}
    ends = {name: rows for name, rows in ours.items() if "blocks" not in name and "_embedder" not in name}

    fused = {name: rows for name, rows in original.items() if "_mlp" not in name and "mod" not in name}

    pairs = Pairs(folder, base)
    pairs.draw("kohya", block, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)
    pairs.draw("kohya_all", whole, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)
    pairs.draw("comfyui", block, lambda m: f"diffusion_model.{m}", down_up, alpha=True)
    pairs.draw("comfyui_lora_a", fused, lambda m: f"diffusion_model.{m}", a_b, alpha=False)
    pairs.draw("fal", fused, lambda m: f"base_model.model.{m}", a_b, alpha=False)
    pairs.draw("mixture", few, lambda m: f"lora_transformer_{flat(m)}", down_up, alpha=True)
    pairs.draw("thelastben", few | ends, lambda m: f"transformer.{m}", a_b, alpha=True)
    pairs.draw("xlabs", xlabs_rows(base), str, lambda m: (f"{m}.down.weight", f"{m}.up.weight"), alpha=False)
    draw_both_copies(folder / "twice", base, few)
    draw_loaded(folder / "aitoolkit", model, few | ends, lambda m: f"transformer.{m}", a_b, alpha=False)
    draw_diffusers(folder, model, base)
    draw_texts(folder, texts)
    draw_differences(folder / "differences", base, block)
    draw_lycoris(folder, base, few, original)
    for name, config in peft_configs().items():
        draw_peft(folder / name, model, base, config)


def draw_qwen(folder: Path) -> None:
    model = QwenImageTransformer2DModel(
        in_channels=4, out_channels=1, num_layers=1, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=6,
        axes_dims_rope=(2, 2, 0),
    )  # fmt: skip
    base = randomised(model)
    save(folder / "base.safetensors", base)
    ours = own_rows(base)
    blocks = {name: rows for name, rows in ours.items() if "blocks" in name}
    lightning = {name: rows for name, rows in blocks.items() if "_mod." not in name}
    draw_loaded(folder / "lightning", model, lightning, str, down_up, alpha=True)
    draw_loaded(folder / "aitoolkit", model, blocks, lambda m: f"diffusion_model.{m}", a_b, alpha=False)
    draw_loaded(folder / "diffsynth", model, blocks, str, a_b_default, alpha=False)
    draw_loaded(folder / "musubi", model, lightning, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)
    draw_loaded(folder / "peft", model, lightning, lambda m: f"transformer.{m}", a_b, alpha=False)
    pairs = Pairs(folder, base)
    pairs.draw("musubi_all", ours, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)
    pairs.draw(
        "bare", {name: rows for name, rows in ours.items() if "time" not in name}, str, a_b, alpha=False
    )  # diffusers drops these


def draw_hidream(folder: Path) -> None:
    layer = {
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (4, 8),
        "self_attn.v_proj": (4, 8),
        "self_attn.o_proj": (8, 8),
    }
    layer |= {"mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12)}
    shapes = {f"language_model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    shapes |= {"x_embedder.proj1": (4, 6), "x_embedder.proj2": (8, 4), "t_embedder1.mlp.0": (8, 5)}
    shapes |= {"t_embedder1.mlp.2": (8, 8), "final_layer2.linear": (6, 8)}
    base = {f"model.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    save(folder / "base.safetensors", base)
    ours = own_rows(base)
    pairs = Pairs(folder, base)
    pairs.draw("aitoolkit", ours, lambda m: f"diffusion_model.{m.removeprefix('model.')}", a_b, alpha=False)
    pairs.draw("aitoolkit_older", ours, lambda m: f"diffusion_model.{m}", a_b, alpha=False)
    pairs.draw("musubi", ours, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)
    pairs.draw("modelscope", ours, str, a_b_default, alpha=False)


def draw_flux2(folder: Path) -> None:
    model = Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=2, num_attention_heads=2,
        joint_attention_dim=6, guidance_embeds=True, axes_dims_rope=(2, 0, 0, 0), timestep_guidance_channels=4,
    )  # fmt: skip
    base = randomised(model)
    save(folder / "base.safetensors", base)
    original, ours = dict(original_flux2(base)), own_rows(base)
    blocks = {name: rows for name, rows in original.items() if "blocks" in name}
    ends = {name: rows for name, rows in original.items() if name in ("img_in", "txt_in", "final_layer.linear")}
    attention = {name: rows for name, rows in ours.items() if "attn" in name}
    # Names are checked at full size, from tables; arithmetic needs a module of each kind, and stored draws stay small.
    few = {name: rows for name, rows in blocks.items() if name.endswith(("img_attn.qkv", "txt_mlp.0", "linear1"))}
    draw_loaded(folder / "peft", model, ours, lambda m: f"transformer.{m}", a_b, alpha=False)
    draw_loaded(folder / "aitoolkit", model, blocks | ends, lambda m: f"diffusion_model.{m}", a_b, alpha=False)
    draw_loaded(folder / "kohya", model, few | ends, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)
    pairs = Pairs(folder, base)
    # diffusers knows no alphas here, and leaves the last norm's halves as they are.
    pairs.draw("comfyui", original, lambda m: f"diffusion_model.{m}", down_up, alpha=True)
    cut = {name: rows for name, rows in attention.items() if name.startswith("transformer_blocks")}
    pairs.draw("cut_names", cut, lambda m: f"diffusion_model.{m.removeprefix('tran')}", a_b, alpha=False)
    pairs.draw("fal", few, lambda m: f"base_model.model.{m}", a_b, alpha=False)
    draw_lokr(folder / "lokr_original", base, few, "lora_unet_")
    draw_lokr(folder / "lokr_lycoris", base, attention, "lycoris_")


def draw_flux3(folder: Path) -> None:
    model = Flux3Transformer2DModel(
        in_channels=4, cond_in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=2,
        num_attention_heads=2, joint_attention_dim=6, axes_dims_rope=(2, 0, 0, 0), timestep_channels=4, flow_map=True,
    )  # fmt: skip
    base = randomised(model)
    save(folder / "base.safetensors", base)
    ours = own_rows(base)
    blocks = {name: rows for name, rows in ours.items() if "blocks" in name}
    original = {original_flux3(name): rows for name, rows in blocks.items()}
    draw_loaded(folder / "peft", model, blocks, lambda m: f"transformer.{m}", a_b, alpha=False)
    draw_loaded(folder / "aitoolkit", model, original, lambda m: f"diffusion_model.{m}", a_b, alpha=False)
    pairs = Pairs(folder, base)
    half = len(base["norm_out.linear.weight"]) // 2  # (shift, scale) there, (scale, shift) in diffusers
    rest = {original_flux3(name): rows for name, rows in ours.items() if name not in blocks}
    rest["final_layer.image.adaLN_modulation.1"] = [("norm_out.linear", half, half), ("norm_out.linear", 0, half)]
    few = {name: rows for name, rows in original.items() if "single_blocks" in name}
    pairs.draw("comfyui", rest | few, lambda m: f"diffusion_model.{m}", down_up, alpha=True)
    pairs.draw("kohya", few, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)


def original_flux3(module: str) -> str:
    """Black Forest Labs' name of a module of diffusers'."""
    whole = {"context_embedder": "txt_in", "proj_out": "final_layer.image.linear"}
    whole |= {"norm_out.linear": "final_layer.image.adaLN_modulation.1"}
    parts = {"x_embedders.": "emb_in.", ".linear": ".lin", "single_transformer_blocks.": "single_blocks."}
    parts |= {"attn.to_out.0": "attn_out", "ff.lin_in": "mlp_in", "ff.lin_out": "mlp_out"}
    parts |= {f"attn.to_{part}": f"{part}_proj" for part in "qkv"}
    parts |= {"target_timestep_embedder.lin_": "ref_time_in.", "timestep_embedder.lin_": "time_in."}
    name = whole.get(module, module)
    for ours, theirs in parts.items() if name == module else ():
        name = name.replace(ours, theirs)
    if name.startswith("mode_blocks."):
        name = f"content_{name}"
    return name.replace("time_in.1", "time_in.in_layer").replace("time_in.2", "time_in.out_layer")


def draw_z_image(folder: Path) -> None:
    model = ZImageTransformer2DModel(
        in_channels=1, dim=8, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=6,
        axes_dims=(2, 2, 0), axes_lens=(8, 8, 8),
    )  # fmt: skip
    base = randomised(model)
    # The timestep's layers have the published width whatever the config says: they are left out.
    base = {name: tensor for name, tensor in base.items() if "t_embedder" not in name}
    save(folder / "base.safetensors", base)
    ours = {name: rows for name, rows in own_rows(base).items() if "pad_token" not in name}
    blocks = {name: rows for name, rows in ours.items() if name.startswith("layers") and "adaLN" not in name}
    draw_loaded(folder / "peft", model, ours, lambda m: f"transformer.{m}", a_b, alpha=False)
    draw_loaded(folder / "aitoolkit", model, blocks, lambda m: f"diffusion_model.{m}", a_b, alpha=False)
    draw_loaded(folder / "diffsynth", model, blocks, str, a_b_default, alpha=False)
    draw_loaded(folder / "kohya", model, blocks, lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)
    pairs = Pairs(folder, base)
    pairs.draw("distill", blocks, lambda m: f"lora_unet__{flat(m)}", down_up, alpha=True)  # diffusers knows no `__`
    pairs.draw("comfyui", dict(comfyui_z_image(ours)), lambda m: f"diffusion_model.{m}", a_b, alpha=True)
    pairs.draw("comfyui_kohya", dict(comfyui_z_image(blocks)), lambda m: f"lora_unet_{flat(m)}", down_up, alpha=True)


def comfyui_z_image(ours: dict[str, Rows]) -> Iterator[tuple[str, Rows]]:
    """ComfyUI's module names -> rows of diffusers' modules."""
    for name, rows in ours.items():
        if name.endswith(".to_q"):
            block = name.removesuffix(".to_q")
            yield f"{block}.qkv", [*rows, *ours[f"{block}.to_k"], *ours[f"{block}.to_v"]]
        elif name.endswith(".to_out.0"):
            yield name.replace(".to_out.0", ".out"), rows
        elif not name.endswith((".to_k", ".to_v")):
            theirs = name.replace("all_x_embedder.2-1", "x_embedder")
            yield theirs.replace("all_final_layer.2-1", "final_layer"), rows


def randomised(model: nn.Module) -> State:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def published_clip(name: str) -> str:
    """As in published files, whatever the installed transformers calls it."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


# ---- names ----------------------------------------------------------------------------------------------------------


def own_rows(base: State) -> dict[str, Rows]:
    matrices = {name.removesuffix(".weight"): tensor for name, tensor in base.items() if name.endswith(".weight")}
    return {name: [(name, 0, len(tensor))] for name, tensor in matrices.items() if tensor.ndim == 2}


def original_flux(base: State) -> Iterator[tuple[str, Rows]]:
    """Black Forest Labs' module names -> rows of diffusers' modules."""

    def stack(*modules: str) -> Rows:
        return [(module, 0, len(base[f"{module}.weight"])) for module in modules]

    yield "img_in", stack("x_embedder")
    yield "txt_in", stack("context_embedder")
    for theirs, ours in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        for layer, number in (("in_layer", 1), ("out_layer", 2)):
            yield f"{theirs}.{layer}", stack(f"time_text_embed.{ours}_embedder.linear_{number}")
    block = "transformer_blocks.0"
    for stream, q, out, ff, norm in (
        ("img", "to_{}", "to_out.0", "ff", "norm1"),
        ("txt", "add_{}_proj", "to_add_out", "ff_context", "norm1_context"),
    ):
        yield f"double_blocks.0.{stream}_attn.qkv", stack(*(f"{block}.attn.{q.format(part)}" for part in "qkv"))
        yield f"double_blocks.0.{stream}_attn.proj", stack(f"{block}.attn.{out}")
        yield f"double_blocks.0.{stream}_mlp.0", stack(f"{block}.{ff}.net.0.proj")
        yield f"double_blocks.0.{stream}_mlp.2", stack(f"{block}.{ff}.net.2")
        yield f"double_blocks.0.{stream}_mod.lin", stack(f"{block}.{norm}.linear")
    single = "single_transformer_blocks.0"
    yield "single_blocks.0.linear1", stack(*(f"{single}.attn.to_{part}" for part in "qkv"), f"{single}.proj_mlp")
    yield "single_blocks.0.linear2", stack(f"{single}.proj_out")
    yield "single_blocks.0.modulation.lin", stack(f"{single}.norm.linear")
    yield "final_layer.linear", stack("proj_out")
    half = len(base["norm_out.linear.weight"]) // 2  # (shift, scale) there, (scale, shift) in diffusers
    yield "final_layer.adaLN_modulation.1", [("norm_out.linear", half, half), ("norm_out.linear", 0, half)]


def original_flux2(base: State) -> Iterator[tuple[str, Rows]]:
    """Black Forest Labs' module names -> rows of diffusers' modules."""

    def stack(*modules: str) -> Rows:
        return [(module, 0, len(base[f"{module}.weight"])) for module in modules]

    yield "img_in", stack("x_embedder")
    yield "txt_in", stack("context_embedder")
    for theirs, ours in (("time_in", "timestep"), ("guidance_in", "guidance")):
        for layer, number in (("in_layer", 1), ("out_layer", 2)):
            yield f"{theirs}.{layer}", stack(f"time_guidance_embed.{ours}_embedder.linear_{number}")
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        yield f"{name}.lin", stack(f"{name}.linear")
    block = "transformer_blocks.0"
    for stream, q, out, ff in (
        ("img", "to_{}", "to_out.0", "ff"),
        ("txt", "add_{}_proj", "to_add_out", "ff_context"),
    ):
        yield f"double_blocks.0.{stream}_attn.qkv", stack(*(f"{block}.attn.{q.format(part)}" for part in "qkv"))
        yield f"double_blocks.0.{stream}_attn.proj", stack(f"{block}.attn.{out}")
        yield f"double_blocks.0.{stream}_mlp.0", stack(f"{block}.{ff}.linear_in")
        yield f"double_blocks.0.{stream}_mlp.2", stack(f"{block}.{ff}.linear_out")
    yield "single_blocks.0.linear1", stack("single_transformer_blocks.0.attn.to_qkv_mlp_proj")
    yield "single_blocks.0.linear2", stack("single_transformer_blocks.0.attn.to_out")
    yield "final_layer.linear", stack("proj_out")
    half = len(base["norm_out.linear.weight"]) // 2  # (shift, scale) there, (scale, shift) in diffusers
    yield "final_layer.adaLN_modulation.1", [("norm_out.linear", half, half), ("norm_out.linear", 0, half)]


def xlabs_rows(base: State) -> dict[str, Rows]:
    rows = dict(original_flux(base))
    return {
        "double_blocks.0.processor.qkv_lora1": rows["double_blocks.0.img_attn.qkv"],
        "double_blocks.0.processor.qkv_lora2": rows["double_blocks.0.txt_attn.qkv"],
        "double_blocks.0.processor.proj_lora1": rows["double_blocks.0.img_attn.proj"],
        "double_blocks.0.processor.proj_lora2": rows["double_blocks.0.txt_attn.proj"],
        "single_blocks.0.processor.qkv_lora": rows["single_blocks.0.linear1"][:3],
        "single_blocks.0.processor.proj_lora": rows["single_blocks.0.linear2"],
    }


def flat(module: str) -> str:
    return module.replace(".", "_")


def down_up(module: str) -> tuple[str, str]:
    return f"{module}.lora_down.weight", f"{module}.lora_up.weight"


def a_b(module: str) -> tuple[str, str]:
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def a_b_default(module: str) -> tuple[str, str]:
    return f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight"


# ---- low rank, by the formula ---------------------------------------------------------------------------------------


class Pairs:
    """LoRAs of pairs, merged by W + SCALE * alpha / rank * B A, B's rows going where the module's rows are."""

    def __init__(self, folder: Path, base: State):
        self.folder = folder
        self.base = base

    def draw(
        self, name: str, modules: dict[str, Rows], rename: Callable[[str], str],
        ends: Callable[[str], tuple[str, str]], alpha: bool,
    ) -> None:  # fmt: skip
        lora, deltas = draw_pairs(self.base, modules, rename, ends, alpha)
        finish(self.folder / name, self.base, lora, deltas)


def draw_pairs(
    base: State,
    modules: dict[str, Rows],
    rename: Callable[[str], str],
    ends: Callable[[str], tuple[str, str]],
    alpha: bool,
) -> tuple[State, State]:
    """A LoRA file, and the differences of our weights at SCALE."""
    lora, deltas = {}, {}
    for index, (module, rows) in enumerate(modules.items()):
        rank = 2 + index % 2  # modules may differ in rank
        down, up = (half_precision(torch.randn(shape)) for shape in pair_shapes(base, rows, rank))
        lora |= dict(zip(ends(rename(module)), (down, up), strict=True))
        scale = 1.0
        if alpha:
            lora[f"{rename(module)}.alpha"] = half_precision(torch.tensor(1.0 + index % 3))
            scale = (1.0 + index % 3) / rank
        spread(deltas, base, rows, SCALE * scale * (up.double() @ down.double()))
    return lora, deltas


def pair_shapes(base: State, rows: Rows, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    columns = base[f"{rows[0][0]}.weight"].shape[1]
    return (rank, columns), (sum(count for _, _, count in rows), rank)


def half_precision(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16()


def spread(deltas: State, base: State, rows: Rows, delta: torch.Tensor) -> None:
    """The rows of a fused module's difference, added where they belong."""
    start = 0
    for module, first, count in rows:
        name = f"{module}.weight"
        whole = deltas.setdefault(name, torch.zeros(base[name].shape, dtype=torch.float64))
        whole[first : first + count] += delta[start : start + count]
        start += count


def finish(folder: Path, base: State, lora: State, deltas: State, metadata: dict[str, str] | None = None) -> None:
    save(folder / "lora.safetensors", lora, metadata)
    save_merged(folder, {name: (base[name].double() + delta).float() for name, delta in deltas.items()})


def save_merged(folder: Path, tensors: State) -> None:
    sums = {name: torch.from_numpy(signed_sums(name, tensor.numpy())) for name, tensor in tensors.items()}
    save(folder / "merged.safetensors", sums)


def save(path: Path, tensors: State, metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path, metadata)


def draw_both_copies(folder: Path, base: State, modules: dict[str, Rows]) -> None:
    """Every pair under two names, as some files have it."""
    lora, deltas = draw_pairs(base, modules, lambda m: f"transformer.{m}", a_b, alpha=False)
    copies = {
        name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensor.clone()
        for name, tensor in lora.items()
    }
    finish(folder, base, lora | copies, deltas)


def draw_texts(folder: Path, texts: State) -> None:
    """Text-encoder keys of kohya, diffusers (old and new), ComfyUI and OneTrainer."""
    comfyui = "text_encoders.{}.transformer.{}"
    encoders = {
        "text_encoder/text_model.": (
            "lora_te1_text_model_",
            "text_encoder.text_model.",
            comfyui.format("clip_l", "text_model."),
            "lora_te1_text_model_",
        ),
        "text_encoder_2/": ("lora_te3_", "text_encoder_2.", comfyui.format("t5xxl", ""), "lora_te2_"),
    }
    old = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    trainers = (("kohya", down_up), ("diffusers", old), ("comfyui", down_up), ("onetrainer", down_up))
    for index, (name, ends) in enumerate(trainers):
        lora, deltas = {}, {}
        for prefix, forms in encoders.items():
            modules = {m: rows for m, rows in own_rows(texts).items() if m.startswith(prefix) and is_projection(m)}

            def rename(module: str, prefix: str = prefix, form: str = forms[index]) -> str:
                bare = module.removeprefix(prefix)
                return form + (flat(bare) if form.endswith("_") else bare)

            named = ends if callable(ends) else lambda m: (m + old[0], m + old[1])
            pairs = draw_pairs(texts, modules, rename, named, alpha=callable(ends))
            lora |= pairs[0]
            deltas |= pairs[1]
        finish(folder / f"texts_{name}", texts, lora, deltas)


def is_projection(module: str) -> bool:
    parts = ("self_attn.", "mlp.", "SelfAttention.", "DenseReluDense.")
    return any(part in module for part in parts) and "relative_attention_bias" not in module


def draw_differences(folder: Path, base: State, original: dict[str, Rows]) -> None:
    """Whole differences of weights, biases and norms, in the original's names."""
    lora, deltas = {}, {}
    for module, rows in original.items():
        columns = base[f"{rows[0][0]}.weight"].shape[1]
        height = sum(count for _, _, count in rows)
        lora[f"diffusion_model.{module}.diff"] = half_precision(torch.randn(height, columns))
        lora[f"diffusion_model.{module}.diff_b"] = half_precision(torch.randn(height))
        spread(deltas, base, rows, SCALE * lora[f"diffusion_model.{module}.diff"].double())
        start = 0
        for name, _, count in rows:
            deltas[f"{name}.bias"] = SCALE * lora[f"diffusion_model.{module}.diff_b"][start : start + count].double()
            start += count
    for name in ("transformer_blocks.0.attn.norm_q", "single_transformer_blocks.0.attn.norm_k"):
        lora[f"diffusion_model.{name}.diff"] = half_precision(torch.randn(base[f"{name}.weight"].shape))
        deltas[f"{name}.weight"] = SCALE * lora[f"diffusion_model.{name}.diff"].double()
    finish(folder, base, lora, deltas)


# ---- LyCORIS, by the formula ----------------------------------------------------------------------------------------


def draw_lycoris(folder: Path, base: State, few: dict[str, Rows], original: dict[str, Rows]) -> None:
    fused = {name: rows for name, rows in original.items() if name.endswith(("qkv", "linear1", "adaLN_modulation.1"))}
    draw_lokr(folder / "lokr_lycoris", base, few, "lycoris_")
    draw_lokr(folder / "lokr_kohya_fused", base, fused, "lora_unet_")
    draw_loha(folder / "loha_lycoris", base, few | fused, "lycoris_")
    draw_dora(folder / "dora_lycoris", base, few | fused, by_columns=False)
    draw_dora(folder / "dora_lycoris_columns", base, few, by_columns=True)
    draw_lokr(folder / "lokr_dora", base, fused, "lora_unet_", dora=True)
    draw_loha(folder / "loha_dora", base, fused, "lora_unet_", dora=True)


def draw_lokr(folder: Path, base: State, modules: dict[str, Rows], prefix: str, dora: bool = False) -> None:
    """kron(w1, w2), each whole or as a product; with both whole, alpha means nothing."""
    lora, deltas = {}, {}
    for index, (module, rows) in enumerate(modules.items()):
        (_, columns), (height, _) = pair_shapes(base, rows, 1)
        name, alpha = prefix + flat(module), 3.0
        w1, w2, rank = torch.randn(2, 2), torch.randn(height // 2, columns // 2), None
        if index % 3 >= 1:
            rank = 2
            w2_a, w2_b = torch.randn(height // 2, rank), torch.randn(rank, columns // 2)
            lora |= {f"{name}.lokr_w2_a": w2_a, f"{name}.lokr_w2_b": w2_b}
            w2 = w2_a.double() @ w2_b.double()
        else:
            lora[f"{name}.lokr_w2"], alpha = w2, 1e10
        if index % 3 == 2:
            w1_a, w1_b = torch.randn(2, 2), torch.randn(2, 2)
            lora |= {f"{name}.lokr_w1_a": w1_a, f"{name}.lokr_w1_b": w1_b}
            w1 = w1_a.double() @ w1_b.double()
        else:
            lora[f"{name}.lokr_w1"] = w1
        lora[f"{name}.alpha"] = torch.tensor(alpha)
        change = (alpha / rank if rank else 1.0) * torch.kron(w1.double(), w2.double())
        if dora:
            lora[f"{name}.dora_scale"], change = decomposed(base, rows, change, by_columns=False)
        spread(deltas, base, rows, SCALE * change)
    finish(folder, base, lora, deltas)


def draw_loha(folder: Path, base: State, modules: dict[str, Rows], prefix: str, dora: bool = False) -> None:
    lora, deltas = {}, {}
    for module, rows in modules.items():
        (_, columns), (height, _) = pair_shapes(base, rows, 1)
        name, rank, alpha = prefix + flat(module), 2, 1.5
        w1_a, w2_a = torch.randn(height, rank), torch.randn(height, rank)
        w1_b, w2_b = torch.randn(rank, columns), torch.randn(rank, columns)
        lora |= {
            f"{name}.hada_w1_a": w1_a,
            f"{name}.hada_w1_b": w1_b,
            f"{name}.hada_w2_a": w2_a,
            f"{name}.hada_w2_b": w2_b,
        }
        lora[f"{name}.alpha"] = torch.tensor(alpha)
        change = alpha / rank * ((w1_a.double() @ w1_b.double()) * (w2_a.double() @ w2_b.double()))
        if dora:
            lora[f"{name}.dora_scale"], change = decomposed(base, rows, change, by_columns=False)
        spread(deltas, base, rows, SCALE * change)
    finish(folder, base, lora, deltas)


def draw_dora(folder: Path, base: State, modules: dict[str, Rows], by_columns: bool) -> None:
    """SCALE goes from the weight to the finished DoRA."""
    lora, deltas = {}, {}
    for module, rows in modules.items():
        down, up = (torch.randn(shape) for shape in pair_shapes(base, rows, 2))
        name = f"lora_unet_{flat(module)}"
        magnitude, change = decomposed(base, rows, 3.0 / 2 * (up.double() @ down.double()), by_columns)
        lora |= dict(zip(down_up(name), (down, up), strict=True))
        lora |= {f"{name}.alpha": torch.tensor(3.0), f"{name}.dora_scale": magnitude}
        spread(deltas, base, rows, SCALE * change)
    finish(folder, base, lora, deltas)


def decomposed(base: State, rows: Rows, change: torch.Tensor, by_columns: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawn magnitude m, and the step from the weight to m (W + change) / |W + change|."""
    weight = torch.cat([base[f"{ours}.weight"][first : first + count] for ours, first, count in rows]).double()
    changed = weight + change
    magnitude = torch.rand(1, weight.shape[1]) if by_columns else torch.rand(len(weight), 1)
    return magnitude, magnitude.double() * changed / changed.norm(dim=0 if by_columns else 1, keepdim=True) - weight


# ---- merged by diffusers and peft -----------------------------------------------------------------------------------


def draw_loaded(
    folder: Path, model: nn.Module, modules: dict[str, Rows], rename: Callable[[str], str],
    ends: Callable[[str], tuple[str, str]], alpha: bool,
) -> None:  # fmt: skip
    """A file as a trainer writes it, loaded by diffusers."""
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora, _ = draw_pairs(base, modules, rename, ends, alpha)
    lora = {name: tensor.float() for name, tensor in lora.items()}
    save(folder / "lora.safetensors", lora)
    loaders = {QwenImageTransformer2DModel: QwenImageLoraLoaderMixin, Flux2Transformer2DModel: Flux2LoraLoaderMixin}
    loaders |= {Flux3Transformer2DModel: Flux3LoraLoaderMixin, ZImageTransformer2DModel: ZImageLoraLoaderMixin}
    state = loaders.get(type(model), FluxPipeline).lora_state_dict(dict(lora))
    model.load_lora_adapter(state, prefix="transformer")
    save_fused(folder, model, base)


def save_fused(folder: Path, model: nn.Module, base: State) -> None:
    """What diffusers makes of the loaded adapter at SCALE; the model is put back as it was."""
    model.fuse_lora(lora_scale=SCALE)
    fused = {name.replace(".base_layer", ""): tensor.clone() for name, tensor in model.state_dict().items()}
    model.unload_lora()
    model.load_state_dict(base)
    differ = {name: fused[name] for name in base if not torch.equal(fused[name], base[name])}
    save_merged(folder, differ)


def draw_diffusers(folder: Path, model: nn.Module, base: State) -> None:
    """Adapters made and saved by diffusers: numbers by pattern, rank-stabilised, DoRA."""
    targets = ["to_q", "to_k", "to_out.0", "proj_mlp", "norm1.linear"]
    patterns = {"rank_pattern": {"to_k": 3}, "alpha_pattern": {"to_k": 5, "transformer_blocks.0.attn.to_q": 2}}
    kinds = {
        "peft_patterns": LoraConfig(r=2, lora_alpha=3, target_modules=targets, **patterns),
        "peft_rslora": LoraConfig(r=3, lora_alpha=2, target_modules=targets, use_rslora=True),
        "peft_dora": LoraConfig(r=2, lora_alpha=3, target_modules=targets, use_dora=True),
    }
    for name, config in kinds.items():
        model.add_adapter(config)
        with torch.no_grad():
            for parameter, tensor in model.named_parameters():
                if "lora_" in parameter:
                    tensor.uniform_(0.2, 1) if "magnitude" in parameter else tensor.normal_()
        (folder / name).mkdir(parents=True, exist_ok=True)
        model.save_lora_adapter(folder / name, weight_name="saved.safetensors")
        # The pipeline's own save writes the same tensors and metadata behind the component's name.
        saved = load_file(folder / name / "saved.safetensors")
        numbers = config.to_dict()
        numbers["target_modules"] = sorted(numbers["target_modules"])
        metadata = {
            f"transformer.{key}": value for key, value in numbers.items() if isinstance(value, (int, float, dict, list))
        }
        described = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=1, sort_keys=True)}
        save(
            folder / name / "lora.safetensors", {f"transformer.{key}": value for key, value in saved.items()}, described
        )
        (folder / name / "saved.safetensors").unlink()
        model.unload_lora()
        model.load_state_dict(base)
        state, metadata = FluxPipeline.lora_state_dict(folder / name / "lora.safetensors", return_lora_metadata=True)
        model.load_lora_adapter(state, prefix="transformer", metadata=metadata)
        save_fused(folder / name, model, base)


def peft_configs() -> dict[str, LoHaConfig | LoKrConfig | LoraConfig]:
    targets = ["to_q", "to_v", "proj_mlp", "norm_out.linear"]
    return {
        "peft_loha": LoHaConfig(r=2, alpha=3, target_modules=targets),
        "peft_lokr": LoKrConfig(r=2, alpha=3, target_modules=targets, decompose_factor=2),
        "peft_lokr_both": LoKrConfig(r=1, alpha=3, target_modules=targets, decompose_both=True, decompose_factor=4),
        "peft_folder": LoraConfig(r=2, lora_alpha=3, target_modules=targets, lora_bias=True),
    }


def draw_peft(folder: Path, model: nn.Module, base: State, config: LoHaConfig | LoKrConfig | LoraConfig) -> None:
    """An adapter folder of peft's own, merged by peft at SCALE."""
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for parameter, tensor in wrapped.named_parameters():
            if tensor.requires_grad and "base_layer" not in parameter:
                tensor.normal_()
    wrapped.save_pretrained(folder)
    for module in wrapped.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", SCALE)
    merged = wrapped.merge_and_unload()
    fused = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    model.load_state_dict(base)
    (folder / "adapter_model.safetensors").rename(folder / "lora.safetensors")
    (folder / "README.md").unlink(missing_ok=True)
    save_merged(folder, {name: fused[name] for name in base if not torch.equal(fused[name], base[name])})


if __name__ == "__main__":
    run(draw, __doc__)
