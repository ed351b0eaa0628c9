"""Memory of FLUX.1 dev, Fill, Kontext and dev with a control network, planned and measured, at published widths.

    python benchmarks/flux_tools.py FOLDER [--models dev kontext] [--blocks 4] [--size 320]

A few blocks of each kind with random weights, in 16 bits on disk, both text encoders with one layer, and the whole
autoencoder. One step, one stage after the other, each model in its own process. The files are written to FOLDER.
"""

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from full_size import GIB, draw
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.hub.tensor_shapes import read_tensor_shapes, write_shape_only
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.planning.plan import plan

ROOT = Path(__file__).parents[1]
MODELS = {"dev": "flux-dev", "fill": "flux-fill-dev", "kontext": "flux-dev", "control": "flux-dev"}
NETWORK = "flux-controlnet-union-pro-2"
NEAREST = {"fill": "FluxFillPipeline", "kontext": "FluxKontextPipeline"}
DEPTHS = ("num_layers", "num_single_layers", "num_hidden_layers", "num_decoder_layers")
TRANSFORMER, ENCODERS = ("single_transformer_blocks", "transformer_blocks"), ("encoder.block", "encoder.layers")


def write_model(folder: Path, shapes: str, blocks: int) -> None:
    """Those shapes at fewer layers, with numbers."""
    data = read_tensor_shapes(shapes)
    for place, config in data["files"].items():
        depth = blocks if "text" not in place else 1
        config.update({name: min(config[name], depth) for name in DEPTHS if config.get(name)})
    for part, kinds in data["tensors"].items():
        stacks, depth = (ENCODERS, 1) if "text" in part else (TRANSFORMER, blocks)
        run = re.compile(rf"((?:{'|'.join((*stacks, 'controlnet_blocks'))})\.)\{{0-\d+\}}")
        if part != "vae":
            data["tensors"][part] = {
                dtype: {run.sub(rf"\g<1>{{0-{depth - 1}}}", name): shape for name, shape in tensors.items()}
                for dtype, tensors in kinds.items()
            }
    write_shape_only(folder, data)
    for part in data["tensors"]:
        draw(open_checkpoint(folder / part).tensors)


def run(folder: Path, kind: str, size: int) -> None:
    """In a process of its own: draws, prints."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    first, second = (Image.fromarray(levels) for levels in pictures)
    asked: dict[str, Any] = {
        "fill": {"image": first, "mask": second.convert("L")},
        "kontext": {"references": [first]},
        "control": {"control": [(first, str(folder / "network"), 0.7)]},
    }.get(kind, {})
    pipeline = load(folder, resident=False)
    asked |= {"steps": 1, "width": size, "height": size, "max_sequence_length": 64, "seed": 1}
    (job,) = pipeline.jobs("a map", **asked)
    report = pipeline.generate("a map", **asked).report
    planned = plan(pipeline.family, job.settings, prompt=job.prompt)  # now that the network is selected
    measured = report.process_peak_bytes
    print(
        f"{kind:8} {size}x{size}: planned {planned.peak_bytes / GIB:.3f} GiB, measured {measured / GIB:.3f} "
        f"({measured / planned.peak_bytes - 1:+.1%}); the step {report.step_seconds[0]:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--inside", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        run(args.folder, args.inside, args.size)
        return
    from tests.draw import drawn_data  # not in the processes that are measured

    for kind in args.models:
        folder = args.folder / kind
        write_model(folder, MODELS[kind], args.blocks)
        index = json.loads((drawn_data() / "flux/dev/model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": NEAREST.get(kind, "FluxPipeline")}))
        for name in ("scheduler", "tokenizer", "tokenizer_2"):
            shutil.copytree(drawn_data() / "flux/dev" / name, folder / name)
        if kind == "control":
            write_model(folder / "network", NETWORK, args.blocks)
        again = [sys.executable, str(ROOT / "benchmarks/run.py"), "flux_tools", str(folder), "--inside", kind]
        subprocess.run([*again, "--size", str(args.size)], check=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
