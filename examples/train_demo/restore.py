"""Make run folders from the exported models, so that training can continue when only weights/demo is left.

In: weights/demo/<family>. Out: for each run `ema.pt` (as precise as the bf16 that was exported), its tokenizer, its log
and the latents' statistics; no optimiser's state. The inverse of `export.py`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import models
import numpy as np
import train_text
import training
from export import DEMO
from safetensors.torch import load_file
from torch import Tensor, nn


def tensors(path: Path) -> dict[str, Tensor]:
    (file,) = path.glob("*.safetensors")
    return {name: value.float() for name, value in load_file(file).items()}


def put(run: str, state: dict[str, Tensor], tokenizer: Path | None = None) -> None:
    folder = training.ROOT / run
    folder.mkdir(parents=True, exist_ok=True)
    training.save(folder / "ema.pt", state)
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)


def put_text(run: str, kind: str, weights: Path, tokenizer: Path, rename: dict[str, str]) -> None:
    """A text encoder's run; parts that were not exported (a vision tower) keep fresh weights."""
    put(run, {}, tokenizer)
    words = train_text.tokenizer_of(kind, training.ROOT / run / "tokenizer")
    model: nn.Module = {"clip": models.clip_text, "t5": models.t5_text, "qwen": models.qwen_text}[kind](words)
    state = model.state_dict()
    for name, value in tensors(weights).items():
        for old, new in rename.items():
            name = name.replace(old, new, 1)
        if name not in state:  # transformers 5 dropped CLIP's prefix
            name = name.removeprefix("text_model.")
        if state[name].shape != value.shape:
            raise SystemExit(f"{weights}: {name} is {tuple(value.shape)}, not {tuple(state[name].shape)}")
        state[name] = value
    model.load_state_dict(state)
    put(run, {f"model.{name}": value for name, value in model.state_dict().items()})


def split_logs(folder: Path) -> None:
    """Each run's lines of training.jsonl back to its own log."""
    lines: dict[str, list[str]] = {}
    for line in (folder / "training.jsonl").read_text().splitlines():
        entry = json.loads(line)
        lines.setdefault(entry.pop("run"), []).append(json.dumps(entry))
    for run, entries in lines.items():
        (training.ROOT / run).mkdir(parents=True, exist_ok=True)
        (training.ROOT / run / "log.jsonl").write_text("\n".join(entries) + "\n")


def put_statistics(run: str, mean: np.ndarray, deviation: np.ndarray) -> None:
    np.savez(training.ROOT / run / "statistics.npz", mean=mean, deviation=deviation)


def flux(folder: Path) -> None:
    put_text("clip", "clip", folder / "text_encoder", folder / "tokenizer", {})
    put_text("t5", "t5", folder / "text_encoder_2", folder / "tokenizer_2", {})
    put("flux_guided", tensors(folder / "transformer"))
    put("flux_vae", tensors(folder / "vae"))
    config = json.loads((folder / "vae/config.json").read_text())
    mean, deviation = np.full(16, config["shift_factor"]), np.full(16, 1 / config["scaling_factor"])
    for run in ("flux", "flux_guided"):
        (training.ROOT / run).mkdir(exist_ok=True)
        put_statistics(run, mean, deviation)


def qwen(folder: Path) -> None:
    rename = {"model.": "model.language_model."}
    put_text("qwen_text", "qwen", folder / "text_encoder", folder / "tokenizer", rename)
    put("qwen", tensors(folder / "transformer"))
    put("qwen_vae", tensors(folder / "vae"))
    config = json.loads((folder / "vae/config.json").read_text())
    put_statistics("qwen", np.array(config["latents_mean"]), np.array(config["latents_std"]))


def hidream(folder: Path) -> None:
    put("hidream", {f"net.{name}": value for name, value in tensors(folder).items()})
    names = "added_tokens.json merges.txt special_tokens_map.json tokenizer.json tokenizer_config.json vocab.json"
    target = training.ROOT / "hidream/tokenizer"
    target.mkdir(exist_ok=True)
    for name in [*names.split(), "chat_template.jinja"]:
        shutil.copy(folder / name, target / name)


if __name__ == "__main__":
    family = sys.argv[1]
    source = DEMO / {"flux": "flux", "qwen": "qwen_image", "hidream": "hidream_o1"}[family]
    {"flux": flux, "qwen": qwen, "hidream": hidream}[family](source)
    split_logs(source)
