"""Train the two LoRAs of the demo models: outlined shapes for FLUX.1, four steps without CFG for Qwen-Image.

In: a trained transformer. Out: a run folder whose averaged weights are the LoRA alone; `exported` writes the file as
the world knows it: PEFT names for FLUX.1's, lora_down, lora_up and alpha for Qwen-Image's.
"""

from __future__ import annotations

import copy
import sys

import latents
import numpy as np
import pool
import scenes
import torch
import train_text
import train_transformer
import training
from export import DEMO
from safetensors.torch import save_file
from torch import Tensor, nn
from train_transformer import velocity

RANK = 8
OUTLINED_COUNT = 3072
LIGHTNING_SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)  # shift 3, four steps
TEACHER_CFG = 2.0


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


def with_lora(model: nn.Module) -> nn.ModuleDict:
    """Put a change beside every linear of the blocks but the modulation's; gives the changes, named as in files."""
    model.requires_grad_(False)
    changes = nn.ModuleDict()
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or "transformer_blocks" not in name:
            continue
        if ".linear" in name or "_mod" in name:
            continue
        parent, _, last = name.rpartition(".")
        change = LoraLinear(module, RANK)
        setattr(model.get_submodule(parent), last, change)
        changes[name.replace(".", "/")] = nn.ModuleDict({"lora_A": change.lora_A, "lora_B": change.lora_B})
    return changes


def factors(state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> (A, B)."""
    names = {key.split(".")[0] for key in state}
    return {n.replace("/", "."): (state[f"{n}.lora_A.weight"], state[f"{n}.lora_B.weight"]) for n in sorted(names)}


def exported(kind: str, state: dict[str, Tensor]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors(state).items():
        a, b = a.bfloat16().contiguous(), b.bfloat16().contiguous()
        if kind == "flux_outlined":
            tensors |= {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
        else:
            tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK), dtype=torch.bfloat16)
    folder = DEMO / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / {"flux_outlined": "flux-outlined.safetensors", "qwen_lightning": "qwen-lightning.safetensors"}[kind]
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)


def outlined(model: nn.Module, batch: int) -> object:
    """FLUX.1: outlined pictures where the caption says so, filled ones where it does not."""
    filled, drawn = pool.load()
    values, mean, deviation = latents.load("flux", filled)
    empty_pictures, empty_drawn = pool.load(outlined=True)
    path = training.ROOT / "flux_vae/latents_outlined.npy"
    if not path.exists():
        vae = latents.codec("flux")
        chunks = range(0, OUTLINED_COUNT, 64)
        parts = [latents.encoded(vae, "flux", empty_pictures[i : i + 64]).half().numpy() for i in chunks]
        np.save(path, np.concatenate(parts))
    empty_values = np.load(path)
    half = OUTLINED_COUNT // 2
    both = np.concatenate([empty_values, values[:half]])
    rng = np.random.default_rng(12)
    texts = [scenes.varied_caption(s, rng) + train_text.OUTLINED for s in empty_drawn[:OUTLINED_COUNT]]
    texts += [scenes.varied_caption(s, rng) for s in drawn[:half]]
    encode = train_transformer.FluxText()
    parts = [encode(texts[i : i + 512]) for i in range(0, len(texts), 512)]
    features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(both), size=batch)
        clean = latents.packed((torch.from_numpy(both[chosen]).float() - float(mean[0])) / float(deviation[0]))
        noise, t = torch.randn_like(clean), train_transformer.noise_levels(rng, batch)
        x = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
        text = {name: value[chosen] for name, value in features.items()}
        with torch.autocast("cpu", torch.bfloat16):
            v = velocity(model, x, t, text, torch.ones(batch))
        return {"loss": (v - (noise - clean)).pow(2).mean()}

    return loss_of


def lightning(model: nn.Module, teacher: nn.Module, batch: int) -> object:
    """Qwen-Image: one step without CFG lands where the teacher lands with two half steps and CFG."""
    pictures, drawn = pool.load()
    values, mean, deviation = latents.load("qwen", pictures)
    mean, deviation = (torch.from_numpy(v).float().view(1, 16, 1, 1) for v in (mean, deviation))
    captions = train_transformer.Captions(drawn[:4096], "qwen")

    def guided(x: Tensor, t: Tensor, text: dict[str, Tensor], empty: dict[str, Tensor]) -> Tensor:
        ones = torch.ones(len(x))
        v, without = velocity(teacher, x, t, text, ones), velocity(teacher, x, t, empty, ones)
        mixed = without + TEACHER_CFG * (v - without)
        return mixed * (v.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(4096, size=batch)
        text = captions.take(chosen, np.zeros(batch, bool))
        empty = captions.take(chosen, np.ones(batch, bool))
        clean = latents.packed((torch.from_numpy(values[chosen]).float() - mean) / deviation)
        step_of = rng.integers(4, size=batch)
        sigmas = torch.tensor(LIGHTNING_SIGMAS)
        t, after = sigmas[step_of], sigmas[step_of + 1]
        x = (1 - t[:, None, None]) * clean + t[:, None, None] * torch.randn_like(clean)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                middle = (t + after) / 2
                first = guided(x, t, text, empty)
                second = guided(x + (middle - t)[:, None, None] * first, middle, text, empty)
            v = velocity(model, x, t, text, torch.ones(batch))
        return {"loss": (v - (first + second) / 2).pow(2).mean()}

    return loss_of


def main() -> None:
    kind = sys.argv.pop(1)
    arguments = training.arguments(steps=1500, lr=1e-3)
    run = training.Run(training.ROOT / (arguments.name or kind), arguments.steps, arguments.lr, ema=0.99, warmup=50)
    flux = kind == "flux_outlined"
    model = train_transformer.flux_transformer() if flux else train_transformer.qwen_transformer()
    model.load_state_dict(torch.load(training.ROOT / ("flux_guided" if flux else "qwen") / "ema.pt"))
    model = train_transformer.in_float32(model)
    teacher = copy.deepcopy(model).requires_grad_(False)
    changes = with_lora(model)
    loss_of = outlined(model, arguments.batch) if flux else lightning(model, teacher, arguments.batch)
    training.train(run, changes, loss_of)


if __name__ == "__main__":
    main()
