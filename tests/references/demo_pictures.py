"""Draws one picture with each demo model by diffusers and transformers in float32: what `doctor` compares with.

    python tests/references/demo_pictures.py weights/demo_pictures

FLUX.1's and Qwen-Image's are diffusers' pipelines. HiDream-O1's are transformers' decoder in the loops of hidream.py;
the distilled one's noise between the steps is this library's own. Needs torch, diffusers, transformers and peft.
"""

import argparse
import json
from pathlib import Path

import hidream
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, QwenImagePipeline
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLTextModel

DEMO = Path(__file__).parents[2] / "weights" / "demo"
PROMPT = "a small red circle left of a large blue square on a white background"
SEED, SIDE, PATCH = 1, 128, 16
COMMON = {"prompt": PROMPT, "width": SIDE, "height": SIDE}
# Lightning's schedule is shifted by 3 whatever the picture's size.
LIGHTNING = {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None}


def flux() -> Image.Image:
    pipeline = FluxPipeline.from_pretrained(DEMO / "flux", torch_dtype=torch.float32)
    return pipeline(
        **COMMON, num_inference_steps=8, guidance_scale=2.0, max_sequence_length=24, generator=seeded()
    ).images[0]


def qwen(lightning: bool) -> Image.Image:
    pipeline = QwenImagePipeline.from_pretrained(DEMO / "qwen_image", torch_dtype=torch.float32)
    options = {"negative_prompt": " ", "true_cfg_scale": 2.0, "num_inference_steps": 12}
    if lightning:
        pipeline.load_lora_weights(str(DEMO / "loras" / "qwen-lightning.safetensors"))
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, **LIGHTNING)
        options = {"true_cfg_scale": 1.0, "num_inference_steps": 4}
    return pipeline(**COMMON, **options, max_sequence_length=64, generator=seeded()).images[0]


class Decoder(nn.Module):
    """HiDream-O1 without its vision tower, under the checkpoint's names."""

    def __init__(self, folder: Path):
        super().__init__()
        config, block = Qwen3VLConfig.from_pretrained(folder), json.loads((folder / "config.json").read_text())
        width, sizes = config.text_config.hidden_size, block["hidream_o1"]
        self.language_model = Qwen3VLTextModel(config.text_config)
        self.t_embedder1, self.x_embedder, self.final_layer2 = nn.Module(), nn.Module(), nn.Module()
        frequencies, bottleneck = sizes["timestep_freq_dim"], sizes["bottleneck_dim"]
        self.t_embedder1.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.x_embedder.proj1 = nn.Linear(3 * PATCH**2, bottleneck, bias=False)
        self.x_embedder.proj2 = nn.Linear(bottleneck, width)
        self.final_layer2.linear = nn.Linear(width, 3 * PATCH**2)
        state = {
            name.removeprefix("model."): value.float()
            for name, value in load_file(folder / "model.safetensors").items()
        }
        state = {name: value for name, value in state.items() if not name.startswith(("visual.", "lm_head."))}
        self.load_state_dict(state)
        self.block = sizes


def sample(model: Decoder, text: str) -> hidream.Sample:
    tokenizer = Tokenizer.from_file(str(DEMO / "hidream_o1" / "tokenizer.json"))
    words = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<|boi_token|><|tms_token|>"
    ids = torch.tensor(tokenizer.encode(words, add_special_tokens=False).ids)
    rows, columns = np.mgrid[0 : SIDE // PATCH, 0 : SIDE // PATCH].reshape(2, -1)
    grid = torch.from_numpy(np.stack([0 * rows, rows, columns]) + model.block["fix_point"])
    positions = torch.cat([torch.arange(len(ids)).expand(3, -1), grid], dim=1)
    embeds = model.language_model.embed_tokens(ids[None, :-1])
    return hidream.Sample(ids, positions, embeds, [], torch.zeros(1, 0, 3 * PATCH**2))


def hidream_o1(distilled: bool) -> Image.Image:
    core = Decoder(DEMO / "hidream_o1").eval()
    model = nn.Module()
    model.model = core
    hidream.PATCH, hidream.WIDTH, hidream.HEIGHT = PATCH, SIDE, SIDE
    draw = torch.Generator().manual_seed(SEED + 1)
    if not distilled:
        settings = {"sampler": "unipc", "steps": 20, "shift": 3.0, "guidance": 2.0, "noise_scale": 8.0}
        tensors, _ = hidream.draw_loop(model, [sample(core, PROMPT), sample(core, " ")], draw, settings)
        return Image.fromarray(tensors["image_uint8"].numpy())
    return Image.fromarray(flash(model, sample(core, PROMPT), draw))


def flash(model: nn.Module, prompt: hidream.Sample, draw: torch.Generator, steps: int = 8) -> np.ndarray:
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(steps)
    sigmas = solver.sigmas.double().tolist()
    z = 8.0 * hidream.patchify(torch.randn(1, 3, SIDE, SIDE, generator=draw)[0].permute(1, 2, 0).numpy())
    for index, fresh in enumerate(step_noise(steps)):
        picture = hidream.forward(model, prompt, z, sigmas[index] * 1000)
        limit = 2.5 * fresh.std()
        following = sigmas[index + 1]
        z = following * 8.0 * fresh.clamp(-limit, limit) + (1 - following) * picture
    return np.clip((hidream.unpatchify(z) + 1) / 2 * 255, 0, 255).round().astype(np.uint8)


def step_noise(steps: int) -> list[Tensor]:
    import mlx_imagegen  # noqa: F401  # isort: skip
    import mlx.core as mx

    keys = mx.random.split(mx.random.key(SEED), steps)
    drawn = [np.array(mx.random.normal((1, 3, SIDE, SIDE), key=key)) for key in keys]
    return [hidream.patchify(noise[0].transpose(1, 2, 0)) for noise in drawn]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "flux-demo": flux(), "qwen-demo": qwen(False), "qwen-demo-lightning": qwen(True),
        "hidream-demo": hidream_o1(True), "hidream-demo-full": hidream_o1(False),
    }  # fmt: skip
    for name, picture in pictures.items():
        picture.convert("RGB").save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
