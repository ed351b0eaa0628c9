"""Draws a tiny random Qwen-Image in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/qwen.py FOLDER [--kind image] [--seed N] [--full-size]

The kinds are image (text-to-image), edit (Qwen-Image-Edit), plus (-2509) and zero (-2511, zero_cond_t). FOLDER gets a
whole diffusers repository (model_index.json … vae/), options.json, pictures to edit or start from, for `image` ids.json
and a LoRA as Lightning's are laid out, and reference.safetensors: one block, the transformer with and without
references, text features (what the vision tower sees among them), and pictures of the whole pipeline. References are 96
pixels wide in place of 1024 unless --full-size is given. Needs torch, diffusers, transformers and peft.
"""

import argparse
import functools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from qwen_vae import config as vae_config
from qwen_vae import spread as vae_spread
from safetensors.torch import save_file
from text_prompts import prompts
from text_tokenizers import draw_qwen_tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from weight_descriptions import redraw

PROMPT = "a red fox asleep on an old map, 晨光中的水墨画, reads HELLO"
NEGATIVE = "blurry, 低质量"
STEPS, CFG, STRENGTH = 4, 3.0, 0.6
PIPELINES = {"image": QwenImagePipeline, "edit": QwenImageEditPipeline, "plus": QwenImageEditPlusPipeline}
PIPELINES["zero"] = QwenImageEditPlusPipeline
LANGUAGE_AREA, LATENT_AREA = 64 * 64, 96 * 96  # in place of 384 x 384 and 1024 x 1024
RANK, ALPHA = 4, 2.0
LIGHTNING_MODULES = [
    *(f"attn.{name}" for name in "to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out".split()),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
]


def draw(folder: Path, kind: str, seed: int, full_size: bool = False) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    if not full_size:
        shrink_references()
    pipeline = draw_pipeline(folder, kind, dice, seed)
    options: dict[str, Any] = {"kind": kind, "prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": STEPS, "cfg": CFG}
    options |= {
        "strength": STRENGTH,
        "seed": seed,
        "width": 16 * dice.choice([3, 4, 5]),
        "height": 16 * dice.choice([2, 6]),
    }
    options |= {"full_size": full_size, "language_area": LANGUAGE_AREA, "latent_area": LATENT_AREA}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    draw_picture_files(folder, dice)
    if kind == "image":
        write_ids(folder, pipeline)
    with torch.no_grad():
        reference = parts(pipeline.transformer, dice, kind) | features(folder, pipeline, kind)
        reference |= pictures(folder, pipeline, options) if kind == "image" else edits(folder, pipeline, options)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors"
    )


def shrink_references() -> None:
    """A tiny model does not make 4096 tokens cheap; the arithmetic of sizes is the same."""
    plus, edit = pipeline_qwenimage_edit_plus, pipeline_qwenimage_edit
    plus.CONDITION_IMAGE_SIZE, plus.VAE_IMAGE_SIZE = LANGUAGE_AREA, LATENT_AREA
    for module in (plus, edit):
        exact = module.calculate_dimensions
        module.calculate_dimensions = lambda area, ratio, exact=exact: exact(
            LATENT_AREA if area == 1024**2 else area, ratio
        )


def draw_pipeline(folder: Path, kind: str, dice: random.Random, seed: int) -> Any:
    draw_qwen_tokenizer(folder / "tokenizer", prompts(7)[60:] + [PROMPT, NEGATIVE] * 20)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    text = draw_text_encoder(folder, dice, seed, tokenizer, flat=kind == "image")
    vae = save_drawn(draw_vae(dice), folder / "vae", vae_spread, seed)
    transformer = draw_transformer(dice, text.config.text_config.hidden_size, vae.config.z_dim, kind == "zero")
    transformer = save_drawn(transformer, folder / "transformer", spread, seed)
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192, shift=1.0, shift_terminal=0.02,
        use_dynamic_shifting=True,
    )  # fmt: skip
    processor = {} if kind == "image" else {"processor": draw_processor(folder, tokenizer)}
    pipeline = PIPELINES[kind](scheduler, vae, text, tokenizer, transformer=transformer, **processor)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": PIPELINES[kind].__name__, "transformer": ["diffusers", "QwenImageTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of weights of a size at which every part of the model shows in its output."""
    if "norm" in name and name.endswith("weight") and len(shape) == 1:
        return 1.0, 0.2
    if name.endswith("bias"):
        return 0.0, 0.2
    return 0.0, (1 if "embed_tokens" in name else math.prod(shape[1:])) ** -0.5


def draw_text_encoder(
    folder: Path, dice: random.Random, seed: int, tokenizer: Qwen2Tokenizer, flat: bool
) -> Qwen2_5_VLForConditionalGeneration:
    """With a config.json as newer files have it, or flat, as older ones have."""
    kv_heads = dice.choice([1, 2])
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32 * kv_heads, "intermediate_size": dice.choice([40, 64]),
        "num_hidden_layers": 2, "num_attention_heads": 2 * kv_heads, "num_key_value_heads": kv_heads,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": text["hidden_size"],
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
    redraw(folder / "text_encoder/model.safetensors", spread, seed)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")
    (folder / "text_encoder/generation_config.json").unlink(missing_ok=True)
    if flat:
        path = folder / "text_encoder/config.json"
        saved = json.loads(path.read_text())
        inner = saved.pop("text_config")
        rope = inner.pop("rope_parameters")
        inner |= {
            "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
            "rope_theta": rope["rope_theta"],
        }
        path.write_text(json.dumps(inner | saved, indent=1))
    with_picture_positions(model)
    return model.eval()


def draw_processor(folder: Path, tokenizer: Qwen2Tokenizer) -> Any:
    """processor/preprocessor_config.json as published, and transformers' processor with Pillow."""
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16384)
    (folder / "processor").mkdir()
    published = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": list(images.image_mean), "image_std": list(images.image_std),
        "image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 28 * 28 * 16384, "merge_size": 2,
        "min_pixels": 28 * 28 * 4, "patch_size": 14, "processor_class": "Qwen2_5_VLProcessor", "resample": 3,
        "rescale_factor": 1 / 255, "size": {"longest_edge": 28 * 28 * 16384, "shortest_edge": 28 * 28 * 4},
        "temporal_patch_size": 2,
    }  # fmt: skip
    (folder / "processor/preprocessor_config.json").write_text(json.dumps(published, indent=1))
    return Processor(images, tokenizer)


class Processor:
    """transformers' Qwen2VLProcessor without videos, whose part of it needs torchvision."""

    def __init__(self, images: Qwen2VLImageProcessorPil, tokenizer: Qwen2Tokenizer):
        self.images, self.tokenizer = images, tokenizer

    def batch_decode(self, ids: Any, **options: Any) -> list[str]:
        return self.tokenizer.batch_decode(ids, **options)

    def __call__(self, text: str | list[str], images: Any, padding: bool, return_tensors: str) -> Any:
        seen = self.images(images=images, return_tensors="pt")
        (words,) = [text] if isinstance(text, str) else text
        for grid in seen["image_grid_thw"]:
            words = words.replace("<|image_pad|>", "<|place|>" * int(grid.prod() // 4), 1)
        ids = self.tokenizer(words.replace("<|place|>", "<|image_pad|>"), return_tensors="pt")
        return type(ids)({"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], **seen})


def with_picture_positions(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """transformers 5 spreads a picture's positions over rows and columns only if it is told which tokens are a
    picture's, and diffusers 0.42, written for transformers 4, which saw it by their ids, does not tell (its issue
    14194)."""
    forward, picture = model.forward, model.config.image_token_id

    @functools.wraps(forward)  # `generate` reads its signature
    def told(input_ids: torch.Tensor, **more: Any) -> Any:
        return forward(input_ids=input_ids, **(more | {"mm_token_type_ids": (input_ids == picture).int()}))

    model.forward = told


def draw_transformer(
    dice: random.Random, text: int, channels: int, zero: bool, **flags: bool
) -> QwenImageTransformer2DModel:
    axes = dice.choice([(4, 6, 6), (2, 6, 4), (4, 10, 10)])
    return QwenImageTransformer2DModel(
        in_channels=4 * channels, out_channels=channels, num_layers=2, attention_head_dim=sum(axes),
        num_attention_heads=dice.choice([2, 3]), joint_attention_dim=text, axes_dims_rope=axes, zero_cond_t=zero,
        **flags,
    )  # fmt: skip


def draw_vae(dice: random.Random, channels: int = 4, colours: int = 3) -> AutoencoderKLQwenImage:
    config = vae_config(dice)
    config |= {
        "base_dim": 4,
        "num_res_blocks": 1,
        "dim_mult": [1, 1, 2, dice.choice([1, 2])],
        "temperal_downsample": [False, True, True],
        "z_dim": channels,
    }
    config |= {
        name: [round(dice.uniform(low, 1), 4) for _ in range(channels)]
        for name, low in (("latents_mean", -1), ("latents_std", 0.5))
    }
    return AutoencoderKLQwenImage(**config, input_channels=colours)


def write_ids(folder: Path, pipeline: QwenImagePipeline) -> None:
    """ids.json: 200 strings and what the pipeline makes of them, the last one too long for it: the ids of the first one
    whole, of the others without the ids that begin all of them."""
    texts = [*prompts(5)[-199:], "fox, 狐狸 " * 400]
    length = pipeline.tokenizer_max_length + pipeline.prompt_template_encode_start_idx
    whole = [pipeline.prompt_template_encode.format(text) for text in texts]
    ids = pipeline.tokenizer(whole, max_length=length, truncation=True)["input_ids"]
    common = next(place for place, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    data = [texts, ids[0], common, [row[common:] for row in ids]]
    (folder / "ids.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def draw_picture_files(folder: Path, dice: random.Random) -> None:
    """Two pictures of other proportions, larger than what they are resized to."""
    for index, size in enumerate([(7, 5), (4, 9)]):
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (size[1], size[0], 3), np.uint8)
        picture = Image.fromarray(noise).resize((size[0] * 17, size[1] * 17), Image.Resampling.BICUBIC)
        picture.save(folder / f"picture{index + 1}.png")


def open_pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(folder / f"picture{index}.png").convert("RGB") for index in (1, 2)]


def parts(model: QwenImageTransformer2DModel, dice: random.Random, kind: str) -> dict[str, torch.Tensor]:
    """Inputs and outputs of one block, and of the transformer with 0, 1 and 2 references; odd sides among the grids."""
    grids, length = [(3, 5), (4, 2), (5, 3)], dice.choice([5, 9])
    dims, config = model.inner_dim, model.config
    txt, features = torch.randn(1, length, dims), torch.randn(1, length, config.joint_attention_dim)
    t = torch.tensor([0.6181])
    temb = torch.randn(2 if config.zero_cond_t else 1, dims)
    tokens = [rows * columns for rows, columns in grids]
    img, x = torch.randn(1, sum(tokens), dims), torch.randn(1, sum(tokens), config.in_channels)
    rope = model.pos_embed([[(1, *grid) for grid in grids]], max_txt_seq_len=length)
    index = torch.tensor([[0] * tokens[0] + [1] * sum(tokens[1:])]) if config.zero_cond_t else None
    txt_out, img_out = model.transformer_blocks[0](img, txt, None, temb, rope, modulate_index=index)
    out = {
        "grids": torch.tensor(grids),
        "img": img,
        "txt": txt,
        "temb": temb,
        "block.img": img_out,
        "block.txt": txt_out,
    }
    for count in (0, 1, 2) if kind != "image" else (0,):
        shapes = [[(1, *grid) for grid in grids[: count + 1]]]
        length = sum(tokens[: count + 1])
        v = model(x[:, :length], features, timestep=t, img_shapes=shapes, return_dict=False)[0]
        out[f"v{count}"] = v[:, : tokens[0]]
    return out | {"x": x, "features": features, "t": t}


def features(folder: Path, pipeline: Any, kind: str) -> dict[str, torch.Tensor]:
    """What the pipeline hands to the transformer as text."""
    if kind == "image":
        return {
            f"text.{name}": pipeline.encode_prompt(words)[0] for name, words in (("prompt", PROMPT), ("blank", " "))
        }
    plus = pipeline_qwenimage_edit_plus
    if kind == "edit":
        area = 1024 * 1024  # or what shrink_references makes of it
        seen = [
            resized(picture, *pipeline_qwenimage_edit.calculate_dimensions(area, picture.width / picture.height)[:2])
            for picture in open_pictures(folder)
        ]
        return {"text.one": pipeline.encode_prompt(PROMPT, seen[0])[0]}
    area = plus.CONDITION_IMAGE_SIZE
    seen = [
        resized(picture, *plus.calculate_dimensions(area, picture.width / picture.height))
        for picture in open_pictures(folder)
    ]
    return {
        "text.one": pipeline.encode_prompt(PROMPT, seen[:1])[0],
        "text.two": pipeline.encode_prompt(PROMPT, seen)[0],
    }


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def levels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((image * 255).round().astype(np.uint8))


def pictures(folder: Path, pipeline: QwenImagePipeline, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Text-to-image, six ways, as uint8."""
    width, height = options["width"], options["height"]
    common = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "np", "width": width, "height": height}

    def run(made: Any, **more: Any) -> torch.Tensor:
        return levels(made(**common, **more).images[0])

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(options["seed"])

    noise = torch.randn(1, 4, height // 8, width // 8)
    latents = QwenImagePipeline._pack_latents(noise, 1, 4, height // 8, width // 8)
    out = {
        "noise": noise,
        "picture.noise": run(pipeline, latents=latents),
        "picture.seed": run(pipeline, generator=seeded()),
    }
    out["picture.cfg"] = run(pipeline, latents=latents, negative_prompt=NEGATIVE, true_cfg_scale=CFG)
    out["picture.blank"] = run(pipeline, latents=latents, negative_prompt=" ", true_cfg_scale=CFG)
    again = QwenImageImg2ImgPipeline(**pipeline.components)
    again.set_progress_bar_config(disable=True)
    out["picture.image"] = run(again, image=open_pictures(folder)[0], strength=STRENGTH, generator=seeded())
    return out | lightning(folder, pipeline, run, latents)


def lightning(folder: Path, pipeline: QwenImagePipeline, run: Any, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """A LoRA laid out as Lightning's, its picture with a constant shift of 3, and two weights it changes."""
    lora: dict[str, torch.Tensor] = {}
    model = pipeline.transformer
    for index in range(model.config.num_layers):
        for name in LIGHTNING_MODULES:
            module = f"transformer_blocks.{index}.{name}"
            rows, columns = model.get_submodule(module).weight.shape
            lora[f"{module}.lora_down.weight"] = torch.randn(RANK, columns) * columns**-0.5
            lora[f"{module}.lora_up.weight"] = torch.randn(rows, RANK) * 0.3
            lora[f"{module}.alpha"] = torch.tensor(ALPHA)
    save_file(lora, folder / "lightning.safetensors")
    pipeline.load_lora_weights(dict(lora))
    pipeline.fuse_lora()
    shift = math.log(3)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, base_shift=shift, max_shift=shift, shift_terminal=None
    )
    names = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.txt_mlp.net.2")
    merged = {f"merged.{name}": model.get_submodule(name).base_layer.weight.detach() for name in names}
    return merged | {"picture.lightning": run(pipeline, latents=latents)}


def edits(folder: Path, pipeline: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Editing one picture and, where the pipeline can, two; `seed` leaves the size to the pipeline."""
    width, height = options["width"], options["height"]
    common = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "np"}
    size = {"width": width, "height": height}
    first, second = open_pictures(folder)

    def run(image: Any, **more: Any) -> torch.Tensor:
        return levels(pipeline(image=image, **common, **more).images[0])

    noise = torch.randn(1, 4, height // 8, width // 8)
    given = {"latents": type(pipeline)._pack_latents(noise, 1, 4, height // 8, width // 8), **size}
    seeded = {"generator": torch.Generator().manual_seed(options["seed"])}
    cfg = {"negative_prompt": NEGATIVE, "true_cfg_scale": CFG}
    out = {"noise": noise, "picture.noise": run(first, **given), "picture.seed": run(first, **seeded)}
    out["picture.cfg"] = run(first, **given, **cfg)
    if options["kind"] == "edit":
        return out
    return out | {"picture.two": run([first, second], **given, **cfg)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=list(PIPELINES), default="image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-size", action="store_true", help="references as large as the real pipelines make them")
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.kind, arguments.seed, arguments.full_size)
