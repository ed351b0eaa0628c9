"""Draws a tiny random prompt upsampler in its published layout, with what transformers and diffusers make of it.

    python tests/references/upsampler.py FOLDER [--seed N]

FOLDER gets pup/ (a Qwen3.5 with layers of both kinds and a vision tower, its tokenizer and processor, and
system_prompts.json), three pictures, cases.json (ids, positions, tokens and captions of requests, and answers with
boxes reconciled) and reference.safetensors: the logits after each question. Needs torch, diffusers and transformers.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.modular_pipelines.flux3 import prompt_upsampler
from flux2 import spread
from PIL import Image
from safetensors.torch import save_file
from text_prompts import prompts
from text_tokenizers import QWEN3_ADDED, draw_qwen_tokenizer, write_json
from transformers import (
    Qwen2Tokenizer,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from weight_descriptions import redraw

NEW_TOKENS = 40
# Qwen3.5's, as far as one question with a system prompt goes.
TEMPLATE = (
    "{%- macro shown(content) %}{%- if content is string %}{{- content }}{%- else %}{%- for part in content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{%- endmacro %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + shown(message.content)|trim + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"
)
SYSTEM = {
    "t2i": "Write a caption of the picture. " * 4, "i2i": " Say what is to change.\n",
    "t2i_bbox": "Caption, then a table.", "i2i_bbox": "What changes, then a table.",
}  # fmt: skip
BOXES = [{"id": "cat_1", "desc": "a cat", "bbox": [0.1, 0.2, 0.51, 0.8]}, {"bbox": [0, 0.5, 1, 0.7555]}]
MOVED = [{"id": "cup", "desc": "杯", "from": "ref_image_0", "src_bbox": [0, 0, 0.5, 0.5], "tgt_bbox": [0.5, 0.5, 1, 1]}]
QUESTIONS: list[tuple[str, list[int], Any]] = [
    ("a cat", [], None), ("  fox, 狐狸 नमस्ते " + "and a dog " * 20, [], None), ("make it red", [0], None),
    ("put the first into the second", [0, 1, 2], None), ("two cats ", [], BOXES), ("move the cup", [1, 0], MOVED),
]  # fmt: skip


def draw(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    place = folder / "pup"
    place.mkdir(parents=True, exist_ok=True)
    processor = draw_processor(place)
    model = draw_model(place, processor.tokenizer, dice, seed)
    write_json(place / "system_prompts.json", SYSTEM)
    prompt_upsampler.SYSTEM_PROMPTS = SYSTEM
    pictures = draw_pictures(folder, dice)
    with torch.no_grad():
        rows, logits = zip(*(answer(model, processor, pictures, *each) for each in QUESTIONS), strict=True)
    made = {"questions": rows, "answers": [reconciled(dice) for _ in range(24)]}
    (folder / "cases.json").write_text(json.dumps(made, ensure_ascii=False, indent=None), encoding="utf-8")
    save_file({str(place): each for place, each in enumerate(logits)}, folder / "reference.safetensors")


def draw_processor(folder: Path) -> Qwen3VLProcessor:
    with tempfile.TemporaryDirectory() as name:
        draw_qwen_tokenizer(Path(name) / "tokenizer", prompts(7)[60:], QWEN3_ADDED)
        Qwen2Tokenizer.from_pretrained(Path(name) / "tokenizer").save_pretrained(folder)
    write_json(folder / "tokenizer.json", json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    tokenizer = Qwen3_5Tokenizer.from_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, size=size)
    said = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, "merge_size": 2, "size": size}
    said |= {"temporal_patch_size": 2, "image_mean": images.image_mean, "image_std": images.image_std}
    write_json(folder / "preprocessor_config.json", said)
    return Processor(images, tokenizer, SimpleNamespace(), chat_template=TEMPLATE)


class Processor(Qwen3VLProcessor):
    """For pictures; videos would need torchvision."""

    def check_argument_for_proper_class(self, *_: Any) -> None:
        return None


def draw_model(folder: Path, tokenizer: Any, dice: random.Random, seed: int) -> Any:
    kv_heads, key_heads = dice.choice([1, 2]), dice.choice([1, 2])
    hidden = 32 * dice.choice([1, 2])
    text = {
        "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": dice.choice([32, 64]),
        "num_hidden_layers": 4, "num_attention_heads": 2 * kv_heads, "num_key_value_heads": kv_heads, "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e7, "partial_rotary_factor": 0.5,
        },
        "linear_num_key_heads": key_heads, "linear_num_value_heads": key_heads * dice.choice([1, 2]),
        "linear_key_head_dim": 8, "linear_value_head_dim": dice.choice([16, 32]),
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": hidden,
        "num_position_embeddings": 16,
    }  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    config = Qwen3_5Config(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)
    redraw(folder / "model.safetensors", spread_of_upsampler, seed)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": stops, "pad_token_id": stops[1]})
    return Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def spread_of_upsampler(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Norms less one; decays of all speeds."""
    if name.endswith("A_log"):
        return -1.0, 1.0
    if name.endswith("dt_bias"):
        return 0.0, 0.5
    mean, size = spread(name, shape)
    centred = "norm" in name and "linear_attn" not in name and "visual" not in name
    return (mean - 1.0 if centred else mean), size


def draw_pictures(folder: Path, dice: random.Random) -> list[Image.Image]:
    out = []
    for index, size in enumerate([(40, 70), (64, 33), (90, 40)]):
        noise = np.random.default_rng(dice.randrange(10**6)).integers(0, 255, (5, 7, 4 if index == 2 else 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(folder / f"picture{index + 1}.png")
        out.append(Image.open(folder / f"picture{index + 1}.png"))
    return out


def answer(model: Any, processor: Any, pictures: Any, request: str, shown: list[int], boxes: Any) -> tuple[Any, Any]:
    """What diffusers writes, and, on the way there, ids, positions, tokens and the first logits."""
    seen: dict[str, Any] = {}
    generate, decode = model.generate, processor.decode

    def recording(**given: Any) -> Any:
        seen["ids"] = given["input_ids"][0].tolist()
        first = model(**{name: value for name, value in given.items() if name not in ("max_new_tokens", "do_sample")})
        seen["logits"] = first.logits[0, -1]
        grids, kinds = given.get("image_grid_thw"), given["mm_token_type_ids"]
        seen["positions"] = model.model.get_rope_index(given["input_ids"], kinds, image_grid_thw=grids)[0][
            :, 0
        ].tolist()
        model.model.rope_deltas = None
        return generate(**given)

    def reading(ids: torch.Tensor, **given: Any) -> str:
        seen["tokens"] = ids.tolist()
        return decode(ids, **given)

    model.generate, processor.decode = recording, reading
    references = prompt_upsampler.prepare_references([pictures[place] for place in shown]) if shown else None
    caption = prompt_upsampler.upsample_prompt(model, processor, request, references, boxes, max_new_tokens=NEW_TOKENS)
    model.generate, processor.decode = generate, decode
    row = {"request": request, "pictures": shown, "boxes": boxes, "caption": caption}
    return row | {name: seen[name] for name in ("ids", "positions", "tokens")}, seen["logits"].clone()


def reconciled(dice: random.Random) -> Any:
    """An answer as an upsampler may write it, boxes, and what diffusers makes of them."""
    names = ["cat_1", "cup", "dog_1", "obj_2", "1x", "lamp"]
    boxes = dice.choice([BOXES, MOVED, [*BOXES, *MOVED]])
    rows = [drawn_row(dice, names) for _ in range(dice.randrange(5))]
    table = json.dumps(rows, ensure_ascii=False) + dice.choice(["", "", "", " ", " end", "]"])
    answer = "a picture [of] " + " ".join(f"<{name}>" for name in names if dice.random() < 0.7) + " " + table
    locked = prompt_upsampler.boxes_to_canvas(boxes)
    return {"boxes": boxes, "answer": answer, "caption": prompt_upsampler.reconcile_boxes(answer, locked)}


def drawn_row(dice: random.Random, names: list[str]) -> Any:
    places = [
        [100, 200, 510, 800], [101, 202, 509, 800], [0, 500, 1000, 756], [500, 500, 1000, 1000], [0.1, 0.2, 0.3, 0.4],
        [5, 5, 5, 9], [1, 2, 3], None, "here", [0, 0, 2000, 10], [True, 0, 9, 9], [10.5, 20, 300, 400],
        [0, 0, 500, 500],
    ]  # fmt: skip
    row = {"id": dice.choice([*names, 7]), "desc": dice.choice(["a thing ", "", 3, "狐"])}
    if dice.random() < 0.5:
        return row | {"bbox": dice.choice(places)}
    origin = dice.choice(["target", "ref_image_0", "ref_image_x", None])
    return row | {"from": origin, "src_bbox": dice.choice(places), "tgt_bbox": dice.choice(places)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.folder, arguments.seed)
