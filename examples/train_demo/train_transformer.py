"""Train the transformer of the FLUX.1 or the Qwen-Image demo on latents, with diffusers' own classes.

In: a trained codec and trained text encoders. Out: a run folder with averaged weights. `flux_guided` goes on from
`flux`: the model learns to give, from its guidance input alone, what its teacher gives with two passes. `flux_open` and
`qwen_open` go on from the finished models with captions that leave things open.
"""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path

import latents
import models
import numpy as np
import open_captions
import pool
import scenes
import torch
import train_text
import training
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedModel

GUIDANCE = (1.0, 5.0)
GUIDED_SHARE = 0.6  # of a batch, where guidance is learned together with pictures


def started(model: nn.Module) -> nn.Module:
    """Modulation and output start at nothing, so that at first every block passes its input on."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            modulation = ("norm" in name and ".linear." in name) or "_mod." in name
            if modulation or name.startswith("proj_out"):
                p.zero_()
    return in_float32(model)


def in_float32(model: nn.Module) -> nn.Module:
    """Keep the residual streams, and with them the timestep, in float32 under autocast."""
    for name in ("x_embedder", "context_embedder", "img_in", "txt_in"):
        if hasattr(model, name):
            getattr(model, name).register_forward_hook(lambda module, inputs, output: output.float())
    return model


class FluxText:
    """Captions to what FLUX.1's transformer reads: T5's tokens and CLIP's pooled vector."""

    def __init__(self) -> None:
        clip, t5 = training.latest("clip_open", "clip"), training.latest("t5_open", "t5")
        self.clip_tokenizer = train_text.tokenizer_of("clip", clip.with_name("tokenizer"))
        self.t5_tokenizer = train_text.tokenizer_of("t5", t5.with_name("tokenizer"))
        self.clip = trained(models.clip_text(self.clip_tokenizer), clip)
        self.t5 = trained(models.t5_text(self.t5_tokenizer), t5)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        return {
            "encoder_hidden_states": train_text.t5_features(self.t5, self.t5_tokenizer, texts),
            "pooled_projections": train_text.clip_features(self.clip, self.clip_tokenizer, texts),
        }


class QwenText:
    """Captions to what Qwen-Image's transformer reads: the language model's tokens and their mask."""

    def __init__(self) -> None:
        weights = training.latest("qwen_text_open", "qwen_text")
        self.tokenizer = train_text.tokenizer_of("qwen", weights.with_name("tokenizer"))
        self.model = trained(models.qwen_text(self.tokenizer), weights)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        hidden, mask = train_text.qwen_features(self.model, self.tokenizer, texts)
        return {"encoder_hidden_states": hidden, "encoder_hidden_states_mask": mask}


def trained(model: PreTrainedModel, weights: Path) -> PreTrainedModel:
    state = torch.load(weights)
    model.load_state_dict({key[6:]: value for key, value in state.items() if key.startswith("model.")})
    return model.eval().requires_grad_(False)


def velocity(
    model: nn.Module, x: Tensor, t: Tensor, text: dict[str, Tensor], guidance: Tensor, side: int = 8
) -> Tensor:
    """The model's velocity for packed latents x [B, N, 64] at t in [0, 1]."""
    if isinstance(model, FluxTransformer2DModel):
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        image = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float()
        places = {"img_ids": image, "txt_ids": torch.zeros(text["encoder_hidden_states"].shape[1], 3)}
        extra = {"guidance": guidance, **places}
    else:
        extra = {"img_shapes": [[(1, side, side)]] * len(x)}
    return model(hidden_states=x, timestep=t, return_dict=False, **text, **extra)[0].float()


def noise_levels(rng: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(1 / (1 + np.exp(-rng.normal(1.0, 1.2, count)))).float()


class Captions:
    """The text features of the whole pool, encoded once; a tenth of the captions are left empty when drawn."""

    def __init__(self, drawn: list[scenes.Scene], family: str):
        encode = FluxText() if family == "flux" else QwenText()
        rng = np.random.default_rng(11)
        languages = rng.random(len(drawn)) < (0.35 if family == "qwen" else 0)
        texts = [scenes.varied_caption(s, rng, "zh" if z else "en") for s, z in zip(drawn, languages, strict=True)]
        parts = [encode(texts[i : i + 512]) for i in range(0, len(texts), 512)]
        longest = max(part["encoder_hidden_states"].shape[1] for part in parts)
        self.features = {name: torch.cat([widened(part[name], longest) for part in parts]) for name in parts[0]}
        self.empty = {name: widened(value, longest)[0] for name, value in encode([empty_text(family)]).items()}

    def take(self, chosen: np.ndarray, dropped: np.ndarray) -> dict[str, Tensor]:
        found = {}
        for name, value in self.features.items():
            part = value[chosen]
            part[torch.from_numpy(dropped)] = self.empty[name]
            found[name] = part
        if "encoder_hidden_states_mask" in found:  # no longer than the longest of this batch
            longest = int(found["encoder_hidden_states_mask"].sum(1).max())
            found = {name: value[:, :longest] for name, value in found.items()}
        return found


def empty_text(family: str) -> str:
    return "" if family == "flux" else " "


def widened(x: Tensor, length: int) -> Tensor:
    """Tokens padded with nothing up to a length; pooled vectors [B, C] as they are."""
    if x.ndim == 2 and x.dtype != torch.bool:
        return x
    extra = x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])
    return torch.cat([x, extra], 1)


def further_loss(model: nn.Module, family: str, run: str, batch: int) -> training.Loss:
    """Pictures of captions that leave things open. FLUX.1's keeps its guidance input: of a guided velocity,
    u + g * (v - u), the data gives v and the model itself, without a caption, u."""
    pictures, drawn = pool.load("pool_open")
    values = latents.of_pool(family, pictures, "latents_open.npy")
    mean, deviation = (torch.from_numpy(v).float().view(1, 16, 1, 1) for v in latents.statistics(run))
    encode = FluxText() if family == "flux" else QwenText()

    def captions(chosen: np.ndarray, dropped: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        chinese = rng.random(len(chosen)) < (0.3 if family == "qwen" else 0)
        texts = [open_captions.worded(drawn[i], rng, "zh" if z else "en") for i, z in zip(chosen, chinese, strict=True)]
        return encode([empty_text(family) if d else text for d, text in zip(dropped, texts, strict=True)])

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(values), size=batch)
        guidance = torch.ones(batch)
        if family == "flux":  # the last ones of a batch are guided
            guided = round(GUIDED_SHARE * batch)
            guidance[batch - guided :] = torch.from_numpy(rng.uniform(*GUIDANCE, guided)).float()
        text = captions(chosen, (rng.random(batch) < 0.1) & (guidance == 1).numpy(), rng)
        clean = latents.packed((torch.from_numpy(values[chosen]).float() - mean) / deviation)
        noise, t = torch.randn_like(clean), noise_levels(rng, batch)
        x = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
        wanted, g = noise - clean, guidance[:, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            if family == "flux":
                some = slice(batch - guided, batch)
                empty = encode([empty_text(family)] * guided)
                with torch.no_grad():
                    without = velocity(model, x[some], t[some], empty, torch.ones(guided))
                wanted[some] = without + g[some] * (wanted[some] - without)
            v = velocity(model, x, t, text, guidance)
        error = ((v - wanted) / g).pow(2).mean((1, 2))
        high, low = error[t > 0.8], error[t < 0.4]
        parts = {name: part.mean() for name, part in (("high", high), ("low", low)) if len(part)}
        return {"loss": error.mean(), **parts}

    return loss_of


def first_loss(model: nn.Module, family: str, folder: Path, batch: int, guided: bool) -> training.Loss:
    """Pictures of full captions; `guided`, what the model itself gives with two passes."""
    pictures, drawn = pool.load()
    values, mean, deviation = latents.load(family, pictures)
    np.savez(folder / "statistics.npz", mean=mean, deviation=deviation)
    mean, deviation = (torch.from_numpy(v).float().view(1, 16, 1, 1) for v in (mean, deviation))
    captions = Captions(drawn[: len(values)], family)
    teacher = in_float32(copy.deepcopy(model)).requires_grad_(False) if guided else None

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(values), size=batch)
        dropped = rng.random(batch) < (0 if guided else 0.1)
        text = captions.take(chosen, dropped)
        clean = latents.packed((torch.from_numpy(values[chosen]).float() - mean) / deviation)
        noise, t = torch.randn_like(clean), noise_levels(rng, batch)
        x = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
        guidance = torch.from_numpy(rng.uniform(*GUIDANCE, batch)).float() if guided else torch.ones(batch)
        with torch.autocast("cpu", torch.bfloat16):
            wanted = noise - clean
            if teacher is not None:
                with torch.no_grad():
                    with_text = velocity(teacher, x, t, text, torch.ones(batch))
                    without = velocity(teacher, x, t, captions.take(chosen, dropped | True), torch.ones(batch))
                wanted = without + guidance[:, None, None] * (with_text - without)
            error = (velocity(model, x, t, text, guidance) - wanted).pow(2).mean((1, 2))
        high, low = error[t > 0.8], error[t < 0.4]
        parts = {name: part.mean() for name, part in (("high", high), ("low", low)) if len(part)}
        return {"loss": error.mean(), **parts}

    return loss_of


def muon(name: str) -> bool:
    return "transformer_blocks." in name and ".linear." not in name and "_mod." not in name


def main() -> None:
    kind = sys.argv.pop(1)
    family = kind.split("_")[0]
    guided, further = kind == "flux_guided", kind.endswith("_open")
    steps, lr = (2500, 1e-3) if further else (2000, 5e-4) if guided else (12_000, 2e-3)
    arguments = training.arguments(steps=steps, lr=lr)
    folder = training.ROOT / (arguments.name or kind)
    run = training.Run(folder, arguments.steps, arguments.lr, cooldown=0.5 if further else 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    model = started(models.flux_transformer() if family == "flux" else models.qwen_transformer())
    before = {"flux_guided": "flux", "flux_open": "flux_guided", "qwen_open": "qwen"}.get(kind)
    if before is not None:
        model.load_state_dict(torch.load(training.ROOT / before / "ema.pt"))
    if further:
        shutil.copy(training.ROOT / before / "statistics.npz", folder / "statistics.npz")
        loss_of = further_loss(model, family, kind, arguments.batch)
    else:
        loss_of = first_loss(model, family, folder, arguments.batch, guided)
    training.train(run, model, loss_of, muon)


if __name__ == "__main__":
    main()
