"""Draws FLUX.1's text parts and Qwen's tokenizer, tiny and random, in their real layouts, with what transformers makes
of them.

    python tests/references/flux_text.py FOLDER [--seed N] [--rules custom]

FOLDER gets clip/ and t5/ (config.json + model.safetensors as published), clip_saved/ and t5_saved/ (the same models as
the installed transformers saves them), tokenizers/ (every file kind a repository may hold), prompts.json (strings),
ids.json (transformers' ids of them) and reference.safetensors (token ids and float32 features). Needs torch and
transformers. tests/data/flux_text is seed 0 with --rules custom: the real character map takes 240 kB.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from text_tokenizers import draw_tokenizers, write_json
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention
from weight_descriptions import redraw, renamed


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of weights of a size at which every part of the model shows in its output."""
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.2
    if name.endswith("bias"):
        return 0.0, 0.2
    if "embed" in name or "relative_attention" in name or name == "shared.weight":
        return 0.0, 1.0
    return 0.0, shape[-1] ** -0.5


def save_drawn(model: Any, folder: Path, seed: int) -> Any:
    """Saves the model with drawn weights; gives it as the installed transformers reads it again."""
    model.save_pretrained(folder)
    redraw(folder / "model.safetensors", spread, seed)
    return type(model).from_pretrained(folder).eval()


def save_twice(model: Any, folder: Path, seed: int, config: dict[str, Any], prefix: str = "") -> Any:
    """As the installed transformers saves it, and with the published names and config.json."""
    saved = folder.with_name(folder.name + "_saved")
    model = save_drawn(model, saved, seed)
    folder.mkdir(exist_ok=True)
    names = load_file(saved / "model.safetensors")
    renamed(saved / "model.safetensors", folder / "model.safetensors", {prefix + name: name for name in names})
    write_json(folder / "config.json", config)
    return model


def draw_clip(folder: Path, draw: random.Random, seed: int) -> tuple[CLIPTextModel, torch.Tensor]:
    """A model and ids to try it on: [B, L], shaped as the tokenizer shapes them."""
    heads, length, vocab_size = draw.choice([1, 2, 3, 4]), draw.choice([16, 24, 77]), draw.randint(40, 80)
    start, end = vocab_size - 2, vocab_size - 1
    config = {
        "_name_or_path": "drawn", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0,
        "dropout": 0.0, "eos_token_id": draw.choice([2, end]), "hidden_act": draw.choice(["quick_gelu", "gelu"]),
        "hidden_size": heads * draw.choice([8, 12, 16]), "initializer_factor": 1.0, "initializer_range": 0.02,
        "intermediate_size": draw.choice([40, 64, 96]), "layer_norm_eps": draw.choice([1e-5, 1e-3]),
        "max_position_embeddings": length, "model_type": "clip_text_model", "num_attention_heads": heads,
        "num_hidden_layers": draw.randint(1, 3), "pad_token_id": 1, "projection_dim": 24, "torch_dtype": "float32",
        "transformers_version": "4.43.3", "vocab_size": vocab_size,
    }  # fmt: skip
    model = save_twice(CLIPTextModel(CLIPTextConfig(**config)), folder, seed, config, "text_model.")
    words = [[draw.randrange(vocab_size - 2) for _ in range(count)] for count in (0, 1, length // 2, length - 2)]
    words[2][1] = end  # a prompt may hold the end token's name
    return model, torch.tensor([[start, *row, *[end] * (length - 1 - len(row))] for row in words])


def draw_t5(folder: Path, draw: random.Random, seed: int) -> tuple[T5EncoderModel, torch.Tensor]:
    vocab_size, length = draw.randint(40, 80), draw.choice([48, 96, 130])
    config = {
        "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": draw.choice([40, 64, 88]),
        "d_kv": draw.choice([8, 12, 16]), "d_model": draw.choice([24, 32, 40]), "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True,
        "layer_norm_epsilon": draw.choice([1e-6, 1e-3]), "model_type": "t5", "num_decoder_layers": 2,
        "num_heads": draw.choice([2, 3, 4]), "num_layers": draw.randint(1, 2), "output_past": True, "pad_token_id": 0,
        "relative_attention_max_distance": draw.choice([20, 64, 128]),
        "relative_attention_num_buckets": draw.choice([8, 16, 32]), "tie_word_embeddings": False,
        "torch_dtype": "float32", "transformers_version": "4.43.3", "use_cache": True, "vocab_size": vocab_size,
    }  # fmt: skip
    model = save_twice(T5EncoderModel(T5Config(**config)), folder, seed, config)
    saved = folder.with_name(folder.name + "_saved") / "model.safetensors"
    names = {name: name for name in load_file(saved)}  # some versions write the table's other name as well
    renamed(saved, saved, names | {"encoder.embed_tokens.weight": "shared.weight"})
    words = [[draw.randrange(2, vocab_size) for _ in range(count)] for count in (3, length - 1)]
    return model, torch.tensor([[*row, 1, *[0] * (length - 1 - len(row))] for row in words])


def draw_buckets(draw: random.Random) -> dict[str, torch.Tensor]:
    """T5's bucket of each distance from -519 to 519, for FLUX.1's numbers and drawn ones."""
    distances = torch.arange(-519, 520)
    pairs = [(32, 128), (draw.choice([8, 16, 24, 40, 64]), draw.randint(20, 300))]
    return {
        f"buckets.{buckets}.{limit}": T5Attention._relative_position_bucket(distances, True, buckets, limit)
        for buckets, limit in pairs
    }


def draw(folder: Path, seed: int, rules: str = "nmt_nfkc") -> None:
    """Everything, into `folder`."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    draw_tokenizers(folder, seed, dice, rules)
    clip, clip_ids = draw_clip(folder / "clip", dice, seed)
    t5, t5_ids = draw_t5(folder / "t5", dice, seed)
    with torch.no_grad():
        clip_out, t5_out = clip(clip_ids), t5(t5_ids)
    reference = {
        "clip.ids": clip_ids,
        "clip.features": clip_out.last_hidden_state,
        "clip.pooled": clip_out.pooler_output,
    }
    reference |= {"t5.ids": t5_ids, "t5.features": t5_out.last_hidden_state} | draw_buckets(dice)
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, folder / "reference.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", default="nmt_nfkc", help="sentencepiece's character map; 'custom' is a small one")
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.seed, arguments.rules)
