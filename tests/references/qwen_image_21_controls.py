"""Adds a Fun control network to a drawn Qwen-Image-2.1, with what it makes of pictures.

    python tests/references/qwen_image_21_controls.py FOLDER BASE [--seed N]

BASE is a draw of qwen_image_21.py. FOLDER gets a transformer with more blocks than BASE's, network.safetensors,
options.json, pictures, masks and reference.safetensors: pictures of the whole pipeline. What is not there is as in
BASE. diffusers has no such network: here it stands next to diffusers' transformer as VideoX-Fun's class and pipeline
describe it (QwenImage21ControlTransformer2DModel), in hooks, over the whole sequence at every step. Needs torch,
diffusers and transformers.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoders import save_drawn
from command import run_on_base
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21TransformerBlock
from flux_tools import draw_pictures
from PIL import Image
from qwen_image_21 import Processor, spread
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration
from weight_descriptions import redraw

STRENGTHS = 0.7, 0.4
START, END = 0.2, 0.8
HEADS = 8  # so that layers are wide enough to be packed
SIDE = 16  # pixels of a latent's side


class FunControl(torch.nn.Module):
    def __init__(self, model: QwenImage21Transformer2DModel, blocks: int):
        super().__init__()
        config, dims = model.config, model.inner_dim
        heads, head = config.num_attention_heads, config.attention_head_dim
        self.control_img_in = torch.nn.Linear(2 * config.in_channels + 1, dims)
        self.control_blocks = torch.nn.ModuleList(
            QwenImage21TransformerBlock(dims, heads, head, config.mlp_ratio, config.eps) for _ in range(blocks)
        )
        self.control_blocks[0].before_proj = torch.nn.Linear(dims, dims)
        for block in self.control_blocks:
            block.after_proj = torch.nn.Linear(dims, dims)

    def forward(self, x: torch.Tensor, context: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
        """What is added after every second block, first to last. `x`: the sequence before the first one."""
        joint = torch.zeros_like(x)
        joint[:, kwargs["target_token_mask"]] = self.control_img_in(context)
        c = self.control_blocks[0].before_proj(joint) + x
        added = []
        for block in self.control_blocks:
            c = block(c, **kwargs)
            added.append(block.after_proj(c))
        return added


class Controlled:
    """A pipeline next to whose transformer a network runs."""

    def __init__(self, base: Path, transformer: QwenImage21Transformer2DModel, network: FunControl):
        vae = AutoencoderKLQwenImage21.from_pretrained(base / "vae").eval()
        text = Qwen3VLForConditionalGeneration.from_pretrained(base / "text_encoder").eval()
        processor = Processor(Qwen2Tokenizer.from_pretrained(base / "processor"))
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler")
        sigmas = json.loads((base / "model_index.json").read_text()).get("sample_sigmas")
        self.pipeline = QwenImage21Pipeline(scheduler, vae, text, processor, transformer, sigmas)
        self.pipeline.set_progress_bar_config(disable=True)
        self.network = network
        self.contexts: list[tuple[torch.Tensor, float]] = []  # each with its strength
        self.window = 0.0, 1.0
        self.step, self.steps = 0, 1
        self.added: list[torch.Tensor] = []
        blocks = transformer.transformer_blocks
        blocks[0].register_forward_pre_hook(self._before, with_kwargs=True)
        for index, block in enumerate(blocks[::2]):
            block.register_forward_hook(lambda _block, _args, out, index=index: out + self.added[index])

    def _before(self, block: torch.nn.Module, args: tuple[()], kwargs: dict[str, Any]) -> None:
        """`added` for this pass, of all contexts together; 0 outside the window."""
        start, end = self.window
        inside = start <= self.step / self.steps and (self.step + 1) / self.steps <= end
        more = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.added = [torch.zeros(1)] * len(self.network.control_blocks)
        for context, strength in self.contexts if inside else ():
            hints = self.network(kwargs["hidden_states"], context, **more)
            self.added = [sum_ + hint * strength for sum_, hint in zip(self.added, hints, strict=True)]

    def run(
        self,
        options: dict[str, Any],
        *contexts: tuple[torch.Tensor, float],
        window: tuple[float, float] = (0.0, 1.0),
        **more: Any,
    ) -> torch.Tensor:
        """[H, W, 4] in levels."""
        self.contexts, self.window, self.step, self.steps = list(contexts), window, 0, options["steps"]

        def after_step(pipeline: Any, index: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
            self.step = index + 1
            return {}

        names = ("prompt", "width", "height")
        made = self.pipeline(
            **{name: options[name] for name in names}, num_inference_steps=options["steps"], output_type="np",
            output_resolution=options["side"], generator=torch.Generator().manual_seed(options["seed"]),
            use_kv_cache=False, callback_on_step_end=after_step, **more,
        ).images[0]  # fmt: skip
        return torch.from_numpy((made * 255).round().astype(np.uint8))

    def context(
        self,
        options: dict[str, Any],
        control: Image.Image | None,
        picture: Image.Image | None = None,
        mask: Image.Image | None = None,
    ) -> torch.Tensor:
        """Latents of what is followed, where nothing is drawn, and latents of the picture without what is drawn."""
        size = options["height"], options["width"]
        rows, columns = (side // SIDE for side in size)
        pixels = VaeImageProcessor(vae_scale_factor=SIDE)
        greys = VaeImageProcessor(vae_scale_factor=SIDE, do_normalize=False)
        drawn = torch.ones(1, 1, *size) if mask is None else (greys.preprocess(mask, *size) >= 0.5).float()[:, :1]
        nothing = torch.zeros(1, self.pipeline.transformer.config.in_channels, 1, rows, columns)
        hole = nothing if picture is None else self._latents(pixels.preprocess(picture, *size) * (drawn < 0.5))
        followed = nothing if control is None else self._latents(pixels.preprocess(control, *size))
        kept = interpolate(1 - drawn, size=(rows, columns), mode="nearest").unsqueeze(2)
        return torch.cat([followed, kept, hole], dim=1).flatten(2).transpose(1, 2)

    def _latents(self, pixels: torch.Tensor) -> torch.Tensor:
        opaque = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1).unsqueeze(2)
        return self.pipeline._encode_vae_image(opaque, None)


def draw(folder: Path, base: Path, seed: int) -> None:
    torch.manual_seed(seed)
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = json.loads((base / "options.json").read_text())
    options |= {"seed": seed, "width": 64, "height": 32 * dice.choice([1, 2])}
    (folder / "options.json").write_text(json.dumps(options, indent=1))
    blocks = dice.choice([2, 3])
    config = dict(QwenImage21Transformer2DModel.load_config(base / "transformer"))
    deeper = QwenImage21Transformer2DModel.from_config(
        config | {"num_layers": 2 * blocks, "num_attention_heads": HEADS}
    )
    transformer = save_drawn(deeper, folder / "transformer", spread, seed)
    network, file = FunControl(transformer, blocks), folder / "network.safetensors"
    save_file(network.state_dict(), file)
    redraw(file, spread, seed + 1)
    network.load_state_dict(load_file(file))
    draw_pictures(folder, options, dice)
    while not holds_a_place(folder, options):
        draw_pictures(folder, options, dice)
    with torch.no_grad():
        made = pictures(folder, Controlled(base, transformer, network.eval()), options)
    save_file({name: picture.contiguous() for name, picture in made.items()}, folder / "reference.safetensors")


def holds_a_place(folder: Path, options: dict[str, Any]) -> bool:
    """Whether the mask covers a pixel at which it is read for a latent: one that lies between them all is refused."""
    mask = Image.open(folder / "mask.hard.png").resize((options["width"], options["height"]), Image.Resampling.LANCZOS)
    return bool(np.asarray(mask)[::SIDE, ::SIDE].max() == 255)


def pictures(folder: Path, model: Controlled, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    first, second, mask = (Image.open(folder / f"{name}.png") for name in ("picture1", "picture2", "mask.hard"))
    cfg = {"negative_prompt": options["negative_prompt"], "true_cfg_scale": options["cfg"]}
    one, other = (
        (model.context(options, picture), strength)
        for picture, strength in zip((second, first), STRENGTHS, strict=True)
    )
    hole = model.context(options, second, first, mask), STRENGTHS[0]
    alone = model.context(options, None, first, mask), STRENGTHS[0]
    return {
        "plain": model.run(options),
        "one": model.run(options, one),
        "window": model.run(options, one, window=(START, END)),
        "cfg": model.run(options, one, **cfg),
        "two": model.run(options, one, other),
        "reference": model.run(options, one, image=[second]),
        "hole": model.run(options, hole, **cfg),
        "inpaint": model.run(options, alone),
    }


if __name__ == "__main__":
    run_on_base(draw, __doc__)
