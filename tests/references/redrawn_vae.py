"""Draws an autoencoder again, by its config.json, with diffusers: redrawn_vae.py FOLDER. Its weights are replaced."""

import json
import sys
from pathlib import Path

import diffusers
import torch


def main(folder: Path) -> None:
    torch.manual_seed(0)
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(diffusers, config["_class_name"])
    for path in folder.glob("*.safetensors"):
        path.unlink()
    vae = kind.from_config(config)
    with torch.no_grad():
        for name, value in vae.named_parameters():
            if "norm" in name and value.ndim:  # so that a swap of two shows
                value.add_(0.1 * torch.randn_like(value))
    vae.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
