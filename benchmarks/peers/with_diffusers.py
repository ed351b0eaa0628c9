"""The blocks by diffusers on the CPU: with_diffusers.py FAMILY FOLDER none OUTPUT ROUNDS, in its own environment."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import measured, say
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file

KINDS = {
    "flux": FluxTransformer2DModel,
    "flux2": Flux2Transformer2DModel,
    "qwen_image": QwenImageTransformer2DModel,
    "z_image": ZImageTransformer2DModel,
}


def main(family: str, folder: Path, output: Path, rounds: int) -> None:
    inputs = load_file(folder / "inputs.safetensors")
    kind: Any = KINDS[family]
    started = time.perf_counter()
    model = kind.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval()
    loaded = time.perf_counter()
    side, text = int(inputs["x"].shape[1] ** 0.5), inputs["txt"].shape[1]
    given: dict[str, Any] = {"hidden_states": inputs["x"], "encoder_hidden_states": inputs["txt"], "return_dict": False}
    if family == "flux2":
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = torch.zeros_like(rows)
        img_ids = torch.stack([place, rows, columns, place], -1).reshape(1, -1, 4)
        txt_ids = torch.zeros(1, text, 4, dtype=torch.long)
        txt_ids[..., 3] = torch.arange(text)
        given |= {"img_ids": img_ids, "txt_ids": txt_ids, "guidance": None}
    elif family == "flux":
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        ids = torch.stack([0 * rows, rows, columns], -1).reshape(-1, 3).float()
        given |= {"pooled_projections": inputs["pooled"], "img_ids": ids, "txt_ids": torch.zeros(text, 3)}
    else:
        given |= {"img_shapes": [[(1, side, side)]], "encoder_hidden_states_mask": None}

    @torch.no_grad()
    def step(index: int) -> torch.Tensor:
        if family == "z_image":
            clean = 1 - inputs["timesteps"][index : index + 1] / 1000
            return -model([inputs["x"][0][:, None]], clean, [inputs["txt"][0]], return_dict=False)[0][0][None, :, 0]
        return model(**given, timestep=inputs["timesteps"][index : index + 1] / 1000)[0]

    steps, last = measured(step, len(inputs["timesteps"]), rounds)
    np.save(output, last.numpy())
    say(steps, load_seconds=loaded - started, before_seconds=0.0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[4]), int(sys.argv[5]))
