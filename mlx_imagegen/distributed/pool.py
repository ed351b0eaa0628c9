"""The pictures that wait to be drawn, and which rank draws which.

In: ranks that take pictures, finish or decline them, or are lost. Out: pictures, by number; each is finished once.
Seconds are measured for every rank and kind of picture.
Must not know: what a picture is, how ranks are reached.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

IDLE_SECONDS = 1.0  # a rank that has finished a picture takes its next one sooner


@dataclass
class Rank:
    drawing: deque[int] = field(default_factory=deque)  # the first one is under way
    since: float = 0.0  # when that one was begun
    kind: int | None = None  # of the pictures that it drew last
    declined: set[int] = field(default_factory=set)  # kinds that it cannot draw
    seconds: dict[int, list[float]] = field(default_factory=dict)  # by kind, of each that was finished

    def usual_seconds(self, kind: int) -> float | None:
        """Of a picture; the first one's loading counts least where there are several."""
        return min(self.seconds[kind]) if kind in self.seconds else None


class Pool:
    """Used by several threads, each for its own rank."""

    def __init__(self, kinds: Sequence[int], ranks: int, clock: Callable[[], float] = time.monotonic):
        """`kinds`: of each picture; those of a kind take as long as each other, and are drawn by the same model."""
        self._kinds = kinds
        self._waiting = deque(range(len(kinds)))
        self._ranks = {rank: Rank() for rank in range(ranks)}
        self._clock = clock
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, rank: int, most: int) -> list[int]:
        """The next pictures for this rank, at most so many; none once there is nothing left that it could draw. It
        waits while others draw the last ones, for they may be lost."""
        with self._changed:
            own = self._ranks[rank]
            while not self._is_worth_it(rank):
                if self._next(own) is None and self._is_idle():
                    return []
                if not self._changed.wait(IDLE_SECONDS) and self._is_idle():
                    break  # each rank leaves what waits to the others
            while len(own.drawing) < most and (index := self._next(own)) is not None:
                self._waiting.remove(index)
                own.drawing.append(index)
                own.kind = self._kinds[index]
            own.since = self._clock()
            return list(own.drawing)

    def finish(self, rank: int, index: int, counts: bool = True) -> None:
        """`counts`: whether it took as long as others of its kind will."""
        with self._changed:
            own, now = self._ranks[rank], self._clock()
            own.drawing.remove(index)
            if counts:
                own.seconds.setdefault(self._kinds[index], []).append(now - own.since)
            own.since = now
            self._changed.notify_all()

    def decline(self, rank: int, index: int) -> None:
        """Records that the rank cannot draw such pictures; others may."""
        with self._changed:
            own = self._ranks[rank]
            own.drawing.remove(index)
            own.declined.add(self._kinds[index])
            self._waiting.appendleft(index)
            self._changed.notify_all()

    def lose(self, rank: int) -> list[int]:
        """Puts the rank's unfinished pictures back, in front of all others."""
        with self._changed:
            lost = list(self._ranks.pop(rank).drawing)
            self._waiting.extendleft(reversed(lost))
            self._changed.notify_all()
            return lost

    def _is_idle(self) -> bool:
        return not any(rank.drawing for rank in self._ranks.values())

    def _next(self, own: Rank) -> int | None:
        """A picture of the kind that the rank drew last, or else of one that few others are at."""
        at = [other.kind for other in self._ranks.values()]
        able = [index for index in self._waiting if self._kinds[index] not in own.declined]
        return min(able, key=lambda i: (self._kinds[i] != own.kind, at.count(self._kinds[i])), default=None)

    def _is_worth_it(self, rank: int) -> bool:
        """Whether a picture is waiting that the other ranks would not all finish sooner."""
        own = self._ranks[rank]
        index = self._next(own)
        if index is None:
            return False
        usual = own.usual_seconds(self._kinds[index])
        others = [other for place, other in self._ranks.items() if place != rank]
        return usual is None or usual <= self._seconds_without(others)

    def _seconds_without(self, others: Sequence[Rank]) -> float:
        """Until the others have drawn all that waits, each taking the next as soon as it is free; endless where one is
        waited for that was not measured."""
        now, last = self._clock(), 0.0
        free = [self._free_in(other, now) for other in others]
        for index in self._waiting:
            kind = self._kinds[index]
            able = {i: other.usual_seconds(kind) for i, other in enumerate(others) if kind not in other.declined}
            if not able or None in able.values():
                return float("inf")
            ends = {i: free[i] + (seconds or 0.0) for i, seconds in able.items()}
            soonest = min(ends, key=lambda i: ends[i])
            free[soonest] = ends[soonest]
            last = max(last, ends[soonest])
        return last

    def _free_in(self, rank: Rank, now: float) -> float:
        """Seconds until what the rank has is finished."""
        if not rank.drawing:
            return 0.0
        return max(0.0, rank.since + sum(rank.usual_seconds(self._kinds[i]) or 0.0 for i in rank.drawing) - now)
