"""Draw held-out captions with a trained demo model and score the pictures.

In: a run folder (averaged weights or raw ones). Out: the scores, also as a line of its log, and a sheet of pictures.
The sampling is the families' own, rewritten in torch: Euler for FLUX.1 and Qwen-Image, flash or Euler for
HiDream-O1.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import hidream
import latents
import models
import numpy as np
import open_captions
import scenes
import score
import torch
import train_hidream
import train_transformer
import training
from hidream import HiDreamO1, patches, unpatched
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

NOISE_CLIP = 2.5


def shifted(steps: int, shift: float) -> Tensor:
    """Noise levels from one to zero, `steps` + 1 of them."""
    u = torch.linspace(1, 1 / steps, steps)
    return torch.cat([shift * u / (1 + (shift - 1) * u), torch.zeros(1)])


def noise(shape: tuple[int, ...], seeds: range) -> Tensor:
    """Every picture's own seed, as a user would draw it alone."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def hidream_pictures(
    net: HiDreamO1, tokenizer: Tokenizer, texts: list[str], sigmas: Tensor, guidance: float, flash: bool, seed: int
) -> np.ndarray:
    """Sample with a guidance of one (one pass a step) or more (two)."""
    p, side = net.c.patch_size, scenes.PIXELS // net.c.patch_size
    rows = [tokenizer.encode(train_hidream.TEMPLATE.format(text)).ids for text in texts]
    ids, lengths = train_hidream.padded(rows)
    empty, empty_lengths = train_hidream.padded([tokenizer.encode(train_hidream.TEMPLATE.format(" ")).ids] * len(rows))
    seeds = range(seed + 1, seed + 1 + len(texts))
    z = patches(noise((3, scenes.PIXELS, scenes.PIXELS), seeds), p) * train_hidream.NOISE_SCALE
    stream = torch.Generator().manual_seed(seed)
    sigmas = sigmas.clamp(max=0.999)
    for sigma, after in itertools.pairwise(sigmas):
        t = torch.full((len(texts),), 1 - float(sigma))
        x = net(ids, lengths, z, t, (side, side))[0].float()
        if guidance > 1:
            without = net(empty, empty_lengths, z, t, (side, side))[0].float()
            x = without + guidance * (x - without)
        if flash:
            fresh = torch.randn(z.shape, generator=stream).clamp(-NOISE_CLIP, NOISE_CLIP)
            z = after * train_hidream.NOISE_SCALE * fresh + (1 - after) * x
        else:
            z = x + (z - x) * (after / sigma)
    pictures = (unpatched(z, p, (side, side)) / 2 + 0.5).clamp(0, 1)
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def latent_pictures(
    model: nn.Module,
    text_encoder: train_transformer.FluxText | train_transformer.QwenText,
    vae: nn.Module,
    statistics: tuple[Tensor, Tensor],
    texts: list[str],
    sigmas: Tensor,
    guidance: float,
    true_cfg: float,
    seed: int,
) -> np.ndarray:
    """Sample FLUX.1 (`guidance` goes into the model) or Qwen-Image (`true_cfg` takes a second pass)."""
    family = "flux" if isinstance(text_encoder, train_transformer.FluxText) else "qwen"
    text = text_encoder(texts)
    empty = text_encoder([train_transformer.empty_text(family)] * len(texts))
    side = scenes.PIXELS // 8
    x = latents.packed(noise((16, side, side), range(seed, seed + len(texts))))
    inner = torch.full((len(texts),), guidance)
    for sigma, after in itertools.pairwise(sigmas):
        t = torch.full((len(texts),), float(sigma))
        v = train_transformer.velocity(model, x, t, text, inner)
        if true_cfg > 1:
            without = train_transformer.velocity(model, x, t, empty, inner)
            mixed = without + true_cfg * (v - without)
            v = mixed * (v.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)) if family == "qwen" else mixed
        x = x + (after - sigma) * v
    mean, deviation = statistics
    unscaled = latents.unpacked(x, side, side) * deviation + mean
    return np.concatenate([latents.decoded(vae, family, part) for part in unscaled.split(32)])


def sheet(pictures: np.ndarray, path: Path, columns: int = 10) -> None:
    rows = len(pictures) // columns
    size = pictures.shape[1]
    tiled = pictures[: rows * columns].reshape(rows, columns, size, size, 3).swapaxes(1, 2)
    Image.fromarray(tiled.reshape(rows * size, columns * size, 3)).save(path)


def loaded(kind: str, name: str, weights: str) -> nn.Module:
    """A family's transformer with the weights of a run."""
    if weights == "raw":
        state = torch.load(training.ROOT / name / "state.pt", weights_only=False)["module"]
    else:
        state = torch.load(training.ROOT / name / "ema.pt")
    if kind == "hidream":
        vocabulary = state["net.model.language_model.embed_tokens.weight"].shape[0]
        model = HiDreamO1(hidream.Config(vocabulary))
        state = {key[4:]: value for key, value in state.items() if key.startswith("net.")}
    else:
        model = models.flux_transformer() if kind == "flux" else models.qwen_transformer()
    model.load_state_dict(state)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("flux", "qwen", "hidream"))
    parser.add_argument("--name", default="")
    parser.add_argument("--weights", default="ema", choices=("ema", "raw"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--euler", action="store_true", help="HiDream-O1: the full model's kind of sampling")
    parser.add_argument("--chinese", action="store_true")
    parser.add_argument("--open", action="store_true", help="captions that leave things open")
    parser.add_argument("--sheet", type=Path, default=None)
    a = parser.parse_args()
    torch.set_num_threads(1)
    name = a.name or a.kind
    language = "zh" if a.chinese else "en"
    if a.open:
        wanted, texts = open_captions.held_out(a.count, 2024, language)
    else:
        wanted = scenes.sample(np.random.default_rng(2024), a.count, held_out=True)
        texts = [scenes.caption(scene, language) for scene in wanted]
    model, sigmas = loaded(a.kind, name, a.weights), shifted(a.steps, a.shift)
    parts = []
    if a.kind == "hidream":
        tokenizer = Tokenizer.from_file(str(training.ROOT / name / "tokenizer/tokenizer.json"))
    else:
        encoder = train_transformer.FluxText() if a.kind == "flux" else train_transformer.QwenText()
        vae = latents.codec(a.kind)
        numbers = np.load(training.ROOT / name / "statistics.npz")
        statistics = tuple(torch.from_numpy(numbers[k]).float().view(1, 16, 1, 1) for k in ("mean", "deviation"))
    for i in range(0, a.count, 50):
        some = texts[i : i + 50]
        if a.kind == "hidream":
            parts.append(hidream_pictures(model, tokenizer, some, sigmas, a.cfg, not a.euler, seed=i))
        else:
            parts.append(latent_pictures(model, encoder, vae, statistics, some, sigmas, a.guidance, a.cfg, seed=i))
    pictures = np.concatenate(parts)
    scores = score.score(pictures, wanted)
    names = ("kind", "weights", "count", "steps", "shift", "guidance", "cfg", "euler", "open")
    settings = {name: getattr(a, name) for name in names}
    print({**settings, **scores})
    training.log(training.ROOT / name, **settings, **scores)
    if a.sheet:
        sheet(pictures, a.sheet)


if __name__ == "__main__":
    main()
