"""A job's life, and how long its results are kept."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mlx_imagegen.report import Report
from mlx_imagegen.result import Result
from mlx_imagegen.serving.catalogue import Catalogue
from mlx_imagegen.serving.jobs import CANCELLED, DONE, DRAWING, FAILED, Failure, Job, JobStore
from mlx_imagegen.serving.requests import Limits, Request, read_request
from mlx_imagegen.serving.worker import is_partial


@pytest.fixture
def request_(models_folder: Path) -> Request:
    return read_request({"prompt": "a hen", "count": 2}, Catalogue("flux-demo"), Limits())


def result(side: int) -> Result:
    return Result(Image.new("RGB", (side, side)), 1, Report(), {})


def test_those_who_wait_see_the_first_and_the_last_state(request_: Request) -> None:
    job = Job(request_, "me")

    async def seen() -> list[str]:
        return [job.state async for _ in job.changes(heartbeat=5)]

    def work() -> None:
        time.sleep(0.05)
        for step in range(20):
            job.progress.step = step
            job.move(DRAWING)
        job.move(DONE)

    threading.Thread(target=work).start()
    states = asyncio.run(asyncio.wait_for(seen(), 5))
    assert states[0] == "queued" and states[-1] == DONE and len(states) < 24


def test_a_heartbeat_comes_where_nothing_happens(request_: Request) -> None:
    async def beats() -> list[bool]:
        seen = []
        async for changed in Job(request_, "me").changes(heartbeat=0.01):
            seen.append(changed)
            if len(seen) == 3:
                break
        return seen

    assert asyncio.run(beats()) == [True, False, False]


def test_a_finished_job_stays_what_it_is(request_: Request) -> None:
    job = Job(request_, "me")
    job.move(CANCELLED)
    job.move(DONE)
    job.fail(Failure("too late", "x", 500))
    assert job.state == CANCELLED and job.ended


def test_progress_counts_all_pictures(request_: Request) -> None:
    job = Job(request_, "me")
    assert job.fraction == 0 and job.describe()["seconds_left"] is None
    job.progress.picture, job.progress.step, job.progress.steps = 2, 2, 8
    job.progress.ends_at = time.monotonic() + 100
    job.move(DRAWING)
    described = job.describe(position=3)
    assert described["progress"] == 0.625 and described["position"] == 3 and 99 < described["seconds_left"] <= 100
    job.fail(Failure("no room", "insufficient_memory", 400))
    assert job.describe()["error"] == {"message": "no room", "type": "insufficient_memory"} and job.state == FAILED
    assert "hen" not in str(job.describe())


def test_partial_pictures_are_spread_evenly() -> None:
    for steps, count, expected in ((8, 3, [2, 4, 6, 8]), (4, 1, [2, 4]), (2, 3, [1, 2]), (8, 0, [])):
        assert [step for step in range(1, steps + 1) if is_partial(step, steps, count)] == expected


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"keep_seconds": 75}, 2), ({"keep_bytes": 3 * 300}, 3), ({"keep_jobs": 4}, 4), ({"keep_bytes": 10}, 1), ({}, 6)],
)
def test_results_are_kept_for_a_while(request_: Request, limits: dict[str, int], kept: int) -> None:
    store = JobStore(**limits)
    jobs = [Job(replace(request_, jobs=list(request_.jobs)), "me") for _ in range(6)]
    for index, job in enumerate(jobs):
        job.results = [result(10)]
        store.add(job)
        job.move(DONE)
        job.ended = time.time() - 250 + index * 50
    waiting = Job(request_, "me")
    store.add(waiting)
    assert [store.get(job.id) is not None for job in jobs] == [False] * (6 - kept) + [True] * kept
    assert store.all()[0] is waiting, "what waits is never dropped, and the last result waits to be fetched"
