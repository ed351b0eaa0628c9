"""Pictures shared out: whichever rank is free draws the next one, and rank 0 keeps what comes out.

Rank 0 has one thread for each other rank, which sends it pictures and waits for them; its main thread draws too. A rank
that dies loses only what it had not sent, which the others draw. Near the end a slow rank is given nothing that the
others would finish sooner.
In: an open pipeline and the same jobs on each rank. Out: what `finish` makes of each result where it was drawn, given
to `keep` on rank 0. Must not know: files, how pictures are written.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ..errors import ImagegenError
from ..pipeline import Pipeline
from ..request.job import Job
from ..result import Result, StepEvent
from .group import Group
from .messages import Message
from .pool import Pool


class Handling(Protocol):
    """What is done with a picture: the first two where it is drawn, the others on rank 0, from any of its threads."""

    def finish(self, index: int, result: Result) -> Message: ...

    def observe(self, index: int, event: StepEvent) -> Message: ...

    def keep(self, index: int, finished: Message, rank: int) -> None: ...

    def show(self, index: int, observed: Message, rank: int) -> None: ...

    def lose(self, rank: int, indices: Sequence[int]) -> None: ...


def draw_pictures(
    group: Group, pipeline: Pipeline, jobs: Sequence[Job], handling: Handling, resident: Sequence[bool]
) -> None:
    """On all ranks. `resident`: by rank, whether it keeps the model in memory; one that does not takes several pictures
    at once, so that it reads the parts of the model less often."""
    if group.rank:
        _serve(group, pipeline, jobs, handling)
        return
    pool = Pool(len(jobs), group.size)
    with group.going_on_without_lost_ranks():
        feeding = [
            threading.Thread(target=_feed, args=(group, rank, pool, handling, resident[rank]), daemon=True)
            for rank in range(1, group.size)
        ]
        for thread in feeding:
            thread.start()
        while taken := pool.take(0, chunk(pool, group.size, resident[0])):
            for index, result in _drawn(
                pipeline, jobs, taken, lambda i, e: handling.show(i, handling.observe(i, e), 0)
            ):
                handling.keep(index, handling.finish(index, result), 0)
                pool.finish(0, index)
        for thread in feeding:
            thread.join()


def chunk(pool: Pool, ranks: int, resident: bool) -> int:
    """How many pictures a rank takes at once: half of an even share of what waits, where it reads the model for each
    turn."""
    return 1 if resident else max(1, math.ceil(pool.waiting / (2 * ranks)))


def _drawn(
    pipeline: Pipeline, jobs: Sequence[Job], taken: Sequence[int], on_step: Callable[[int, StepEvent], None]
) -> Iterator[tuple[int, Result]]:
    """`on_step` is given the picture's number among all jobs."""
    results = pipeline.stream([jobs[index] for index in taken], lambda event: on_step(taken[event.picture], event))
    yield from zip(taken, results, strict=True)


def _serve(group: Group, pipeline: Pipeline, jobs: Sequence[Job], handling: Handling) -> None:
    """On a rank other than 0: draws what it is sent until there is no more."""

    def on_step(index: int, event: StepEvent) -> None:
        group.send({"kind": "step", "index": index, "observed": handling.observe(index, event)})

    while (message := group.receive())["kind"] == "draw":
        for index, result in _drawn(pipeline, jobs, message["indices"], on_step):
            group.send({"kind": "finished", "index": index, "finished": handling.finish(index, result)})


def _feed(group: Group, rank: int, pool: Pool, handling: Handling, resident: bool) -> None:
    """On rank 0, in a thread of its own: one other rank's pictures."""
    try:
        while taken := pool.take(rank, chunk(pool, group.size, resident)):
            if not _fed(group, rank, taken, pool, handling):
                handling.lose(rank, pool.lose(rank))
                return
        with contextlib.suppress(OSError):
            group.send({"kind": "end"}, rank)
    except Exception as error:  # the disk may be full
        group.fail(str(error) if isinstance(error, ImagegenError) else f"{type(error).__name__}: {error}")


def _fed(group: Group, rank: int, taken: Sequence[int], pool: Pool, handling: Handling) -> bool:
    """Whether the rank has drawn all of these; if not, it is lost."""
    try:
        group.send({"kind": "draw", "indices": list(taken)}, rank)
    except OSError:
        return False
    left = set(taken)
    while left:
        message = group.receive(rank)
        if message["kind"] == "step":
            handling.show(message["index"], message["observed"], rank)
        elif message["kind"] == "finished":
            handling.keep(message["index"], message["finished"], rank)
            pool.finish(rank, message["index"])
            left.remove(message["index"])
        else:  # "lost" or "left"
            return False
    return True
