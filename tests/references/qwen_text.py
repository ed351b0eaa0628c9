"""Draws Qwen's language models, tiny and random, as transformers saves them, with what transformers makes of them.

    python tests/references/qwen_text.py FOLDER [--seed N]

FOLDER gets qwen2_5/ and qwen3/, each with config.json, model.safetensors and reference.safetensors: token ids with two
pictures among them, their grids and positions, rope tables, the hidden state after every layer, and the last one after
the norm (float32; for Qwen3 with deepstack features). qwen3_text/ is the model without pictures: token ids, and
transformers' hidden_states with and without padding. Needs torch and transformers.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLModel
from weight_descriptions import redraw

VOCABULARY, IMAGE, VIDEO, START, END = 120, 110, 111, 112, 113
DEEPSTACK = 2


def language(draw: torch.Generator, head: int, sections: list[int]) -> dict[str, Any]:
    """The numbers of a text_config."""

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    kv_heads = between(1, 2)
    heads = 2 * kv_heads
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": float(between(10_000, 5_000_000))}
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": heads * head,
        "intermediate_size": 16 * between(2, 5),
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": rope,
    }


def draw_qwen2_5(draw: torch.Generator) -> Qwen2_5_VLModel:
    text = language(draw, 16, [2, 3, 3])
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": text["hidden_size"],
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START
    )
    return Qwen2_5_VLModel(config)


def draw_qwen3(draw: torch.Generator) -> Qwen3VLModel:
    text = language(draw, 32, [6, 5, 5])
    text |= {
        "head_dim": 32,
        "hidden_size": 48,
    }  # heads x head_dim is not the width: a port that takes it for granted fails
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": text["hidden_size"],
    }
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START
    )
    return Qwen3VLModel(config)


def draw_qwen3_text(draw: torch.Generator) -> Qwen3Model:
    text = language(draw, 16, [])
    del text["rope_parameters"]["mrope_section"]
    text |= {"head_dim": 16, "hidden_size": 24, "vocab_size": 60, "num_hidden_layers": 4}
    return Qwen3Model(Qwen3Config(**text))


@torch.no_grad()
def write_text_only(folder: Path, model: Qwen3Model, draw: torch.Generator, seed: int) -> None:
    """Every hidden state, of ids alone and of the same ids with padding after them."""
    model, file = model.eval().float(), folder / "model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(contiguous(model.state_dict()), file)
    redraw(file, spread, seed)
    model.load_state_dict(load_file(file))
    ids = torch.randint(0, 60, (1, 11), generator=draw)
    padded, mask = torch.nn.functional.pad(ids, (0, 5)), torch.nn.functional.pad(torch.ones_like(ids), (0, 5))
    states = model(ids, output_hidden_states=True).hidden_states
    with_padding = model(padded, attention_mask=mask, output_hidden_states=True).hidden_states
    out = {"ids": ids[0].int()} | {f"state{index}": state[0] for index, state in enumerate(states)}
    out |= {f"padded{index}": state[0, : ids.shape[1]] for index, state in enumerate(with_padding)}
    config = model.config.to_dict() | {"architectures": ["Qwen3Model"]}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n", encoding="utf-8")
    save_file(contiguous(out), folder / "reference.safetensors")


def sequence(draw: torch.Generator, grids: list[tuple[int, int]]) -> list[int]:
    """Words, then each picture between its marks, with words after it."""

    def words(count: int) -> list[int]:
        return torch.randint(0, 100, (count,), generator=draw).tolist()

    ids = words(5)
    for rows, columns in grids:
        ids += [START, *[IMAGE] * (rows * columns), END, *words(3)]
    return ids


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Norms are not ones and biases not zeros, as they start: that would hide a swapped name."""
    return float("norm" in name and name.endswith("weight")), 0.1


@torch.no_grad()
def write(folder: Path, model: Any, draw: torch.Generator, seed: int) -> None:
    model = model.eval().float()
    text = model.language_model
    file = folder / "model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(contiguous(text.state_dict()), file)
    redraw(file, spread, seed)
    text.load_state_dict(load_file(file))
    grids = [(2, 3), (4, 2)]  # merged: what the language model sees
    ids = torch.tensor([sequence(draw, grids)])
    merge = model.config.vision_config.spatial_merge_size
    thw = torch.tensor([[1, rows * merge, columns * merge] for rows, columns in grids])
    positions, _ = model.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=thw)
    embeds = text.embed_tokens(ids)
    pictures = (ids == IMAGE)[0]
    extra: dict[str, Any] = {}
    out = {"ids": ids[0].int(), "grids": torch.tensor(grids).int(), "positions": positions[:, 0].int()}
    if hasattr(text, "_deepstack_process"):
        features = [torch.randn(int(pictures.sum()), embeds.shape[-1], generator=draw) for _ in range(DEEPSTACK)]
        extra = {"visual_pos_masks": ids == IMAGE, "deepstack_visual_embeds": features}
        out |= {f"deepstack{index}": feature for index, feature in enumerate(features)}
    keep: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, result: keep.append(first(result))) for layer in text.layers]
    last = text(inputs_embeds=embeds, position_ids=positions, use_cache=False, **extra).last_hidden_state
    for hook in hooks:
        hook.remove()
    cos, sin = text.rotary_emb(embeds, positions)
    half = cos.shape[-1] // 2
    out |= {"cos": cos.reshape(-1, 2 * half)[:, :half], "sin": sin.reshape(-1, 2 * half)[:, :half], "last": last}
    out |= {f"layer{index}": hidden for index, hidden in enumerate(keep)}  # before deepstack features are added
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n", encoding="utf-8")
    save_file(contiguous(out), folder / "reference.safetensors")


def first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    write(options.folder / "qwen2_5", draw_qwen2_5(draw), draw, options.seed)
    write(options.folder / "qwen3", draw_qwen3(draw), draw, options.seed)
    write_text_only(options.folder / "qwen3_text", draw_qwen3_text(draw), draw, options.seed)


if __name__ == "__main__":
    main()
