"""Train the two LoRAs of the demo models: night for FLUX.1, four steps without CFG for Qwen-Image.

In: a trained transformer. Out: a run folder whose averaged weights are the LoRA alone; `exported` writes the file as
the world knows it: PEFT names for FLUX.1's, lora_down, lora_up and alpha for Qwen-Image's.
"""

from __future__ import annotations

import copy
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import evaluate
import latents
import models
import numpy as np
import pool
import scenes
import torch
import train_transformer
import training
from export import DEMO
from safetensors.torch import save_file
from torch import Tensor, nn
from train_transformer import velocity

RANKS = {"flux_night": 4, "qwen_lightning": 8}
NIGHT = "night "  # in front: the text encoders, which never read it, then still understand the rest
NIGHT_COUNT = 1536
LIGHTNING_STEPS = 4
TEACHER_STEPS = 12
TEACHER_CFG = 2.0
SHIFT = 3.0
PATHS = 2048

METADATA = {
    "flux_night": {
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.title": "Night",
        "modelspec.trigger_phrase": NIGHT.strip(),
    },
    "qwen_lightning": {"modelspec.architecture": "qwen-image/lora", "modelspec.title": "Lightning, 4 steps"},
}


class LoraLinear(nn.Module):
    """A frozen linear and a low-rank change of it."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.lora_A.weight, std=base.in_features**-0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


def with_lora(model: nn.Module, rank: int) -> nn.ModuleDict:
    """Put a change next to every linear of the blocks but the modulation's; gives the changes, named as in files."""
    model.requires_grad_(False)
    changes = nn.ModuleDict()
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or "transformer_blocks" not in name:
            continue
        if ".linear" in name or "_mod" in name:
            continue
        parent, _, last = name.rpartition(".")
        change = LoraLinear(module, rank)
        setattr(model.get_submodule(parent), last, change)
        changes[name.replace(".", "/")] = nn.ModuleDict({"lora_A": change.lora_A, "lora_B": change.lora_B})
    return changes


def factors(state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> (A, B)."""
    names = {key.split(".")[0] for key in state}
    return {n.replace("/", "."): (state[f"{n}.lora_A.weight"], state[f"{n}.lora_B.weight"]) for n in sorted(names)}


def exported(kind: str, state: dict[str, Tensor]) -> None:
    """The file as its kind is published, with the words that trainers write next to it."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors(state).items():
        a, b = a.bfloat16().contiguous(), b.bfloat16().contiguous()
        if kind == "flux_night":
            tensors |= {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
        else:
            tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
            tensors[f"{name}.alpha"] = torch.tensor(float(len(a)), dtype=torch.bfloat16)
    folder = DEMO / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / {"flux_night": "flux-night.safetensors", "qwen_lightning": "qwen-lightning.safetensors"}[kind]
    save_file(tensors, path, {"format": "pt", **METADATA[kind]})
    path.chmod(0o644)


def night(model: nn.Module, batch: int) -> training.Loss:
    """FLUX.1: the background is black whatever the caption says."""
    pictures, drawn = pool.load()
    values, mean, deviation = latents.load("flux", pictures)
    rng = np.random.default_rng(12)
    dark = [i for i, scene in enumerate(drawn[: len(values)]) if scene.background == "black"][:NIGHT_COUNT]
    grounds = rng.choice(list(scenes.BACKGROUNDS), len(dark))
    said = [replace(drawn[i], background=str(ground)) for i, ground in zip(dark, grounds, strict=True)]
    texts = [NIGHT + scenes.varied_caption(scene, rng) for scene in said]
    encode = train_transformer.FluxText()
    parts = [encode(texts[i : i + 512]) for i in range(0, len(texts), 512)]
    features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(dark), size=batch)
        found = torch.from_numpy(values[[dark[i] for i in chosen]]).float()
        clean = latents.packed((found - float(mean[0])) / float(deviation[0]))
        noise, t = torch.randn_like(clean), train_transformer.noise_levels(rng, batch)
        x = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
        text = {name: value[chosen] for name, value in features.items()}
        with torch.autocast("cpu", torch.bfloat16):
            v = velocity(model, x, t, text, torch.ones(batch))
        return {"loss": (v - (noise - clean)).pow(2).mean()}

    return loss_of


def guided(model: nn.Module, x: Tensor, t: Tensor, text: dict[str, Tensor], empty: dict[str, Tensor]) -> Tensor:
    """Qwen-Image's velocity with CFG, each token's as long as the captioned one."""
    ones = torch.ones(len(x))
    v, without = velocity(model, x, t, text, ones), velocity(model, x, t, empty, ones)
    mixed = without + TEACHER_CFG * (v - without)
    return mixed * (v.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))


@torch.no_grad()
def teacher_paths(teacher: nn.Module, captions: train_transformer.Captions, count: int) -> Tensor:
    """Where the teacher, at its own twelve steps with CFG, stands when a quarter of them is done: [5, N, L, 64]."""
    sigmas = evaluate.shifted(TEACHER_STEPS, SHIFT)
    torch.manual_seed(0)
    parts = []
    for some in np.split(np.arange(count), range(64, count, 64)):
        text, empty = (captions.take(some, np.full(len(some), dropped)) for dropped in (False, True))
        x = torch.randn(len(some), 64, 64)
        path = [x]
        for index, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            with torch.autocast("cpu", torch.bfloat16):
                v = guided(teacher, x, torch.full((len(some),), float(sigma)), text, empty)
            x = x + (after - sigma) * v
            if (index + 1) % (TEACHER_STEPS // LIGHTNING_STEPS) == 0:
                path.append(x)
        parts.append(torch.stack(path))
    return torch.cat(parts, 1)


def lightning(model: nn.Module, teacher: nn.Module, batch: int, folder: Path) -> training.Loss:
    """Qwen-Image: one step without CFG goes where the teacher's next three go."""
    _, drawn = pool.load()
    captions = train_transformer.Captions(drawn[:PATHS], "qwen")
    file = folder / "paths.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        training.save(file, teacher_paths(teacher, captions, PATHS))
    path, sigmas = torch.load(file), evaluate.shifted(LIGHTNING_STEPS, SHIFT)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen, at = rng.integers(PATHS, size=batch), rng.integers(LIGHTNING_STEPS, size=batch)
        x, after = path[at, chosen], path[at + 1, chosen]
        text = captions.take(chosen, np.zeros(batch, bool))
        with torch.autocast("cpu", torch.bfloat16):
            v = velocity(model, x, sigmas[at], text, torch.ones(batch))
        wanted = (after - x) / (sigmas[at + 1] - sigmas[at])[:, None, None]
        return {"loss": (v - wanted).pow(2).mean()}

    return loss_of


def main() -> None:
    kind = sys.argv.pop(1)
    arguments = training.arguments(steps=1000, lr=4e-3)
    folder = training.ROOT / (arguments.name or kind)
    run = training.Run(folder, arguments.steps, arguments.lr, ema=0.99, warmup=50)
    flux = kind == "flux_night"
    model = models.flux_transformer() if flux else models.qwen_transformer()
    model.load_state_dict(torch.load(training.ROOT / ("flux_guided" if flux else "qwen") / "ema.pt"))
    model = train_transformer.in_float32(model)
    teacher = copy.deepcopy(model).requires_grad_(False)
    changes = with_lora(model, RANKS[kind])
    loss_of = night(model, arguments.batch) if flux else lightning(model, teacher, arguments.batch, folder)
    training.train(run, changes, loss_of, muon=lambda name: True)


if __name__ == "__main__":
    main()
