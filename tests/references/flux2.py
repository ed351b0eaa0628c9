"""Draws a tiny random FLUX.2 in its real folder layout, with what diffusers makes of it, step by step.

    python tests/references/flux2.py FOLDER [--kind klein] [--seed N] [--length N]

The kinds are klein (Qwen3 for the text, and guidance between two branches as klein Base has it) and dev (Mistral, and
guidance as a number). FOLDER gets a whole diffusers repository (model_index.json … vae/), options.json, two pictures,
ids.json, inputs.safetensors and reference.safetensors: one block of each kind, the transformer with and without
references, text states, and pictures of the whole pipelines; klein's too as the KV edition makes them, which keeps the
references' keys and values. Needs torch, diffusers and transformers.
"""

import argparse
import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.models.transformers import transformer_flux2 as module
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from flux2_vae import build as build_autoencoder
from PIL import Image
from safetensors.torch import load_file, save_file
from text_prompts import prompts
from text_tokenizers import QWEN3_ADDED, QWEN_MERGES, draw_qwen_tokenizer, train_bpe
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from weight_descriptions import redraw

PROMPT = "a red fox asleep on an old map, 晨光中的水墨画, reads HELLO"
STEPS, CFG, GUIDANCE, STRENGTH = 3, 3.0, 2.5, 0.6
MASKED_SIZE, MASKED_BOX = (64, 64), (24, 8, 56, 41)  # the box's edges run through the middle of tokens
LENGTH = 48  # tokens of text; 512 in earnest
TEXT_LAYERS = (1, 2, 3)  # of four; 9, 18 and 27 of 36 in earnest
# Qwen3's template for one user turn, without its parts for tools.
QWEN3_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
MISTRAL_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'system' %}"
    "{{- '[SYSTEM_PROMPT]' + message.content[0].text + '[/SYSTEM_PROMPT]' }}{%- else %}"
    "{{- '[INST]' + message.content[0].text + '[/INST]' }}{%- endif %}{%- endfor %}"
)
MISTRAL_ADDED = "<unk> <s> </s> [INST] [/INST] [IMG] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] <pad>".split()
MISTRAL_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def draw(folder: Path, kind: str, seed: int, length: int = LENGTH) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    length += 24 if kind == "dev" else 0  # the system message
    options = {"kind": kind, "prompt": PROMPT, "steps": STEPS, "cfg": CFG, "guidance": GUIDANCE, "seed": seed}
    options |= {
        "strength": STRENGTH,
        "length": length,
        "width": 16 * dice.choice([3, 4]),
        "height": 16 * dice.choice([1, 2]),
    }
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    draw_picture_files(folder, dice)
    pipeline = draw_pipeline(folder, kind, dice, seed)
    write_ids(folder, pipeline, kind, length)
    with torch.no_grad():
        reference = parts(folder, pipeline.transformer, dice, kind, seed) | text_states(pipeline, length)
        reference |= (
            klein_pictures(folder, pipeline, options) if kind == "klein" else dev_pictures(folder, pipeline, options)
        )
    tensors = {name: tensor.clone().contiguous() for name, tensor in reference.items()}
    save_file(tensors, folder / "reference.safetensors")


def draw_pipeline(folder: Path, kind: str, dice: random.Random, seed: int) -> Any:
    tokenizer, text = (draw_qwen3 if kind == "klein" else draw_mistral)(folder, dice, seed)
    hidden, groups, levels = text.config.get_text_config().hidden_size, 2, 4
    vae = build_autoencoder({
        "block_out_channels": [groups * dice.choice([1, 2, 3]) for _ in range(levels)], "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 1, "norm_num_groups": groups, "use_quant_conv": True, "use_post_quant_conv": True,
    })  # fmt: skip
    vae = save_drawn(vae, folder / "vae", spread, seed)
    transformer = draw_transformer(dice, hidden, vae.config.latent_channels, kind == "dev")
    transformer = save_drawn(transformer, folder / "transformer", spread, seed)
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096, shift=3.0,
        use_dynamic_shifting=True,
    )  # fmt: skip
    scheduler.save_pretrained(folder / "scheduler")
    made = Flux2KleinPipeline if kind == "klein" else Flux2Pipeline
    pipeline = made(scheduler, vae, text, tokenizer, transformer)
    index = {"_class_name": made.__name__, "transformer": ["diffusers", "Flux2Transformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of weights of a size at which every part of the model shows in its output."""
    if name.startswith("bn."):
        return (1.5, 0.3) if name.endswith("var") else (0.0, 0.3)
    if "norm" in name and name.endswith("weight") and len(shape) == 1:
        return 1.0, 0.2
    if name.endswith("bias"):
        return 0.0, 0.2
    return 0.0, (1 if "embed_tokens" in name else math.prod(shape[1:])) ** -0.5


def sized(dice: random.Random) -> dict[str, Any]:
    """A language model's numbers, in the config."""
    kv_heads = dice.choice([1, 2])
    return {
        "hidden_size": dice.choice([16, 32]), "intermediate_size": dice.choice([32, 40]), "num_hidden_layers": 4,
        "num_attention_heads": 2 * kv_heads, "num_key_value_heads": kv_heads, "head_dim": 8, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip


def draw_qwen3(folder: Path, dice: random.Random, seed: int) -> tuple[Any, Any]:
    draw_qwen_tokenizer(folder / "tokenizer", prompts(7)[60:] + [PROMPT] * 20, QWEN3_ADDED)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.chat_template = QWEN3_TEMPLATE
    config = Qwen3Config(
        vocab_size=len(tokenizer), rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True, **sized(dice)
    )  # fmt: skip
    return tokenizer, draw_text_encoder(folder, Qwen3ForCausalLM(config), seed)


def draw_mistral(folder: Path, dice: random.Random, seed: int) -> tuple[Any, Any]:
    tokenizer = draw_tekken(folder / "tokenizer")
    text = sized(dice) | {
        "vocab_size": len(tokenizer),
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e9,
        "model_type": "mistral",
    }
    text |= {"sliding_window": None}
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 28, "patch_size": 14, "head_dim": 8,
    }  # fmt: skip
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=tokenizer.convert_tokens_to_ids("[IMG]")
    )
    return Processor(tokenizer), draw_text_encoder(folder, Mistral3ForConditionalGeneration(config), seed)


def draw_text_encoder(folder: Path, model: Any, seed: int) -> Any:
    model.save_pretrained(folder / "text_encoder")
    redraw(folder / "text_encoder/model.safetensors", spread, seed)
    (folder / "text_encoder/generation_config.json").unlink(missing_ok=True)
    return type(model).from_pretrained(folder / "text_encoder").eval()


def draw_tekken(folder: Path) -> PreTrainedTokenizerFast:
    """tokenizer.json alone, with its rules in it."""
    words = pre_tokenizers.Split(Regex(MISTRAL_WORDS), behavior="isolated")
    texts = [*prompts(7)[60:], *[SYSTEM_MESSAGE, PROMPT] * 20]
    merges = list(dict.fromkeys(QWEN_MERGES + train_bpe(texts, words, 200)))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = dict.fromkeys([*MISTRAL_ADDED, *letters, *("".join(pair) for pair in merges)])
    engine = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(vocab)}, merges=merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MISTRAL_ADDED])
    folder.mkdir(parents=True)
    engine.save(str(folder / "tokenizer.json"), pretty=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", chat_template=MISTRAL_TEMPLATE,
    )  # fmt: skip


class Processor:
    """transformers' PixtralProcessor for conversations without pictures."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: Any, tokenize: bool, return_dict: bool, **options: Any) -> Any:
        texts = [self.tokenizer.apply_chat_template(each, tokenize=False) for each in messages]
        options.pop("add_generation_prompt")
        return self.tokenizer(texts, add_special_tokens=False, **options)


def draw_transformer(dice: random.Random, hidden: int, channels: int, guided: bool) -> Flux2Transformer2DModel:
    axes = dice.choice([(4, 4, 4, 4), (2, 4, 4, 6), (4, 6, 2, 4)])
    return Flux2Transformer2DModel(
        in_channels=4 * channels, num_layers=2, num_single_layers=2, attention_head_dim=sum(axes), axes_dims_rope=axes,
        num_attention_heads=dice.choice([2, 3]), joint_attention_dim=3 * hidden, mlp_ratio=dice.choice([2.0, 3.0]),
        timestep_guidance_channels=16, rope_theta=2000, guidance_embeds=guided,
    )  # fmt: skip


def write_ids(folder: Path, pipeline: Any, kind: str, length: int) -> None:
    """ids.json: strings and the pipeline's ids of them without padding, the last one too long for it."""
    texts = [*prompts(5)[-24:], "fox, 狐狸 " * 100]
    if kind == "klein":
        templated = [
            pipeline.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            for text in texts
        ]
        rows = pipeline.tokenizer(templated, truncation=True, max_length=length)["input_ids"]
    else:
        rows = pipeline.tokenizer.apply_chat_template(
            format_input(texts), add_generation_prompt=False, tokenize=True, return_dict=True, truncation=True,
            max_length=length,
        )["input_ids"]  # fmt: skip
    data = json.dumps([texts, rows], ensure_ascii=False, separators=(",", ":"))
    (folder / "ids.json").write_text(data, encoding="utf-8")


def draw_picture_files(folder: Path, dice: random.Random) -> None:
    """Two mosaics whose sides are no multiples of a token's."""
    for index, size in enumerate([(66, 65), (70, 66)]):
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(folder / f"picture{index + 1}.png")


def open_pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(folder / f"picture{index}.png").convert("RGB") for index in (1, 2)]


def draw_inputs(folder: Path, seed: int, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """inputs.safetensors: standard normal, as good as; only its description need be stored."""
    path = folder / "inputs.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    redraw(path, lambda name, shape: (0.0, 1.0), seed)
    return load_file(path)


def parts(
    folder: Path, model: Flux2Transformer2DModel, dice: random.Random, kind: str, seed: int
) -> dict[str, torch.Tensor]:
    """Outputs of one block of each kind, and of the transformer with 0, 1 and 2 references; odd sides among
    the grids. And with one whose keys and values are kept."""
    grids, length = [(3, 5), (4, 2), (5, 3)], dice.choice([5, 9])
    dims, config = model.inner_dim, model.config
    tokens = [rows * columns for rows, columns in grids]
    given = draw_inputs(
        folder, seed, txt=(1, length, dims), features=(1, length, config.joint_attention_dim),
        img=(1, sum(tokens), dims), x=(1, sum(tokens), config.in_channels), mod_img=(1, 6 * dims),
        mod_txt=(1, 6 * dims), mod_single=(1, 3 * dims),
    )  # fmt: skip
    txt, features, img, x = (given[name] for name in ("txt", "features", "img", "x"))
    mods = [given[f"mod_{name}"] for name in ("img", "txt", "single")]
    txt_ids = Flux2KleinPipeline._prepare_text_ids(features)
    places = [Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, *grids[0]))]
    places.append(Flux2KleinPipeline._prepare_image_ids([torch.zeros(1, 1, *grid) for grid in grids[1:]]))
    img_ids = torch.cat(places, dim=1)
    rope = [torch.cat(pair) for pair in zip(model.pos_embed(txt_ids[0]), model.pos_embed(img_ids[0]), strict=True)]
    txt_out, img_out = model.transformer_blocks[0](img, txt, mods[0], mods[1], rope)
    both = torch.cat([txt, img], dim=1)
    single_out = model.single_transformer_blocks[0](both, None, mods[2], rope)
    out = {"grids": torch.tensor(grids), "double.img": img_out, "double.txt": txt_out, "single": single_out}
    options: dict[str, Any] = {"timestep": torch.tensor([0.6181]), "txt_ids": txt_ids, "return_dict": False}
    options |= {"encoder_hidden_states": features, "guidance": torch.tensor([GUIDANCE]) if kind == "dev" else None}
    for count in (0, 1, 2):
        stop = sum(tokens[: count + 1])
        out[f"v{count}"] = model(x[:, :stop], img_ids=img_ids[:, :stop], **options)[0][:, : tokens[0]]
    if kind == "klein":
        out |= kept_parts(model, x, img_ids, tokens, options)
    return out | {"t": options["timestep"]}


def kept_parts(
    model: Flux2Transformer2DModel, x: torch.Tensor, ids: torch.Tensor, tokens: list[int], given: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The step that keeps both references' keys and values, and a later one that uses them."""
    with_cache = keeping(model)
    turned = [torch.cat([each[:, tokens[0] :], each[:, : tokens[0]]], dim=1) for each in (x, ids)]
    first, cache = with_cache(
        turned[0], img_ids=turned[1], kv_cache_mode="extract", num_ref_tokens=sum(tokens[1:]), **given
    )
    later = with_cache(
        x[:, : tokens[0]] * 0.9, img_ids=ids[:, : tokens[0]], kv_cache_mode="cached", kv_cache=cache,
        **(given | {"timestep": torch.tensor([0.3])}),
    )[0]  # fmt: skip
    return {"kept.first": first, "kept.later": later}


def keeping(model: Flux2Transformer2DModel) -> Flux2Transformer2DModel:
    """A copy of the transformer with the processors that the KV pipeline puts into it."""
    model = copy.deepcopy(model)
    for block in model.transformer_blocks:
        block.attn.set_processor(module.Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(module.Flux2KVParallelSelfAttnProcessor())
    return model


def text_states(pipeline: Any, length: int) -> dict[str, torch.Tensor]:
    """What the pipeline hands to the transformer as text."""
    options = {"max_sequence_length": length, "text_encoder_out_layers": TEXT_LAYERS}
    texts = {"prompt": PROMPT, "blank": ""}
    return {f"text.{name}": pipeline.encode_prompt(text, **options)[0] for name, text in texts.items()}


def levels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((image * 255).round().astype(np.uint8))


def common_options(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "np", "max_sequence_length": options["length"],
        "text_encoder_out_layers": TEXT_LAYERS,
    }  # fmt: skip


def seeded(options: dict[str, Any]) -> torch.Generator:
    return torch.Generator().manual_seed(options["seed"])


def klein_pictures(folder: Path, pipeline: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Seven ways, as uint8; where no size is given, it is the first reference's."""
    common, size = common_options(options), {"width": options["width"], "height": options["height"]}
    first, second = open_pictures(folder)

    def run(made: Any = pipeline, **more: Any) -> torch.Tensor:
        return levels(made(**common, generator=seeded(options), **more).images[0])

    keeping_pipeline = Flux2KleinKVPipeline(
        pipeline.scheduler, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, keeping(pipeline.transformer)
    )
    inpainting = Flux2KleinInpaintPipeline(
        pipeline.scheduler, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.transformer
    )
    mask = Image.new("L", MASKED_SIZE)
    mask.paste(255, MASKED_BOX)
    inpaint = {"image": first.resize(MASKED_SIZE, Image.Resampling.NEAREST), "mask_image": mask, "strength": STRENGTH}
    for each in (keeping_pipeline, inpainting):
        each.set_progress_bar_config(disable=True)
    return {
        "picture.cfg": run(guidance_scale=CFG, **size),
        "picture.seed": run(guidance_scale=1.0, **size),
        "picture.one": run(image=first, guidance_scale=1.0),
        "picture.two": run(image=[first, second], guidance_scale=CFG, **size),
        "picture.kept": run(keeping_pipeline, image=[first, second], **size),
        "picture.masked": run(inpainting, guidance_scale=CFG, **inpaint),
        "picture.image": levels(from_picture(folder, pipeline, options).images[0]),
    }


def from_picture(folder: Path, pipeline: Any, options: dict[str, Any]) -> Any:
    """Part of the schedule, from a picture with as much noise as its first sigma says; diffusers has no pipeline for
    it, so that the text-to-image pipeline is given the latents and the sigmas."""
    size = options["width"], options["height"]
    picture = open_pictures(folder)[0].resize(size, Image.Resampling.LANCZOS)
    clean = pipeline._encode_vae_image(pipeline.image_processor.preprocess(picture), seeded(options))
    noise = torch.randn(clean.shape, generator=seeded(options))
    start = int(STEPS - min(STEPS * STRENGTH, STEPS))
    sigmas = np.linspace(1.0, 1 / STEPS, STEPS)[start:]
    pipeline.scheduler.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(clean.shape[2] * clean.shape[3], STEPS))
    latents = pipeline.scheduler.scale_noise(clean, pipeline.scheduler.timesteps[:1], noise)
    return pipeline(
        **common_options(options), latents=latents, sigmas=sigmas, guidance_scale=1.0, width=size[0], height=size[1]
    )


def dev_pictures(folder: Path, pipeline: Any, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    common, size = common_options(options), {"width": options["width"], "height": options["height"]}

    def run(**more: Any) -> torch.Tensor:
        return levels(pipeline(**common, generator=seeded(options), guidance_scale=GUIDANCE, **more).images[0])

    return {"picture.seed": run(**size), "picture.two": run(image=open_pictures(folder), **size)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=["klein", "dev"], default="klein")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=LENGTH)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.kind, arguments.seed, arguments.length)
