"""Train the HiDream-O1 demo: clean patches from noisy ones and a caption.

In: the pool of pictures. Out: a run folder with averaged weights (see training.py). Next to the pictures' loss, the
prompt's last hidden state has to name the scene's parts: without it the caption is ignored for a thousand steps.

`train_hidream.py open` goes on from the run `hidream` with captions that leave things open, and writes `hidream_open`.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
import open_captions
import pool
import scenes
import torch
import torch.nn.functional as F
import training
import vocabularies
from hidream import Config, HiDreamO1, patches
from tokenizers import Tokenizer
from torch import Tensor, nn

NOISE_SCALE = 8.0
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<|boi_token|>"
TAP = 3
HEAD_STEPS = 100  # in which a fresh head learns without teaching


class WithHeads(nn.Module):
    """The model and, for training alone, a linear head that reads the scene from the prompt."""

    def __init__(self, config: Config):
        super().__init__()
        self.net = HiDreamO1(config)
        self.head = nn.Linear(config.hidden_size, sum(scenes.TARGET_SIZES))


def started(config: Config) -> WithHeads:
    """Random weights, at scales from which a model this small learns."""
    module = WithHeads(config)
    core = module.net.model
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 2:
                p.normal_(0, p.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.mul_((2 * config.num_hidden_layers) ** -0.5)
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                p.fill_(1.5)
        core.language_model.embed_tokens.weight.normal_(0, 1)
        core.x_embedder.proj1.weight.mul_(0.25)  # its input is noise of scale 8
        core.x_embedder.proj2.bias.normal_(0, 1)
        core.t_embedder1.mlp[2].weight.mul_(2)
        core.final_layer2.linear.weight.mul_(0.1)
    return module


def scene_loss(logits: Tensor, targets: Tensor) -> Tensor:
    parts = logits.split(list(scenes.TARGET_SIZES), -1)
    return torch.stack([F.cross_entropy(part, targets[:, i]) for i, part in enumerate(parts)]).mean()


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(row) for row in rows])


def noise_levels(rng: np.random.Generator, count: int) -> Tensor:
    levels = 1 / (1 + np.exp(-rng.normal(0.1, 1.4, count)))
    uniform = rng.random(count) < 0.1
    levels[uniform] = rng.uniform(0.001, 1, int(uniform.sum()))
    return torch.from_numpy(levels).float().clamp(0.001, 1)


def caption(scene: scenes.Scene, rng: np.random.Generator, further: bool) -> str:
    worded = further and (open_captions.is_open(scene) or rng.random() < 0.5)
    return open_captions.worded(scene, rng) if worded else scenes.varied_caption(scene, rng)


def restored(config: Config) -> WithHeads:
    """The finished model with a fresh head."""
    module = started(config)
    state = torch.load(training.ROOT / "hidream/ema.pt")
    module.load_state_dict({key: v for key, v in state.items() if key.startswith("net.")} | head_of(module))
    return module


def head_of(module: WithHeads) -> dict[str, Tensor]:
    return {key: value for key, value in module.state_dict().items() if key.startswith("head.")}


def main() -> None:
    further = sys.argv[1:2] == ["open"]
    if further:
        sys.argv.pop(1)
    arguments = training.arguments(steps=3000 if further else 14_000, lr=1e-3 if further else 2e-3)
    folder = training.ROOT / (arguments.name or "hidream" + "_open" * further)
    run = training.Run(folder, arguments.steps, arguments.lr, cooldown=0.5 if further else 0.3)
    if further and not folder.exists():
        shutil.copytree(training.ROOT / "hidream/tokenizer", folder / "tokenizer")
    if not (run.folder / "tokenizer/tokenizer.json").exists():
        vocabularies.write_qwen(run.folder / "tokenizer", hidream=True)
    tokenizer = Tokenizer.from_file(str(run.folder / "tokenizer/tokenizer.json"))
    config = Config(vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64)
    pictures, drawn = pool.load("pool_open" if further else "pool")
    answers = torch.tensor([scenes.targets(scene) for scene in drawn])
    empty = tokenizer.encode(TEMPLATE.format(" ")).ids
    module = restored(config) if further else started(config)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = np.sort(rng.integers(len(drawn), size=arguments.batch))
        texts = [TEMPLATE.format(caption(drawn[i], rng, further)) for i in chosen]
        dropped = rng.random(arguments.batch) < 0.1
        ids, lengths = padded(
            [empty if d else e.ids for d, e in zip(dropped, tokenizer.encode_batch(texts), strict=True)]
        )
        x = patches(torch.from_numpy(pictures[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1, config.patch_size)
        sigma = noise_levels(rng, arguments.batch)
        z = sigma[:, None, None] * NOISE_SCALE * torch.randn_like(x) + (1 - sigma[:, None, None]) * x
        with torch.autocast("cpu", torch.bfloat16):
            predicted, hidden = module.net(ids, lengths, z, 1 - sigma, (8, 8), TAP)
            logits = module.head(hidden.detach() if further and step < HEAD_STEPS else hidden)
        error = (predicted.float() - x).pow(2).mean((1, 2))
        kept = torch.from_numpy(~dropped)
        words = scene_loss(logits.float()[kept], answers[chosen][kept])
        high = error[sigma > 0.8].mean() if (sigma > 0.8).any() else torch.tensor(0.0)
        low = error[sigma < 0.4].mean() if (sigma < 0.4).any() else torch.tensor(0.0)
        return {"loss": error.mean() + 0.05 * words, "picture": error.mean(), "high": high, "low": low, "words": words}

    def muon(name: str) -> bool:
        return ".layers." in name

    training.train(run, module, loss_of, muon)


if __name__ == "__main__":
    main()
