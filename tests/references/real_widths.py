"""Computes what tests/real_widths.py describes by diffusers and transformers in float32.

    python tests/references/real_widths.py

Writes tests/data/real_widths.safetensors, some projections of every token's output. Needs torch, diffusers and
transformers, 3 GB of memory, and a few minutes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from safetensors.numpy import save_file
from torch import nn
from transformers import Qwen3VLTextConfig, T5Config, T5EncoderModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import real_widths as drawn
from tests.real_widths import FLUX_AXES, FLUX_HEADS, FLUX_THETA, FLUX_WIDTH, SIZES, Size

Outputs = Iterator[tuple[str, torch.Tensor]]
# The layers that give modulation: here their bias is all that they give.
MODULATION = {
    "norm1.linear": "img", "norm1_context.linear": "txt", "norm.linear": "single",
    "img_mod.1": "img", "txt_mod.1": "txt",
}  # fmt: skip


def fill(block: nn.Module) -> nn.Module:
    for name, value in block.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer not in MODULATION:
            value.copy_(torch.from_numpy(drawn.weight(name, tuple(value.shape))))
        elif kind == "weight":
            value.zero_()
        else:
            value.copy_(torch.from_numpy(drawn.modulation(MODULATION[layer], len(value) // FLUX_WIDTH)).flatten())
    return block.eval()


def streams(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    shapes = {"img": size.image, "txt": size.text}
    img, txt = (torch.from_numpy(drawn.tokens(name, 1, count, FLUX_WIDTH)) for name, count in shapes.items())
    return img, txt


def flux_double(size: Size) -> Outputs:
    block = fill(FluxTransformerBlock(FLUX_WIDTH, FLUX_HEADS, FLUX_WIDTH // FLUX_HEADS))
    img, txt = streams(size)
    rope = FluxPosEmbed(FLUX_THETA, list(FLUX_AXES))(torch.from_numpy(drawn.positions(size)))
    txt, img = block(img, txt, torch.zeros(1, FLUX_WIDTH), rope)
    yield "flux_double.img", img
    yield "flux_double.txt", txt


def flux_single(size: Size) -> Outputs:
    block = fill(FluxSingleTransformerBlock(FLUX_WIDTH, FLUX_HEADS, FLUX_WIDTH // FLUX_HEADS))
    img, txt = streams(size)
    rope = FluxPosEmbed(FLUX_THETA, list(FLUX_AXES))(torch.from_numpy(drawn.positions(size)))
    yield "flux_single", torch.cat(block(img, txt, torch.zeros(1, FLUX_WIDTH), rope), dim=1)


def qwen_image(size: Size) -> Outputs:
    block = fill(QwenImageTransformerBlock(FLUX_WIDTH, FLUX_HEADS, FLUX_WIDTH // FLUX_HEADS))
    img, txt = streams(size)
    places = drawn.positions(size)
    angles = [
        np.outer(places[:, axis], FLUX_THETA ** (-np.arange(0, dims, 2) / dims)) for axis, dims in enumerate(FLUX_AXES)
    ]
    turns = torch.from_numpy(np.exp(1j * np.concatenate(angles, axis=1))).to(torch.complex64)
    rope = turns[size.text :], turns[: size.text]
    txt, img = block(img, txt, None, torch.zeros(1, FLUX_WIDTH), rope)
    yield "qwen_image.img", img
    yield "qwen_image.txt", txt


def decoder(size: Size) -> Outputs:
    sizes = {name: value for name, value in drawn.DECODER.items() if name != "rope_theta"}
    config = Qwen3VLTextConfig(**sizes, num_hidden_layers=1, vocab_size=8)
    config._attn_implementation = "sdpa"
    layer = fill(Qwen3VLTextDecoderLayer(config, 0))
    x = torch.from_numpy(drawn.tokens("decoder", 1, size.decoder, config.hidden_size))
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    angles = np.outer(np.arange(size.decoder), drawn.DECODER["rope_theta"] ** -exponents)
    angles = torch.from_numpy(np.concatenate([angles, angles], axis=1)[None])
    rope = angles.cos().float(), angles.sin().float()
    seen = torch.zeros(1, 1, size.decoder, size.decoder)  # without a mask it would be causal
    out = layer(x, position_embeddings=rope, attention_mask=seen)
    yield "decoder", out if isinstance(out, torch.Tensor) else out[0]


def t5(size: Size) -> Outputs:
    model = T5EncoderModel(T5Config(**drawn.T5, vocab_size=8, feed_forward_proj="gated-gelu"))
    fill(model)
    x = torch.from_numpy(drawn.tokens("t5", 1, size.t5, drawn.T5["d_model"]))
    yield "t5", model(inputs_embeds=x, attention_mask=torch.ones(1, size.t5)).last_hidden_state


def convolution(size: Size) -> Outputs:
    block = fill(ResnetBlock2D(in_channels=drawn.CHANNELS, temb_channels=None, groups=drawn.GROUPS, eps=1e-6))
    x = torch.from_numpy(drawn.tokens("pixels", 1, size.pixels, size.pixels, drawn.CHANNELS))
    yield "convolution", block(x.permute(0, 3, 1, 2), None).permute(0, 2, 3, 1)


@torch.no_grad()
def main() -> None:
    truth = {}
    for name, size in SIZES.items():
        for outputs in (flux_double, flux_single, qwen_image, decoder, t5, convolution):
            for part, out in outputs(size):
                truth[f"{name}.{part}"] = drawn.projected(out.numpy())
                print(name, part, tuple(out.shape), f"{out.std():.3f}", flush=True)
    save_file(truth, drawn.TRUTH)


if __name__ == "__main__":
    main()
