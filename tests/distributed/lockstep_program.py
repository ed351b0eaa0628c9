"""What a rank does in the comparisons: draws with each model alone, then together with the others, and compares.

`python lockstep_program.py MODE JOBS.json`: JOBS.json lists models with how they are opened and what is asked of them.
"""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_imagegen import load
from mlx_imagegen import pipeline as pipeline_module
from mlx_imagegen.distributed.branches import BranchExchange, why_not_branches
from mlx_imagegen.distributed.group import Group
from mlx_imagegen.distributed.layers import share_layers, why_not_layers
from mlx_imagegen.distributed.lockstep import Shared, draw_in_lockstep
from mlx_imagegen.launched import launch
from mlx_imagegen.layers.linear import DENSE, PACKED, Linear
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.planning.hosts import BRANCHES, LAYERS
from mlx_imagegen.request.job import Job
from mlx_imagegen.result import StepEvent


def share(group: Group, pipeline: Pipeline, jobs: list[Job], mode: str, parts: list[int] | None) -> Shared:
    if mode == BRANCHES:
        assert why_not_branches(jobs, group.size) is None
        pipeline.run_branches = exchange = BranchExchange(group)
        return exchange
    return share_layers(pipeline, group, parts or [1] * group.size)


def mix_kernels(rank: int) -> None:
    """For the denoiser: by what each host has measured, ranks may differ."""
    dice = random.Random(rank)

    def choose(layers: Iterable[tuple[Linear, int]], *_: Any) -> None:
        for layer, _ in layers:
            layer.kernel = dice.choice((PACKED, DENSE))

    pipeline_module.choose = choose


def compare(group: Group, mode: str, entry: dict[str, Any]) -> None:
    asked = entry["asked"]
    if entry["mixed_kernels"]:
        mix_kernels(group.rank)
    pipeline = load(entry["model"], **entry["opened"])
    jobs = pipeline.jobs("a red fox", **asked)
    if mode == LAYERS and (refused := why_not_layers(pipeline.family, jobs, group.size)):
        if group.rank == 0:
            print(json.dumps({"refused": refused}), flush=True)
        return
    alone = load(entry["model"], **entry["opened"]).generate("a red fox", **asked)
    shared = share(group, pipeline, jobs, mode, entry.get("parts"))
    counted: list[StepEvent] = []
    (together,) = draw_in_lockstep(group, pipeline, jobs, mode, shared, counted.append)
    assert together.record["parallel"] == mode and len(counted) == len(alone.report.step_seconds)
    if group.rank == 0:
        first, second = (np.asarray(result.image).astype(int) for result in (alone, together))
        line = {
            "model": entry["model"],
            "family": pipeline.family.name,
            "levels": int(abs(first - second).max()),
            "spread": float(first.std()),
            "shared": [name for name, part in pipeline.family.components.items() if part.sharing],
            "velocity_bytes": 4 * int(np.prod(pipeline.family.shape(jobs[0].settings))),
            "ranks": together.report.as_dict()["ranks"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    found = launch()
    assert found is not None
    with Group(found) as group:
        group.start_collectives()
        for entry in json.loads(Path(sys.argv[2]).read_text()):
            compare(group, sys.argv[1], entry)
