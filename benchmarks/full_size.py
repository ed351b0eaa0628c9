"""Memory of drawing a picture with Qwen-Image-2.1 at its published size, with random weights packed while loading.

    python benchmarks/full_size.py FOLDER [--quant q4] [--size 256] [--steps 2] [--plan]

The model's files are written to FOLDER as sparse files: as large as the published ones, with numbers in the first rows
of each tensor (about 0.5 GB on disk). One stage after the other; prints each stage's planned peak next to MLX's and the
process' own. Packing does not search scales here: at this size that takes an hour, and no more memory. `--plan` runs
nothing.
"""

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import argparse
import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlx_imagegen import load
from mlx_imagegen.bfloat import to_bf16
from mlx_imagegen.hub.manifest import data_folder, manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.hub.tokenizer_data import write_tokenizer
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.tensor import Tensor
from mlx_imagegen.planning.plan import plan

MODEL, PIPELINE, PARTS = "qwen-image-2.1", "QwenImage21Pipeline", ("transformer", "text_encoder", "vae")
GIB = 2**30
ROWS = 64  # of each matrix that get numbers; the others stay zero
PROMPT = "a red fox"


def write_model(folder: Path) -> None:
    with shape_only_folder(manifests()[MODEL]) as shapes:
        subprocess.run(["cp", "-r", "--sparse=always", str(shapes), str(folder)], check=True)
    write_tokenizer(folder / "drawn", "qwen3")
    shutil.copytree(folder / "drawn", folder / "processor", dirs_exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PIPELINE}))
    for part in PARTS:
        draw(open_checkpoint(folder / part).tensors)


def draw(tensors: Mapping[str, Tensor]) -> None:
    dice = np.random.default_rng(0)
    for name, tensor in tensors.items():
        is_norm = len(tensor.shape) == 1 or "gamma" in name
        rows, inner = min(tensor.shape[0], ROWS), math.prod(tensor.shape[1:])
        count = math.prod(tensor.shape) if is_norm else rows * inner
        values = dice.standard_normal(count, np.float32) * np.float32(0.1 if is_norm else inner**-0.5)
        if is_norm and "bias" not in name and "text_norm" not in name:  # that one counts from 1
            values += 1
        with tensor.path.open("r+b") as file:
            file.seek(tensor.start)
            file.write((to_bf16(values) if tensor.dtype == "BF16" else values).tobytes())


def run(folder: Path, quant: str, asked: dict[str, int], only_plan: bool) -> None:
    recipe = folder / f"{quant}.toml"
    text = (data_folder("quant") / f"{quant}.toml").read_text()
    recipe.write_text(text.replace("search = true", "search = false"))
    pipeline = load(folder, quant=str(recipe), resident=False)
    (job,) = pipeline.jobs(PROMPT, **asked)
    planned = plan(pipeline.family, job.settings, prompt=job.prompt)
    for stage in planned.stages:
        print(
            f"{stage.name:8} planned {stage.resident_bytes / GIB:.3f} + {stage.working_bytes / GIB:.3f} GiB", flush=True
        )
    if only_plan:
        return
    report = pipeline.generate(PROMPT, **asked).report
    for name, peak in report.mlx_peak_bytes.items():
        print(f"{name:8} MLX {peak / GIB:.3f} GiB, the process so far {report.process_peaks[name] / GIB:.3f}")
    measured = report.process_peak_bytes
    difference = measured / planned.peak_bytes - 1
    print(f"peak planned {planned.peak_bytes / GIB:.3f}, measured {measured / GIB:.3f} GiB ({difference:+.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quant", default="q4")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--plan", action="store_true")
    args = parser.parse_args()
    if not args.folder.exists():
        write_model(args.folder)
    asked = {"seed": 1, "width": args.size, "height": args.size, "steps": args.steps}
    run(args.folder, args.quant, asked, args.plan)


if __name__ == "__main__":
    main()
