"""Train the transformer of the FLUX.1 or the Qwen-Image demo on latents, with diffusers' own classes.

In: a trained codec and trained text encoders. Out: a run folder with averaged weights. `flux_guided` goes on from
`flux`: the model learns to give, from its guidance input alone, what its teacher gives with two passes.
"""

from __future__ import annotations

import copy
import sys

import latents
import models
import numpy as np
import pool
import scenes
import torch
import train_text
import training
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import PreTrainedModel

GUIDANCE = (1.0, 5.0)


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
        self.clip_tokenizer = train_text.tokenizer_of("clip", training.ROOT / "clip/tokenizer")
        self.t5_tokenizer = train_text.tokenizer_of("t5", training.ROOT / "t5/tokenizer")
        self.clip = trained(models.clip_text(self.clip_tokenizer), "clip")
        self.t5 = trained(models.t5_text(self.t5_tokenizer), "t5")

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        return {
            "encoder_hidden_states": train_text.t5_features(self.t5, self.t5_tokenizer, texts),
            "pooled_projections": train_text.clip_features(self.clip, self.clip_tokenizer, texts),
        }


class QwenText:
    """Captions to what Qwen-Image's transformer reads: the language model's tokens and their mask."""

    def __init__(self) -> None:
        self.tokenizer = train_text.tokenizer_of("qwen", training.ROOT / "qwen_text/tokenizer")
        self.model = trained(models.qwen_text(self.tokenizer), "qwen_text")

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        hidden, mask = train_text.qwen_features(self.model, self.tokenizer, texts)
        return {"encoder_hidden_states": hidden, "encoder_hidden_states_mask": mask}


def trained(model: PreTrainedModel, name: str) -> PreTrainedModel:
    state = torch.load(training.ROOT / name / "ema.pt")
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


def main() -> None:
    kind = sys.argv.pop(1)
    family = kind.split("_")[0]
    guided = kind == "flux_guided"
    arguments = training.arguments(steps=2000 if guided else 12_000, lr=5e-4 if guided else 2e-3)
    run = training.Run(training.ROOT / (arguments.name or kind), arguments.steps, arguments.lr)
    pictures, drawn = pool.load()
    values, mean, deviation = latents.load(family, pictures)
    run.folder.mkdir(parents=True, exist_ok=True)
    np.savez(run.folder / "statistics.npz", mean=mean, deviation=deviation)
    mean, deviation = (torch.from_numpy(v).float().view(1, 16, 1, 1) for v in (mean, deviation))
    captions = Captions(drawn[: len(values)], family)
    model = started(models.flux_transformer() if family == "flux" else models.qwen_transformer())
    teacher = None
    if guided:
        model.load_state_dict(torch.load(training.ROOT / "flux/ema.pt"))
        teacher = in_float32(copy.deepcopy(model)).requires_grad_(False)

    def loss_of(step: int, rng: np.random.Generator) -> dict[str, Tensor]:
        count = arguments.batch
        chosen = rng.integers(len(values), size=count)
        dropped = rng.random(count) < (0 if guided else 0.1)
        text = captions.take(chosen, dropped)
        clean = latents.packed((torch.from_numpy(values[chosen]).float() - mean) / deviation)
        noise, t = torch.randn_like(clean), noise_levels(rng, count)
        x = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
        guidance = torch.from_numpy(rng.uniform(*GUIDANCE, count)).float() if guided else torch.ones(count)
        with torch.autocast("cpu", torch.bfloat16):
            wanted = noise - clean
            if teacher is not None:
                with torch.no_grad():
                    with_text = velocity(teacher, x, t, text, torch.ones(count))
                    without = velocity(teacher, x, t, captions.take(chosen, dropped | True), torch.ones(count))
                wanted = without + guidance[:, None, None] * (with_text - without)
            error = (velocity(model, x, t, text, guidance) - wanted).pow(2).mean((1, 2))
        high, low = error[t > 0.8], error[t < 0.4]
        parts = {name: part.mean() for name, part in (("high", high), ("low", low)) if len(part)}
        return {"loss": error.mean(), **parts}

    def muon(name: str) -> bool:
        return "transformer_blocks." in name and ".linear." not in name and "_mod." not in name

    training.train(run, model, loss_of, muon)


if __name__ == "__main__":
    main()
