"""What a staged FLUX.1 run has in memory at each stage: the largest stage, not the sum.

Takes the tests' tiny FLUX.1, widens its T5 and its transformer with random weights (about 0.5 GB each), makes one
picture with one stage in memory at a time, and prints MLX's active memory after encoding, at every step and at the
decode.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from quant_convert import shapes
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from tests.draw import drawn_data

SOURCE = drawn_data() / "flux/dev"
WIDE_T5 = {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 16}
WIDE_FLUX = {"attention_head_dim": 64, "num_attention_heads": 12, "axes_dims_rope": [16, 24, 24], "num_layers": 5}
MB = 2**20


def main() -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        model = _widened(Path(folder) / "flux")
        mx.clear_cache()
        pipeline = load(model, resident=False)
        sizes = {name: component.nbytes for name, component in pipeline.family.components.items()}
        seen: dict[str, int] = {}
        _watch(pipeline, seen)
        report = pipeline.generate(
            "a map", seed=1, steps=2, width=128, height=128, on_step=lambda event: _note(seen, f"step {event.step}")
        ).report
    print("FLUX.1, one stage at a time: MLX's active memory, MB")
    for name, value in sizes.items():
        print(f"  {name:16s} weighs {value / MB:8.1f}")
    for name, value in seen.items():
        print(f"  {name:22s} {value / MB:8.1f}")
    peak = max(report.mlx_peak_bytes.values())
    print(
        f"  peak {peak / MB:.1f} MB; all components together {sum(sizes.values()) / MB:.1f} MB; ratio"
        f" {peak / sum(sizes.values()):.2f}"
    )
    return seen


def _note(seen: dict[str, int], name: str) -> None:
    seen[name] = mx.get_active_memory()


def _watch(pipeline: Any, seen: dict[str, int]) -> None:
    """Notes the memory when the noise is drawn (the encoders should be gone) and when the decoder begins."""
    family = pipeline.family
    noise, decode = family.noise, family.decode
    family.noise = lambda *given: (_note(seen, "after encoding"), noise(*given))[1]
    family.decode = lambda *given: (_note(seen, "before decoding"), decode(*given))[1]


def _widened(folder: Path) -> Path:
    shutil.copytree(SOURCE, folder)
    t5 = json.loads((folder / "text_encoder_2/config.json").read_text()) | WIDE_T5
    (folder / "text_encoder_2/config.json").write_text(json.dumps(t5))
    flux = json.loads((folder / "transformer/config.json").read_text())
    flux |= WIDE_FLUX | {"num_single_layers": 8, "joint_attention_dim": WIDE_T5["d_model"]}
    (folder / "transformer/config.json").write_text(json.dumps(flux))
    _fill_t5(folder / "text_encoder_2/model.safetensors", t5)
    _fill_flux(folder / "transformer/diffusion_pytorch_model.safetensors", flux)
    return folder


def _fill_t5(path: Path, config: dict[str, Any]) -> None:
    from mlx_imagegen.text.t5 import T5Config, T5Encoder

    rows = load_file(path)["shared.weight"].shape[0]
    tensors = _random(T5Encoder(T5Config.read(config, path)))
    save_file(tensors | {"shared.weight": np.ones((rows, config["d_model"]), np.float32)}, path)


def _fill_flux(path: Path, config: dict[str, Any]) -> None:
    from mlx_imagegen.families.flux1.config import FluxConfig
    from mlx_imagegen.families.flux1.modulation import FluxModulators
    from mlx_imagegen.families.flux1.transformer import FluxTransformer

    read = FluxConfig.read(config, path)
    save_file(_random(FluxTransformer(read), FluxModulators(read)), path)


def _random(*trees: nn.Module) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(shape, np.float32) * np.float32(0.03) for name, shape in shapes(*trees).items()}


if __name__ == "__main__":
    main()
