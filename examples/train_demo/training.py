"""A training run that can be killed at any moment: optimiser, averaged weights, checkpoints, a log of numbers.

In: a module and a function that gives the loss of one step. Out: in the run's folder `state.pt` (to go on from),
`ema.pt` (averaged weights, what is exported) and `log.jsonl`. It knows nothing of pictures or of a model's family.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# (step, its dice) -> what to log, "loss" among it
Loss = Callable[[int, np.random.Generator], dict[str, Tensor]]
ROOT = Path(os.environ.get("TRAIN_DEMO_ROOT", Path.home() / "demo_training"))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as two batched products: in bf16 on a CPU four times faster, backward, than torch's fused kernel."""
    scores = torch.matmul(query * (scale or query.shape[-1] ** -0.5), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype), value)


def orthogonalised(stack: Tensor) -> Tensor:
    """Newton-Schulz: every matrix of a stack [K, m, n] with its singular values brought near one."""
    x = stack.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal; matrices of one shape are handled
    together, and a convolution's kernel counts as one matrix."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.shape), []).append(p)
            for shape, parameters in by_shape.items():
                updates = []
                for p in parameters:
                    buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]).flatten(1))
                stack = torch.stack(updates)
                size = group["lr"] * 0.2 * math.sqrt(max(stack.shape[1:]))
                for p, update in zip(parameters, orthogonalised(stack), strict=True):
                    p.add_(update.view(shape), alpha=-size)


def optimisers(module: nn.Module, lr: float, muon: Callable[[str], bool]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices that `muon(name)` picks, AdamW for everything else; both on one learning-rate scale."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim >= 2 and muon(name)]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = []
    if rest:
        found.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0))
    if matrices:
        found.append(Muon(matrices, lr=lr))
    return found


@dataclass
class Run:
    """Where a run lives and how long it goes on."""

    folder: Path
    steps: int
    lr: float
    ema: float = 0.998
    warmup: int = 200
    cooldown: float = 0.3
    save_seconds: float = 120.0
    stop_at: float | None = None

    def rate(self, step: int) -> float:
        """Warm up, stay, then fall in a straight line to nothing over the last part."""
        up = min(1.0, (step + 1) / self.warmup)
        down = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.lr * min(up, max(0.02, min(1.0, down)))


def save(path: Path, value: object) -> None:
    """Write a new file, then rename it: a killed run leaves the old file or the new one, never half of one."""
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def latest(*runs: str) -> Path:
    """The weights of the first of these runs that there is."""
    return next(path for run in runs if (path := ROOT / run / "ema.pt").exists())


def log(folder: Path, **numbers: object) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(numbers) + "\n")


def seeded(step: int, seed: int = 0) -> np.random.Generator:
    """The draws of one step depend on the step alone, so a resumed run sees what an uninterrupted one would."""
    return np.random.default_rng([seed, step])


def train(
    run: Run,
    module: nn.Module,
    loss_of: Loss,
    muon: Callable[[str], bool] = lambda name: False,
    check: Callable[[int, dict[str, Tensor]], dict[str, float]] | None = None,
    check_every: int = 2000,
) -> dict[str, Tensor]:
    """Run to the last step, from a checkpoint where there is one; gives the averaged weights."""
    run.folder.mkdir(parents=True, exist_ok=True)
    optims = optimisers(module, run.lr, muon)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    step, seconds = 0, 0.0
    if (run.folder / "state.pt").exists():
        state = torch.load(run.folder / "state.pt", weights_only=False)
        module.load_state_dict(state["module"])
        for optim, saved in zip(optims, state["optimisers"], strict=True):
            optim.load_state_dict(saved)
        average, step, seconds = state["average"], state["step"], state["seconds"]
    start, saved_at = time.time() - seconds, time.time()
    sums: dict[str, list[float]] = {}
    while step < run.steps:
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = run.rate(step)
        torch.manual_seed(step)
        losses = loss_of(step, seeded(step))
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step += 1
        decay = min(run.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            current = module.state_dict()
            floating = [n for n in average if average[n].is_floating_point()]
            torch._foreach_lerp_([average[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name, value in {**losses, "norm": norm}.items():
            sums.setdefault(name, []).append(float(value.detach()))
        if step % 100 == 0:
            means = {name: round(sum(values) / len(values), 5) for name, values in sums.items()}
            log(run.folder, step=step, seconds=round(time.time() - start, 1), lr=round(run.rate(step), 6), **means)
            sums = {}
        last = step == run.steps or (run.stop_at is not None and time.time() > run.stop_at)
        if check is not None and (step % check_every == 0 or step == run.steps):
            scores = check(step, average)
            log(run.folder, step=step, seconds=round(time.time() - start, 1), **scores)
        if last or time.time() - saved_at > run.save_seconds:
            saved_at = time.time()
            state = {"module": module.state_dict(), "optimisers": [optim.state_dict() for optim in optims]}
            save(run.folder / "state.pt", {**state, "average": average, "step": step, "seconds": saved_at - start})
            save(run.folder / "ema.pt", average)
        if last:
            break
    return average


def arguments(steps: int, lr: float) -> argparse.Namespace:
    """What every training script takes from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--name", default="")
    parser.add_argument("--batch", type=int, default=32)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nn.functional.scaled_dot_product_attention = attention
    return parser.parse_args()
