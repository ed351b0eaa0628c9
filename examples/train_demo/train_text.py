"""Train the text encoders: CLIP and T5 of the FLUX.1 demo, the Qwen2.5-VL language model of the Qwen-Image demo.

In: captions. Out: a run folder per encoder. Each learns to name the scene from its own output (CLIP from the pooled
vector, T5 from every token, Qwen from the tokens after the prompt) through a linear head that is thrown away. Random
frozen encoders lose the order of the words; after this it is one linear step away, and the encoders stay frozen.

`clip_open`, `t5_open` and `qwen_text_open` go on from these with captions that leave things open; what the old
captions gave stays near, so that the transformer need not learn them again.
"""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path

import models
import numpy as np
import open_captions
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
HEAD_STEPS = 100


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


def open_captions_drawn(rng: np.random.Generator, count: int, chinese: bool) -> tuple[list[str], Tensor]:
    """Captions of `open_captions.py`'s mix, and what they say as class numbers [B, 9]."""
    said = open_captions.sample_mixed(rng, count)
    texts = [open_captions.worded(s, rng, "zh" if chinese and rng.random() < 0.3 else "en") for s in said]
    return texts, torch.tensor([[*scenes.targets(scene), 0] for scene in said])


def scene_loss(logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy over all tokens [B, T, C], and the share of scenes named right by the last of them."""
    parts = logits.float().split([*scenes.TARGET_SIZES, 2], -1)
    losses, right = [], torch.ones(len(rows), dtype=torch.bool)
    for i, part in enumerate(parts):
        wanted = rows[:, i, None].expand(part.shape[:2])
        losses.append(F.cross_entropy(part.flatten(0, 1), wanted.flatten()))
        right &= (part[:, -1].argmax(-1) == rows[:, i]) | (rows[:, i] < 0)
    return torch.stack(losses).mean(), right.float().mean()


def features_of(kind: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """What the head reads: [B, tokens, C]."""
    if kind == "clip":
        return clip_features(model, tokenizer, texts)[:, None]
    if kind == "t5":
        return t5_features(model, tokenizer, texts)
    hidden, mask = qwen_features(model, tokenizer, texts)
    last = mask.sum(1)[:, None] + torch.arange(-5, 0)  # the five tokens after the prompt
    return hidden[torch.arange(len(hidden))[:, None], last]


def anchored_features(kind: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """All that a transformer reads of the captions, one row a token."""
    if kind == "qwen":
        hidden, mask = qwen_features(model, tokenizer, texts)
        return hidden[mask]
    return features_of(kind, model, tokenizer, texts).flatten(0, 1)


def naming_loss(kind: str, module: nn.ModuleDict, tokenizer: PreTrainedTokenizerBase, batch: int) -> training.Loss:
    model = module["model"]

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        texts, rows = drawn_captions(rng, batch, kind == "qwen", held_out=step % 100 == 99)
        loss, right = scene_loss(module["head"](features_of(kind, model, tokenizer, texts)), rows)
        # Held-out scenes are only measured: every hundredth step scores them and moves nothing.
        return {"loss": loss * 0 if step % 100 == 99 else loss, "held_out" if step % 100 == 99 else "right": right}

    return loss_of


def further_loss(kind: str, module: nn.ModuleDict, tokenizer: PreTrainedTokenizerBase, batch: int) -> training.Loss:
    """Name what open captions say; stay near the first encoder on the captions it knows."""
    model = module["model"]
    first = copy.deepcopy(model).requires_grad_(False)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        texts, rows = open_captions_drawn(rng, batch, kind == "qwen")
        features = features_of(kind, model, tokenizer, texts)
        if step < HEAD_STEPS:  # a fresh head has nothing to teach yet
            features = features.detach()
        loss, right = scene_loss(module["head"](features), rows)
        known, _ = drawn_captions(rng, batch // 2, kind == "qwen", held_out=False)
        with torch.no_grad():
            aim = anchored_features(kind, first, tokenizer, known)
        moved = (anchored_features(kind, model, tokenizer, known) - aim).pow(2).mean() / aim.var()
        return {"loss": loss + moved, "moved": moved, "right": right}

    return loss_of


def main() -> None:
    name = sys.argv.pop(1)
    kind, further = name.split("_")[0], name.endswith("_open")
    arguments = training.arguments(steps=800, lr=1e-3 if further else 2e-3)
    first = training.ROOT / ("qwen_text" if kind == "qwen" else kind)
    folder = training.ROOT / arguments.name if arguments.name else first.with_name(first.name + "_open" * further)
    run = training.Run(folder, arguments.steps, arguments.lr, ema=0.99, save_seconds=30)
    if further and not folder.exists():
        shutil.copytree(first / "tokenizer", folder / "tokenizer")
        if kind == "t5":
            vocabularies.extend_t5(folder / "tokenizer")
    tokenizer = tokenizer_of(kind, folder / "tokenizer")
    model = {"clip": models.clip_text, "t5": models.t5_text, "qwen": models.qwen_text}[kind](tokenizer)
    if further:
        state = torch.load(first / "ema.pt")
        model.load_state_dict({key[6:]: value for key, value in state.items() if key.startswith("model.")})
    width = 64 if kind == "clip" else 128
    module = nn.ModuleDict({"model": model, "head": nn.Linear(width, sum(scenes.TARGET_SIZES) + 2)})
    loss = further_loss if further else naming_loss
    training.train(run, module, loss(kind, module, tokenizer, arguments.batch))


if __name__ == "__main__":
    main()
