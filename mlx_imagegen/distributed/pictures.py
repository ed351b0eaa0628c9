"""Shares out pictures: the next free rank draws the next one, and rank 0 keeps the results.

Rank 0 has one thread for each other rank, which sends it pictures and waits for the results; its main thread draws too.
If a rank dies, the others draw what it had not sent. Near the end, a slow rank gets no picture that the others would
finish sooner.
In: the same `Work` on each rank. Out: the result of `draw` for each picture, kept on rank 0. Must not know: models,
files, how pictures are drawn and written.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ..errors import described
from .group import Group
from .messages import Message
from .pool import Pool

# In place of a picture: why this rank cannot draw this one and others of its kind; or why nobody can draw this one.
DECLINED, FAILED = "declined", "failed"


class Work(Protocol):
    """Pictures, by their numbers. `draw` runs where they are drawn, the rest on rank 0, in any thread."""

    def draw(self, indices: Sequence[int], on_step: Callable[[int, Message], None]) -> Iterator[tuple[int, Message]]:
        """Each picture with what is sent to rank 0; `on_step` is given what is to be seen of one that is under way."""

    def keep(self, index: int, finished: Message, rank: int) -> None: ...

    def show(self, index: int, observed: Message, rank: int) -> None: ...

    def lose(self, rank: int, indices: Sequence[int]) -> None: ...


def gone(name: str, unfinished: int) -> str:
    """What rank 0 prints about a lost rank."""
    return f"{name} has gone" + (f"; others draw what it has not finished ({unfinished})" if unfinished else "")


def draw_pictures(group: Group, work: Work, kinds: Sequence[int], at_once: Callable[[Pool, int], int]) -> None:
    """On all ranks. `kinds`: of each picture, as `Pool` has them; `at_once`: how many a rank takes next."""
    if group.rank:
        _serve(group, work)
        return
    pool = Pool(kinds, group.size)
    with group.going_on_without_lost_ranks():
        feeding = [
            threading.Thread(target=_feed, args=(group, rank, pool, work, at_once), daemon=True)
            for rank in range(1, group.size)
        ]
        for thread in feeding:
            thread.start()
        while taken := pool.take(0, at_once(pool, 0)):
            for index, finished in work.draw(taken, lambda index, observed: work.show(index, observed, 0)):
                _end(pool, work, index, finished, 0)
        for thread in feeding:
            thread.join()


def by_residency(resident: Sequence[bool]) -> Callable[[Pool, int], int]:
    """How many pictures a rank takes at once. `resident`: by rank, whether it keeps the model in memory; one that does
    not takes half of an even share of what waits, so that it reads the parts of the model less often."""

    def at_once(pool: Pool, rank: int) -> int:
        return 1 if resident[rank] else max(1, math.ceil(pool.waiting / (2 * len(resident))))

    return at_once


def _end(pool: Pool, work: Work, index: int, finished: Message, rank: int) -> None:
    work.keep(index, finished, rank)
    if DECLINED in finished:
        pool.decline(rank, index)
    else:
        pool.finish(rank, index, counts=FAILED not in finished)


def _serve(group: Group, work: Work) -> None:
    """On ranks other than 0: draws what rank 0 sends, until there is no more."""

    def on_step(index: int, observed: Message) -> None:
        group.send({"kind": "step", "index": index, "observed": observed})

    while (message := group.receive())["kind"] == "draw":
        for index, finished in work.draw(message["indices"], on_step):
            group.send({"kind": "finished", "index": index, "finished": finished})


def _feed(group: Group, rank: int, pool: Pool, work: Work, at_once: Callable[[Pool, int], int]) -> None:
    """On rank 0, in a thread of its own: one other rank's pictures."""
    try:
        while taken := pool.take(rank, at_once(pool, rank)):
            if not _fed(group, rank, taken, pool, work):
                work.lose(rank, pool.lose(rank))
                return
        with contextlib.suppress(OSError):
            group.send({"kind": "end"}, rank)
    except Exception as error:  # the disk may be full
        group.fail(described(error))


def _fed(group: Group, rank: int, taken: Sequence[int], pool: Pool, work: Work) -> bool:
    """Whether the rank has drawn all of these; if not, the rank is lost."""
    try:
        group.send({"kind": "draw", "indices": list(taken)}, rank)
    except OSError:
        return False
    left = set(taken)
    while left:
        message = group.receive(rank)
        if message["kind"] == "step":
            work.show(message["index"], message["observed"], rank)
        elif message["kind"] == "finished":
            _end(pool, work, message["index"], message["finished"], rank)
            left.remove(message["index"])
        else:  # "lost" or "left"
            return False
    return True
