"""Memory of each rank when layers are shared out, against the plan: full-width blocks of FLUX.1 and Qwen-Image.

    python benchmarks/ranks_memory.py [FAMILY ...] [--ranks 2] [--size 512] [--quant q4]

The models have a double and a single block of FLUX.1, or two blocks of Qwen-Image, as wide as the published ones, with
random weights; their text encoders and autoencoders are the tests' tiny ones. Ranks are processes on this machine, on
MLX's ring. Prints each rank's planned and measured peak, and the bytes summed per step, counted and planned.
"""

import mlx_imagegen  # noqa: F401  # isort: skip  # before mlx.core: it brings a fast BLAS in

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx
import numpy as np

from mlx_imagegen import load
from mlx_imagegen.distributed.group import Group
from mlx_imagegen.distributed.layers import share_layers
from mlx_imagegen.distributed.lockstep import draw_in_lockstep
from mlx_imagegen.launched import launch
from mlx_imagegen.loading.modules import join, layers, own_parameters
from mlx_imagegen.machine import GIB
from mlx_imagegen.planning.hosts import exchange_of
from mlx_imagegen.planning.plan import plan
from tests.distributed.ranks import finish, start
from tests.distributed.wide_models import MODELS
from tests.draw import drawn_data

STEPS, SECONDS = 2, 1800
WIDE = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]}
FAMILIES = {
    "flux/dev": WIDE | {"num_layers": 1, "num_single_layers": 1},
    "qwen_image/image": WIDE | {"num_layers": 2},
}
ROWS = 1 << 22  # numbers drawn once, for all tensors


def write_model(name: str, folder: Path) -> None:
    shutil.copytree(drawn_data() / name, folder)
    path = folder / "transformer/config.json"
    data = json.loads(path.read_text()) | FAMILIES[name]
    path.write_text(json.dumps(data))
    for file in path.parent.glob("*.safetensors*"):
        file.unlink()
    config = MODELS[name].config.read(data, path)
    drawn = np.random.default_rng(0).standard_normal(ROWS, np.float32)
    tensors = {}
    for tree in MODELS[name].trees:
        for module, layer in layers(tree(config)):
            for parameter, value in own_parameters(layer).items():
                spread = 0.8 / value.shape[-1] ** 0.5 if value.ndim > 1 else 0.1
                values = np.resize(drawn, value.shape) * spread + (parameter == "weight" and value.ndim == 1)
                tensors[join(module, parameter)] = mx.array(values).astype(mx.bfloat16)
                mx.eval(tensors[join(module, parameter)])
    mx.save_safetensors(str(folder / "transformer/model.safetensors"), tensors)


def measure(group: Group, folder: str, asked: dict[str, int], quant: str | None) -> dict[str, object]:
    pipeline = load(folder, quant=quant, resident=False)
    jobs = pipeline.jobs("a red fox", **asked)  # type: ignore[arg-type]
    shared = share_layers(pipeline, group, [1] * group.size)
    planned = plan(pipeline.family, jobs[0].settings, prompt=jobs[0].prompt)
    (result,) = draw_in_lockstep(group, pipeline, jobs, "layers", shared)
    report = result.report
    exchange = exchange_of(pipeline.family, jobs[0].settings)
    return {
        "stages": [(stage.name, stage.resident_bytes, stage.working_bytes) for stage in planned.stages],
        "mlx": report.mlx_peak_bytes,
        "process": report.process_peaks,
        "planned": planned.peak_bytes,
        "measured": report.process_peak_bytes,
        "sums": report.ranks[0]["sums"] if report.ranks else 0,
        "bytes": report.ranks[0]["summed_bytes"] if report.ranks else 0,
        "planned_bytes": exchange.step_bytes * STEPS + exchange.prompt_bytes,
    }


def run_rank(arguments: list[str]) -> None:
    mx.set_default_device(mx.cpu)
    found = launch()
    assert found is not None
    with Group(found) as group:
        group.start_collectives()
        lines = group.gather(measure(group, arguments[0], json.loads(arguments[1]), arguments[2] or None))
        if group.rank == 0:
            print(json.dumps(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--quant", default="")
    args = parser.parse_args()
    asked = json.dumps({"seed": 1, "steps": STEPS, "width": args.size, "height": args.size})
    for name in args.families:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            write_model(name, folder)
            command = [__file__, "--rank", str(folder), asked, args.quant]
            outputs = finish(start(args.ranks, command, Path(temporary)), SECONDS)
            assert all(code == 0 for code, _, _ in outputs), "\n".join(error for _, _, error in outputs)
            for rank, line in enumerate(json.loads(outputs[0][1])):
                describe(name, rank, line)


def describe(name: str, rank: int, line: dict[str, object]) -> None:
    planned, measured = line["planned"], line["measured"]
    difference = f"{measured / planned - 1:+.1%}"
    print(
        f"{name} rank {rank}: planned {planned / GIB:.3f} GiB, measured {measured / GIB:.3f} ({difference}); "
        f"{line['sums']} sums of {line['bytes']} bytes, planned {line['planned_bytes']}",
        flush=True,
    )
    for stage, resident, working in line["stages"]:
        print(f"  {stage:8} planned {resident / GIB:.3f} + {working / GIB:.3f}")
    for stage, peak in line["mlx"].items():
        print(f"  {stage:8} MLX {peak / GIB:.3f}, the process so far {line['process'][stage] / GIB:.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        run_rank(sys.argv[2:])
    else:
        main()
