"""What one of two ranks does: draws with each model alone, then with one branch on each, and compares.

`python branches_program.py FOLDER NAME=JSON…`: models' folders below FOLDER, and how a picture of each is asked for.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_imagegen import load
from mlx_imagegen.distributed.branches import BranchExchange, why_not_branches
from mlx_imagegen.distributed.group import Group
from mlx_imagegen.distributed.lockstep import draw_in_lockstep
from mlx_imagegen.launched import launch
from mlx_imagegen.result import StepEvent


def compare(group: Group, model: str, parameters: dict[str, object]) -> None:
    pipeline = load(model)
    jobs = pipeline.jobs("a red fox", **parameters)  # type: ignore[arg-type]
    assert why_not_branches(jobs, group.size) is None
    (alone,) = pipeline.stream(jobs)
    exchange = BranchExchange(group)
    pipeline = load(model)
    pipeline.run_branches = exchange
    counted: list[StepEvent] = []
    family = type(pipeline.family)
    drawn = draw_in_lockstep(group, pipeline, jobs, "branches", exchange.take_statistics, counted.append)
    (shared,) = drawn
    assert shared.record["parallel"] == "branches" and len(counted) == len(alone.report.step_seconds)
    if group.rank == 0:
        first, second = (np.asarray(result.image).astype(int) for result in (alone, shared))
        ranks = shared.report.as_dict()["ranks"]
        (job,) = jobs
        latents = np.prod(pipeline.family.shape(job.settings))
        line = {
            "family": family.__name__,
            "levels": int(abs(first - second).max()),
            "flat": bool(first.std() == 0),
            "steps": [len(rank["step_seconds"]) for rank in ranks],
            "bytes_a_step": [rank["sent_bytes"] / len(counted) / (4 * latents) for rank in ranks],
            "waited": all(rank["waited_seconds"] > 0 for rank in ranks),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    found = launch()
    assert found is not None
    with Group(found) as group:
        group.start_collectives()
        for argument in sys.argv[2:]:
            name, _, parameters = argument.partition("=")
            place = Path(sys.argv[1]) / name
            compare(group, str(place) if place.is_dir() else name, json.loads(parameters))
