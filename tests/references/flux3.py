"""Draws a tiny random FLUX.3 in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/flux3.py FOLDER [--kind klein] [--seed N]

The kinds are klein (distilled: a flow map) and base (guidance between two branches). FOLDER gets transformer/, vae/ and
text_encoder/ (with the tokenizer's files in it), options.json, three pictures, ids.json, inputs.safetensors and
reference.safetensors: one block of each kind, the transformer with and without references, text states, and pictures of
diffusers' modular pipeline. Needs torch, diffusers and transformers.
"""

import argparse
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn
from diffusers import FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep
from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoBlocks
from diffusers.modular_pipelines.flux3.modular_blocks_flux3_distilled import Flux3DistilledAutoBlocks
from flux2 import PROMPT, draw_inputs, levels, spread
from flux2_vae import build as build_autoencoder
from PIL import Image
from safetensors.torch import save_file
from text_prompts import prompts
from text_tokenizers import draw_qwen_tokenizer
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from weight_descriptions import redraw

STEPS, CFG, STRENGTH, SHIFT = 3, 3.0, 0.6, 6.93
TEXT_LAYERS = tuple(range(1, 9))  # of nine; 4, 8, … 32 of 36 in earnest
LONGEST = 160  # tokens of text; two windows
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def draw(folder: Path, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options = {"kind": kind, "prompt": PROMPT, "steps": STEPS, "cfg": CFG, "seed": seed, "strength": STRENGTH}
    options |= {"length": LONGEST, "width": 16 * dice.choice([3, 4]), "height": 16 * dice.choice([1, 2])}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    draw_picture_files(folder, dice)
    pipeline = draw_pipeline(folder, kind, dice, seed)
    write_ids(folder, pipeline.tokenizer)
    with torch.no_grad():
        reference = parts(folder, pipeline.transformer, dice, seed) | (text_states(pipeline) if kind == "klein" else {})
        reference |= pictures(folder, pipeline, kind, options)
    tensors = {name: tensor.clone().contiguous() for name, tensor in reference.items()}
    save_file(tensors, folder / "reference.safetensors")


def draw_pipeline(folder: Path, kind: str, dice: random.Random, seed: int) -> Any:
    tokenizer, text = draw_text_encoder(folder / "text_encoder", dice, seed)
    groups, count = 2, 4
    vae = build_autoencoder({
        "block_out_channels": [groups * dice.choice([1, 2, 3]) for _ in range(count)], "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": 1, "norm_num_groups": groups, "use_quant_conv": True, "use_post_quant_conv": True,
    })  # fmt: skip
    vae = save_drawn(vae, folder / "vae", spread, seed)
    transformer = draw_transformer(dice, text.config.text_config.hidden_size, kind == "klein")
    transformer = save_drawn(transformer, folder / "transformer", spread, seed)
    blocks = (Flux3DistilledAutoBlocks if kind == "klein" else Flux3AutoBlocks)()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipeline = blocks.init_pipeline()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipeline.update_components(
        transformer=transformer, vae=vae, text_encoder=text, tokenizer=Processor(tokenizer), scheduler=scheduler
    )
    if kind == "base":
        pipeline.update_components(guider=pipeline.guider.new(guidance_scale=CFG))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Processor:
    """transformers' Qwen3VLProcessor for words alone."""

    def __init__(self, tokenizer: Qwen2Tokenizer):
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, **options)


def draw_text_encoder(folder: Path, dice: random.Random, seed: int) -> tuple[Any, Any]:
    draw_qwen_tokenizer(folder, prompts(7)[60:] + [PROMPT] * 20)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    kv_heads = dice.choice([1, 2])
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": dice.choice([24, 40]),
        "num_hidden_layers": 9, "num_attention_heads": 2 * kv_heads, "num_key_value_heads": kv_heads, "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5e6},
        "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 8,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    redraw(folder / "model.safetensors", spread, seed)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return tokenizer, Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()


def draw_transformer(dice: random.Random, hidden: int, flow_map: bool) -> Flux3Transformer2DModel:
    axes = dice.choice([(4, 4, 4, 4), (2, 4, 4, 6), (4, 6, 2, 4)])
    return Flux3Transformer2DModel(
        in_channels=16, cond_in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=sum(axes),
        num_attention_heads=dice.choice([2, 3]), joint_attention_dim=len(TEXT_LAYERS) * hidden, timestep_channels=32,
        mlp_ratio=dice.choice([2.0, 3.0]), axes_dims_rope=axes, rope_theta=10000, flow_map=flow_map,
    )  # fmt: skip


def write_ids(folder: Path, processor: Processor) -> None:
    """ids.json: strings and the pipeline's ids of them, padding included, the last one too long for it."""
    texts = [*prompts(5)[-12:], "fox, 狐狸 " * 100]
    rows = []
    for text in texts:
        recorder = IdRecorder()
        with contextlib.suppress(IdsKnown):
            Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(recorder, processor, text, max_sequence_length=LONGEST)
        rows.append(recorder.ids)
    data = json.dumps([texts, rows], ensure_ascii=False, separators=(",", ":"))
    (folder / "ids.json").write_text(data, encoding="utf-8")


class IdsKnown(Exception):
    """Nothing else of the step is needed."""


class IdRecorder:
    """Stands for the text encoder."""

    dtype, device = torch.float32, torch.device("cpu")

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> None:
        self.ids = input_ids[0].tolist()
        raise IdsKnown


def draw_picture_files(folder: Path, dice: random.Random) -> None:
    """Mosaics, no multiples of a token's side; the last one is smaller than a token one way."""
    for index, size in enumerate([(32, 43), (38, 34), (41, 13)]):
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(folder / f"picture{index + 1}.png")


def open_pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(folder / f"picture{index}.png").convert("RGB") for index in (1, 2, 3)]


def parts(folder: Path, model: Flux3Transformer2DModel, dice: random.Random, seed: int) -> dict[str, torch.Tensor]:
    """Outputs of one block of each kind, and of the transformer with and without references; odd sides
    among the grids."""
    grids, length, dims, config = [(3, 5), (4, 2), (5, 3)], dice.choice([5, 9]), model.inner_dim, model.config
    counts = [rows * columns for rows, columns in grids]
    drawn = draw_inputs(
        folder, seed, features=(1, length, config.joint_attention_dim), txt=(1, length, dims), x=(1, counts[0], 16),
        references=(1, sum(counts[1:]), 16), img=(1, counts[0], dims), mods=(2, 3 * dims),
    )  # fmt: skip
    features, txt, x, references, img, mods = (
        drawn[name] for name in ("features", "txt", "x", "references", "img", "mods")
    )
    ids = {
        "txt_ids": Flux3TextRoPEInputsStep._prepare_text_ids(features),
        "img_ids": _prepare_image_ids(*grids[0], 0.5),
        "image_cond_ids": torch.cat(
            [_prepare_image_ids(*grid, 0.5, -place) for place, grid in enumerate(grids[1:], 1)]
        ),
    }
    ropes = {name: model.pos_embed(each) for name, each in ids.items()}
    joint = tuple(torch.cat(pair) for pair in zip(ropes["txt_ids"], ropes["img_ids"], strict=True))
    own = model.mode_blocks["image"][0](img, mods[:1, None], ropes["img_ids"])
    txt_out, img_out = model.single_transformer_blocks[0](img, txt, mods[:1, None], mods[1:, None], joint)
    given = {"encoder_hidden_states": features, "txt_ids": ids["txt_ids"], "img_ids": ids["img_ids"]}
    given |= {"timestep": torch.tensor([0.6181]), "return_dict": False}
    given |= {"target_timestep": torch.tensor([0.4])} if config.flow_map else {}
    shown = {"image_cond_hidden_states": references, "image_cond_ids": ids["image_cond_ids"]}
    return {
        "grids": torch.tensor(grids), "own": own, "joint": torch.cat([txt_out, img_out], dim=1),
        "v0": model(x, **given)[0], "v2": model(x, **given, **shown)[0],
    }  # fmt: skip


def text_states(pipeline: Any) -> dict[str, torch.Tensor]:
    """What the pipeline hands to the transformer as text."""
    states = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
        pipeline.text_encoder, pipeline.tokenizer, PROMPT, hidden_states_layers=TEXT_LAYERS
    )
    return {"text.prompt": states}


def pictures(folder: Path, pipeline: Any, kind: str, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """As uint8. Where no size is given, it is the first reference's."""
    size = {"width": options["width"], "height": options["height"]}
    common = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "np", "output": "images"}
    common |= {"text_encoder_out_layers": TEXT_LAYERS, "max_sequence_length": LONGEST}
    first, second, third = open_pictures(folder)

    def run(**more: Any) -> torch.Tensor:
        seeded = torch.Generator().manual_seed(options["seed"])
        return levels(pipeline(**(common | {"generator": seeded} | more))[0])

    out = {
        "picture.seed": run(**size), "picture.long": run(prompt="fox, 狐狸 " * 15, **size),
        "picture.one": run(image=first), "picture.mirrored": run(image=third, **size),
        "picture.two": run(image=[second, first], **size),
    }  # fmt: skip
    if kind == "klein":
        out["picture.image"] = run(**from_picture(pipeline, first, options), **size)
    return out


def from_picture(pipeline: Any, picture: Image.Image, options: dict[str, Any]) -> dict[str, Any]:
    """Part of the schedule, from a picture with as much noise as its first sigma says; diffusers has no pipeline for
    it, so that the text-to-image pipeline is given the latents and the sigmas."""
    picture = picture.resize((options["width"], options["height"]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    vae = pipeline.vae
    clean = torch.nn.functional.pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), 2)
    deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    clean = (clean - vae.bn.running_mean[:, None, None]) / deviation[:, None, None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(options["seed"]))
    start = int(STEPS - min(STEPS * STRENGTH, STEPS))
    sigmas = np.linspace(1.0, 1 / STEPS, STEPS)[start:]
    pipeline.scheduler.set_timesteps(sigmas=sigmas)
    latents = pipeline.scheduler.scale_noise(clean, pipeline.scheduler.timesteps[:1], noise)
    return {"latents": latents, "sigmas": sigmas}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["klein", "base"], default="klein")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.kind, arguments.seed)
