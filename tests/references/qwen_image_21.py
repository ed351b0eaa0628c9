"""Draws a tiny random Qwen-Image-2.1 in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/qwen_image_21.py FOLDER [--seed N] [--turbo] [--vae]

FOLDER gets a whole diffusers repository (model_index.json … vae/), options.json, pictures to edit (one with alpha), a
LoRA, ids.json, autoencoder/ (latents, the pixels decoded from them, a picture and the posterior it is encoded to), and
reference.safetensors: one block, the transformer with 0, 1 and 3 references (two of them side by side),
text states, and pictures of the whole pipeline with four colours. --turbo: with sigmas of its own. --vae: nothing but
vae/ of other sizes, and autoencoder/. Needs torch, diffusers and transformers.
"""

import argparse
import copy
import json
import math
import random
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import ATTEMPTS, save_drawn, slanted, steady, store
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from PIL import Image
from qwen_vae import seen
from qwen_vae import spread as vae_spread
from safetensors.torch import save_file
from text_prompts import prompts
from text_tokenizers import draw_qwen_tokenizer
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from weight_descriptions import redraw

PROMPT = "a red fox asleep on an old map, 晨光中的水墨画, reads HELLO"
NEGATIVE = "blurry, 低质量"
STEPS, CFG = 3, 3.0
SIDE = 64  # of references, in place of 1024
SIGMAS = [1.0, 0.85, 0.4]  # of --turbo
RANK = 2
PROCESSED = {  # as published, and as the pictures here need it
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3, "image_processor_type": "Qwen2VLImageProcessorFast", "merge_size": 2, "patch_size": 16,
    "processor_class": "Qwen3VLProcessor", "resample": 3, "rescale_factor": 1 / 255, "temporal_patch_size": 2,
    "size": {"longest_edge": 16777216, "shortest_edge": 1024},
}  # fmt: skip


def draw(folder: Path, seed: int, turbo: bool) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = draw_pipeline(folder, dice, seed, turbo)
    sizes = [32 * dice.choice([1, 2, 3]), 32 * dice.choice([1, 2])]
    options = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": STEPS, "cfg": CFG, "seed": seed, "side": SIDE}
    options |= dict(zip(("width", "height"), sizes, strict=True))
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    draw_picture_files(folder, dice)
    write_ids(folder, pipeline)
    with torch.no_grad():
        reference = parts(pipeline.transformer, dice) | states(folder, pipeline) | pictures(folder, pipeline, options)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors"
    )


def draw_pipeline(folder: Path, dice: random.Random, seed: int, turbo: bool) -> QwenImage21Pipeline:
    draw_qwen_tokenizer(folder / "processor", prompts(7)[60:] + [PROMPT, NEGATIVE] * 20)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "processor")
    (folder / "processor/preprocessor_config.json").write_text(json.dumps(PROCESSED, indent=1))
    text = draw_text_encoder(folder, dice, seed, tokenizer)
    vae = draw_vae(folder, pipeline_vae(dice), (1, 2, 2), seed)
    transformer = draw_transformer(dice, text.config.text_config.hidden_size, vae.config.z_dim)
    transformer = save_drawn(transformer, folder / "transformer", spread, seed)
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192, shift=1.0,
        shift_terminal=None if turbo else 0.02, use_dynamic_shifting=not turbo,
    )  # fmt: skip
    sigmas = SIGMAS if turbo else None
    pipeline = QwenImage21Pipeline(scheduler, vae, text, Processor(tokenizer), transformer, sigmas)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "QwenImage21Pipeline", "transformer": ["diffusers", "QwenImage21Transformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index | ({"sample_sigmas": sigmas} if turbo else {})))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of weights of a size at which every part of the model shows in its output."""
    if "norm" in name and name.endswith("weight") and len(shape) == 1:
        return float("text_norm" not in name), 0.2  # that one is stored less one
    if name.endswith("bias"):
        return 0.0, 0.2
    return 0.0, (1 if "embed_tokens" in name or "pos_embed" in name else math.prod(shape[1:])) ** -0.5


def draw_text_encoder(
    folder: Path, dice: random.Random, seed: int, tokenizer: Qwen2Tokenizer
) -> Qwen3VLForConditionalGeneration:
    heads = dice.choice([2, 4])
    text = {
        "vocab_size": len(tokenizer), "hidden_size": dice.choice([24, 32]), "intermediate_size": dice.choice([32, 48]),
        "num_hidden_layers": 3, "num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 5e6,
        },
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 8, "intermediate_size": 24, "num_heads": 2, "patch_size": 16,
        "out_hidden_size": text["hidden_size"], "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    named = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    named |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
    redraw(folder / "text_encoder/model.safetensors", spread, seed)
    (folder / "text_encoder/generation_config.json").unlink(missing_ok=True)
    return Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder").eval()


class Processor:
    """transformers' Qwen3VLProcessor without videos, whose part of it needs torchvision."""

    def __init__(self, tokenizer: Qwen2Tokenizer):
        self.tokenizer = tokenizer
        size = PROCESSED["size"]
        self.images = Qwen2VLImageProcessorPil(
            patch_size=16, image_mean=PROCESSED["image_mean"], image_std=PROCESSED["image_std"],
            min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"],
        )  # fmt: skip

    def apply_chat_template(self, messages: Any, tokenize: bool, return_dict: bool) -> list[list[int]]:
        """As Qwen3-VL's chat template writes a message."""
        assert tokenize and not return_dict
        words = "".join(f"<|im_start|>{one['role']}\n{one['content'][0]['text']}<|im_end|>\n" for one in messages)
        return [self.tokenizer(words)["input_ids"]]

    def __call__(
        self, text: list[str], padding: bool, padding_side: str, return_tensors: str, images: Any = None
    ) -> Any:
        shown = self.images(images=images, return_tensors="pt") if images else {}
        (words,) = text
        for grid in shown.get("image_grid_thw", ()):
            words = words.replace("<|image_pad|>", "<|place|>" * int(grid.prod() // 4), 1)
        ids = self.tokenizer(words.replace("<|place|>", "<|image_pad|>"), return_tensors="pt")
        self.latest = ids["input_ids"][0].tolist()
        kinds = (ids["input_ids"] == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        return type(ids)(
            {
                "input_ids": ids["input_ids"],
                "attention_mask": ids["attention_mask"],
                "mm_token_type_ids": kinds,
                **shown,
            }
        )


def draw_transformer(dice: random.Random, text: int, channels: int) -> QwenImage21Transformer2DModel:
    axes = dice.choice([(4, 6, 6), (2, 6, 4), (4, 10, 10)])
    return QwenImage21Transformer2DModel(
        in_channels=channels, out_channels=channels, num_layers=dice.choice([2, 3]), attention_head_dim=sum(axes),
        num_attention_heads=dice.choice([1, 2]), context_in_dim=text, axes_dims_rope=axes,
        mlp_ratio=dice.choice([2, 3]),
    )  # fmt: skip


def pipeline_vae(dice: random.Random) -> dict[str, Any]:
    """diffusers' pipeline fixes a sixteenth of the side in code."""
    config = {"base_dim": 4, "decoder_base_dim": dice.choice([4, 6]), "num_res_blocks": 1, "z_dim": 4}
    config["dim_mult"] = dice.choice([[1, 1, 2, 2, 2], [1, 2, 2, 2, 2], [1, 1, 1, 2, 2]])
    return config | {"temperal_downsample": [False, True, True, True]}


def any_vae(dice: random.Random) -> dict[str, Any]:
    """Another depth, other widths, other levels over time."""
    levels = dice.choice([2, 3, 4])
    factors = [1]
    for _ in range(levels - 2):
        factors.append(factors[-1] * dice.choice([1, 2]))
    config = {
        "base_dim": dice.choice([4, 6]),
        "decoder_base_dim": dice.choice([4, 8, None]),
        "z_dim": dice.choice([3, 4]),
    }
    config |= {"dim_mult": [*factors, factors[-1]], "num_res_blocks": dice.choice([1, 2])}
    return config | {"temperal_downsample": [dice.random() < 0.6 for _ in range(levels - 1)]}


def draw_vae(folder: Path, config: dict[str, Any], size: tuple[int, int, int], seed: int) -> AutoencoderKLQwenImage21:
    """In vae/; and in autoencoder/ what it makes of latents of `size` (batch, rows, columns) and of a picture."""
    channels = config["z_dim"]
    means, stds = torch.rand(channels) * 2 - 1, torch.rand(channels) + 0.5
    config |= {"latents_mean": [round(float(mean), 4) for mean in means]}
    config |= {"latents_std": [round(float(std), 4) for std in stds]}
    for attempt in count():
        model = AutoencoderKLQwenImage21(**config)
        model = save_drawn(model, folder / "vae", vae_spread, seed + ATTEMPTS * attempt)
        latents, factor = slanted(size[0], channels, *size[1:]), 2 ** len(config["temperal_downsample"])
        picture = slanted(1, 4, *(side * factor for side in size[1:])).clamp(-1, 1)
        reference = seen(model, latents, picture)
        if steady(reference, seen(copy.deepcopy(model).double(), latents.double(), picture.double())):
            break
    (folder / "autoencoder").mkdir()
    store(folder / "autoencoder", reference | {"latents": latents, "picture": picture})
    return model


def write_ids(folder: Path, pipeline: QwenImage21Pipeline) -> None:
    """ids.json: the system message's length; strings with the ids of the pipeline's template, without pictures and
    with two, of 2x1 and 1x3 tokens."""
    texts = ["", *(text for text in prompts(5)[-24:] if "<|image_pad|>" not in text)]
    shown = [Image.new("RGB", size) for size in ((32, 64), (96, 32))]
    rows = []
    for text in texts:
        for pictures in (None, shown):
            with torch.no_grad():
                pipeline.encode_prompt(text, pictures)
            rows.append([text, bool(pictures), pipeline.processor.latest])
    data = {"system": pipeline._drop_idx, "rows": rows}
    (folder / "ids.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def draw_picture_files(folder: Path, dice: random.Random) -> None:
    """Three pictures of other proportions, larger than what they are resized to; the second one has an alpha."""
    for index, size in enumerate([(7, 5), (4, 9), (6, 6)]):
        colours = 4 if index == 1 else 3
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (size[1], size[0], colours), np.uint8)
        picture = Image.fromarray(noise).resize((size[0] * 17, size[1] * 17), Image.Resampling.NEAREST)
        picture.save(folder / f"picture{index + 1}.png", optimize=True)


def open_pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(folder / f"picture{index}.png") for index in (1, 2, 3)]


def parts(model: QwenImage21Transformer2DModel, dice: random.Random) -> dict[str, torch.Tensor]:
    """Inputs and outputs of one block, and of the transformer with 0, 1 and 3 references; the whole masked sequence.

    Segments: text, then references; the second and third stand side by side.
    """
    config = model.config
    grids = [(4, 2), (2, 6), (2, 2), (4, 4)]  # three references and the picture
    text = [dice.choice([3, 5]), dice.choice([2, 4]), 3]  # before the first, before the second, at the end
    t = torch.tensor([618.1])  # as the scheduler has it
    out = {"t": t, "grids": torch.tensor(grids), "text": torch.tensor(text)}
    states = torch.randn(1, sum(text) + 6, config.context_in_dim)  # some are left over where there are fewer pictures
    latents = torch.randn(1, sum(rows * columns for rows, columns in grids), config.in_channels)
    out |= {"states": states, "latents": latents}
    for number in (0, 1, 3):
        used = [*grids[:number], grids[3]]
        slots: list[bool] = [False] * text[0]
        for index, (rows, columns) in enumerate(used):
            if index == len(used) - 1:
                slots += [False] * text[2]
            elif index == 1:
                slots += [False] * text[1]
            slots += [True] * (rows * columns // 4)
        length = len(slots) - used[-1][0] * used[-1][1] // 4
        words = torch.zeros(1, length, config.context_in_dim)
        words[:, [not slot for slot in slots[:length]]] = states[:, : length - sum(slots[:length])]
        references = latents[:, : sum(rows * columns for rows, columns in used[:-1])]
        target = latents[:, -16:]
        v = model(
            torch.cat([references, target], dim=1), words, t / 1000, img_shapes=[[(1, *grid) for grid in used]],
            img_mask=torch.tensor([slots]), return_dict=False,
        )[0]  # fmt: skip
        out[f"v{number}"] = v[:, -16:]
    return out | one_block(model, dice)


def one_block(model: QwenImage21Transformer2DModel, dice: random.Random) -> dict[str, torch.Tensor]:
    """5 text tokens, a reference of 2x2, 3 text tokens, the picture of 2x4."""
    dims = model.inner_dim
    x = torch.randn(1, 20, dims)
    is_image = torch.tensor([False] * 5 + [True] * 4 + [False] * 3 + [True] * 8)
    shapes = [(1, 2, 2), (1, 2, 4)]
    _, target = model.build_token_metadata(is_image, shapes)
    modulation = torch.randn(2, 4 * dims)
    rope = model.pos_embed(shapes, is_image, device=x.device)
    segments = [(0, 5, True), (5, 9, False), (9, 12, True)]
    y = model.transformer_blocks[0](x, modulation, rope, target_token_mask=target, segments=segments)
    return {"block.x": x, "block.modulation": modulation, "block.y": y}


def states(folder: Path, pipeline: QwenImage21Pipeline) -> dict[str, torch.Tensor]:
    """What the pipeline hands to the transformer as text, with what it has seen of pictures among it."""
    shown = [resized(picture) for picture in open_pictures(folder)]
    out = {}
    for name, words, pictures in (
        ("prompt", PROMPT, None),
        ("blank", "", None),
        ("one", PROMPT, 1),
        ("three", PROMPT, 3),
    ):
        hidden, _, slots = pipeline.encode_prompt(words, shown[:pictures] if pictures else None)
        out[f"text.{name}"] = hidden[:, ~slots[0]]
    return out


def resized(picture: Image.Image) -> Image.Image:
    ratio = picture.width / picture.height
    width = (SIDE * SIDE * ratio) ** 0.5
    size = round(width / 32) * 32, round(width / ratio / 32) * 32
    return picture.convert("RGBA").resize(size, Image.Resampling.LANCZOS)


def pictures(folder: Path, pipeline: QwenImage21Pipeline, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """[H, W, 4] in levels each."""
    width, height = options["width"], options["height"]
    noise = torch.randn(1, 4, height // 16, width // 16)
    latents = noise.reshape(1, 4, -1).transpose(1, 2)
    size = {"width": width, "height": height}

    def run(**more: Any) -> torch.Tensor:
        made = pipeline(PROMPT, num_inference_steps=STEPS, output_type="np", output_resolution=SIDE, **more).images[0]
        return torch.from_numpy((made * 255).round().astype(np.uint8))

    given: dict[str, Any] = {"latents": latents, **size}
    cfg = {"negative_prompt": NEGATIVE, "true_cfg_scale": CFG}
    first, second, third = open_pictures(folder)
    out = {
        "noise": noise,
        "picture.noise": run(**given),
        "picture.cfg": run(**given, **cfg),
        "picture.edit": run(image=first, generator=torch.Generator().manual_seed(options["seed"])),
        "picture.three": run(image=[first, second, third], **given, **cfg),
    }
    merge_lora(folder, pipeline)
    return out | {"picture.lora": run(**given)}


def merge_lora(folder: Path, pipeline: QwenImage21Pipeline) -> None:
    """lora.safetensors on every linear layer of the blocks, as PEFT names them; diffusers has it merged afterwards."""
    lora: dict[str, torch.Tensor] = {}
    for name, layer in pipeline.transformer.named_modules():
        if name.startswith("transformer_blocks.") and isinstance(layer, torch.nn.Linear):
            rows, columns = layer.weight.shape
            lora[f"transformer.{name}.lora_A.weight"] = torch.randn(RANK, columns) * columns**-0.5
            lora[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, RANK) * 0.4
    save_file(lora, folder / "lora.safetensors")
    pipeline.load_lora_weights(dict(lora))
    pipeline.fuse_lora()


def draw_autoencoder(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    draw_vae(folder, any_vae(dice), (dice.choice([1, 2]), dice.randint(3, 9), dice.randint(3, 8)), seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turbo", action="store_true", help="with sigmas of its own")
    parser.add_argument("--vae", action="store_true", help="an autoencoder alone, of other sizes")
    arguments = parser.parse_args()
    if arguments.vae:
        draw_autoencoder(arguments.folder, arguments.seed)
    else:
        draw(arguments.folder, arguments.seed, arguments.turbo)
