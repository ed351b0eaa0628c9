"""Adds FLUX.1-Redux to a drawn FLUX.1, with what transformers and diffusers make of it.

    python tests/references/flux_redux.py FOLDER BASE [--seed N]

BASE is a draw of flux.py. FOLDER gets redux/ (image_encoder, image_embedder and feature_extractor, as published),
options.json, pictures and reference.safetensors: SigLIP's features and Redux's tokens of one picture, and pictures of
the whole pipeline. Needs torch, diffusers and transformers.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from autoencoders import save_drawn
from command import run_on_base
from diffusers import FluxPipeline, FluxPriorReduxPipeline, ReduxImageEncoder
from flux_text import save_drawn as save_text
from flux_text import spread
from flux_tools import Caller, draw_pictures
from inpaint import open_flux
from safetensors.torch import save_file
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from weight_descriptions import description_path

HALF = (0.5, 0.5, 0.5)
SCALES = 0.9, 0.4  # of two pictures
SHORT, LAST = 16, 12  # tokens of a short text; of a prompt that are stored: some of the text's, and the pictures'
PRIOR = FluxPriorReduxPipeline.__call__.__wrapped__  # without torch's no_grad


def draw(folder: Path, base: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = json.loads((base / "prompts.json").read_text())
    options |= {"seed": seed, "guidance": 2.5, "width": 16 * dice.choice([3, 4]), "height": 32, "length": 512}
    options |= {"scales": SCALES, "short": SHORT}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    parts = dict(open_flux(base).components)
    redux = draw_redux(folder / "redux", parts["transformer"].config.joint_attention_dim, dice, seed)
    draw_pictures(folder, options, dice)
    with torch.no_grad():
        save_file(reference(folder, parts, redux, options), folder / "reference.safetensors")


def draw_redux(folder: Path, text: int, dice: random.Random, seed: int) -> dict[str, Any]:
    heads, patch = dice.choice([1, 2, 3]), dice.choice([6, 7])
    side = patch * dice.choice([2, 3]) + dice.choice([0, 2])  # what is left over is not seen
    config = SiglipVisionConfig(
        hidden_size=heads * dice.choice([8, 12]), intermediate_size=40, num_hidden_layers=dice.choice([1, 2]),
        num_attention_heads=heads, image_size=side, patch_size=patch, hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=dice.choice([1e-6, 1e-4]),
    )  # fmt: skip
    tower = save_text(SiglipVisionModel(config), folder / "image_encoder", seed)
    embedder = ReduxImageEncoder(redux_dim=config.hidden_size, txt_in_features=text)
    embedder = save_drawn(embedder, folder / "image_embedder", large, seed)
    drawn = folder / "image_embedder/diffusion_pytorch_model.safetensors"
    description_path(drawn).unlink()  # 4 tensors are stored as they are
    drawn.rename(drawn.with_name("embedder.safetensors"))
    processor = SiglipImageProcessorPil(size={"height": side, "width": side}, image_mean=HALF, image_std=HALF)
    (folder / "feature_extractor").mkdir(exist_ok=True)
    said = {"do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": HALF}
    said |= {"image_processor_type": "SiglipImageProcessor", "image_std": HALF, "resample": 3}
    said |= {"processor_class": "SiglipProcessor", "rescale_factor": 1 / 255, "size": {"height": side, "width": side}}
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps(said, indent=1))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPriorReduxPipeline"}))
    return {"image_encoder": tower, "image_embedder": embedder, "feature_extractor": processor}


def large(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """So that a few tokens show in the picture next to 512 of the text."""
    mean, size = spread(name, shape)
    return mean, size * (8 if name == "redux_down.weight" else 1)


def reference(
    folder: Path, parts: dict[str, Any], redux: dict[str, Any], options: dict[str, Any]
) -> dict[str, torch.Tensor]:
    run = Caller(folder, options)
    first, second = (run.open(name).convert("RGB") for name in ("picture1", "picture2"))
    pixels = redux["feature_extractor"].preprocess(images=first, do_resize=True, return_tensors="pt")
    features = redux["image_encoder"](**pixels).last_hidden_state
    text = {name: parts[name] for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    with_text, alone = FluxPriorReduxPipeline(**redux, **text), FluxPriorReduxPipeline(**redux)
    config, words = parts["transformer"].config, options["prompt"]
    widths = {4096: config.joint_attention_dim, 768: config.pooled_projection_dim, 512: SHORT}
    scales = {"prompt_embeds_scale": list(SCALES), "pooled_prompt_embeds_scale": list(SCALES)}
    priors = {
        "one": prior(with_text, first, prompt=words),
        "both": prior(with_text, [first, second], {512: SHORT}, prompt=[words, words], **scales),
        "alone": prior(alone, second, widths),
        "two": prior(alone, [first, second], widths, **scales),
    }
    out = {"features": features, "tokens": redux["image_embedder"](features).image_embeds}
    out |= {f"{way}.txt": embeds["prompt_embeds"][:, -LAST:] for way, embeds in priors.items()}
    return out | {way: run(FluxPipeline, parts, prompt=None, **embeds) for way, embeds in priors.items()}


def prior(
    made: FluxPriorReduxPipeline, image: Any, numbers: dict[int, int] | None = None, **more: Any
) -> dict[str, torch.Tensor]:
    """`numbers`: others in the place of those that diffusers has in its code, the published models' widths among them,
    and the text's 512 tokens, next to which a few of a picture do not show."""
    code = PRIOR.__code__
    consts = tuple((numbers or {}).get(value, value) if type(value) is int else value for value in code.co_consts)
    PRIOR.__code__ = code.replace(co_consts=consts)
    out = dict(PRIOR(made, image, **more))
    PRIOR.__code__ = code
    return out


if __name__ == "__main__":
    run_on_base(draw, __doc__)
