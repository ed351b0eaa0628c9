"""Train the text encoders: CLIP and T5 of the FLUX.1 demo, the Qwen2.5-VL language model of the Qwen-Image demo.

In: captions. Out: a run folder per encoder. Each learns to name the scene from its own output (CLIP from the pooled
vector, T5 from every token, Qwen from the tokens after the prompt) through a linear head that is thrown away. Random
frozen encoders lose the order of the words; after this it is one linear step away, and the encoders stay frozen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import models
import numpy as np
import scenes
import torch
import torch.nn.functional as F
import training
import vocabularies
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    T5EncoderModel,
)

T5_LENGTH = 24
OUTLINED = ", outlined"
PREFIX_TOKENS = 34


def tokenizer_of(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers loads it from the files; they are written once and then kept."""
    if not (folder / "tokenizer_config.json").exists():
        if kind == "clip":
            vocabularies.write_clip(folder)
        elif kind == "t5":
            vocabularies.write_t5(folder, T5_LENGTH)
        else:
            vocabularies.write_qwen(folder, hidream=False)
    return (CLIPTokenizer if kind == "clip" else AutoTokenizer).from_pretrained(folder)


def clip_features(model: CLIPTextModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Pooled vectors [B, 64], as FLUX.1's pipeline computes them."""
    ids = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    longest = int(ids.argmax(-1).max()) + 1  # causal: what follows the end of the text changes nothing before it
    return model(ids[:, :longest]).pooler_output


def t5_features(model: T5EncoderModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """[B, T5_LENGTH, 128]; padding is attended to, as in FLUX.1's pipeline."""
    ids = tokenizer(texts, padding="max_length", max_length=T5_LENGTH, truncation=True, return_tensors="pt").input_ids
    return model(ids).last_hidden_state


def qwen_features(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """[B, L, 128] without the template's first words, padded right, and the mask of real tokens [B, L]."""
    filled = [vocabularies.QWEN_IMAGE_TEMPLATE.format(text) for text in texts]
    batch = tokenizer(filled, padding=True, padding_side="right", return_tensors="pt")
    hidden = model.model.language_model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    return hidden[:, PREFIX_TOKENS:], batch.attention_mask[:, PREFIX_TOKENS:].bool()


def drawn_captions(rng: np.random.Generator, count: int, chinese: bool, held_out: bool) -> tuple[list[str], Tensor]:
    """Captions, some of them asking for outlines, and the scenes as class numbers [B, 9]."""
    texts, rows = [], []
    for scene in scenes.sample(rng, count, held_out):
        outlined = rng.random() < 0.15
        language = "zh" if chinese and rng.random() < 0.35 else "en"
        text = scenes.varied_caption(scene, rng, language)
        texts.append(text + OUTLINED * outlined)
        unsized = language == "en" and "small" not in text and "large" not in text
        targets = scenes.targets(scene)
        rows.append([-100 if unsized and i in (2, 5) else t for i, t in enumerate(targets)] + [int(outlined)])
    return texts, torch.tensor(rows)


def scene_loss(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy over all tokens [B, T, C], and the share of scenes named right by the last of them."""
    parts = logits.float().split([*scenes.TARGET_SIZES, 2], -1)
    losses, right = [], torch.ones(len(rows), dtype=torch.bool)
    for i, part in enumerate(parts):
        wanted = rows[:, i, None].expand(part.shape[:2])
        losses.append(F.cross_entropy(part.flatten(0, 1), wanted.flatten()))
        right &= (part[:, -1].argmax(-1) == rows[:, i]) | (rows[:, i] < 0)
    return torch.stack(losses).mean(), right.float().mean()


def main() -> None:
    kind = sys.argv.pop(1)
    arguments = training.arguments(steps=800, lr=2e-3)
    folder = training.ROOT / (arguments.name or kind.replace("qwen", "qwen_text"))
    run = training.Run(folder, arguments.steps, arguments.lr, ema=0.99, save_seconds=30)
    tokenizer = tokenizer_of(kind, run.folder / "tokenizer")
    model = {"clip": models.clip_text, "t5": models.t5_text, "qwen": models.qwen_text}[kind](tokenizer)
    width = 64 if kind == "clip" else 128
    module = nn.ModuleDict({"model": model, "head": nn.Linear(width, sum(scenes.TARGET_SIZES) + 2)})

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        texts, rows = drawn_captions(rng, arguments.batch, kind == "qwen", held_out=step % 100 == 99)
        if kind == "clip":
            features = clip_features(model, tokenizer, texts)[:, None]
        elif kind == "t5":
            features = t5_features(model, tokenizer, texts)
        else:
            hidden, mask = qwen_features(model, tokenizer, texts)
            last = mask.sum(1)[:, None] + torch.arange(-5, 0)  # the five tokens after the prompt
            features = hidden[torch.arange(len(hidden))[:, None], last]
        loss, right = scene_loss(module["head"](features), rows)
        # Held-out scenes are only measured: every hundredth step scores them and moves nothing.
        return {"loss": loss * 0 if step % 100 == 99 else loss, "held_out" if step % 100 == 99 else "right": right}

    training.train(run, module, loss_of)


if __name__ == "__main__":
    main()
