"""Pictures that wait to be drawn, and which rank draws which.

In: ranks that ask for some, finish them, or are lost. Out: pictures, by their numbers; each is finished once. Seconds
are measured for every rank. Must not know: what a picture is, how ranks are reached.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Rank:
    drawing: deque[int] = field(default_factory=deque)  # the first one is under way
    since: float = 0.0  # when that one was begun
    seconds: list[float] = field(default_factory=list)  # of each that was finished

    @property
    def usual_seconds(self) -> float | None:
        """Of a picture; the first one's loading counts least where there are several."""
        return min(self.seconds) if self.seconds else None

    def free_in(self, now: float) -> float:
        """Seconds until what it has is finished."""
        usual = self.usual_seconds or 0.0
        return max(0.0, self.since + usual * len(self.drawing) - now) if self.drawing else 0.0


class Pool:
    """Used by several threads, each for its own rank."""

    def __init__(self, count: int, ranks: int, clock: Callable[[], float] = time.monotonic):
        self._waiting = deque(range(count))
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
            while not self._is_worth_it(rank):
                if not self._waiting and not any(other.drawing for other in self._ranks.values()):
                    return []
                self._changed.wait(1.0)
            own = self._ranks[rank]
            own.drawing.extend(self._waiting.popleft() for _ in range(min(most, len(self._waiting))))
            own.since = self._clock()
            return list(own.drawing)

    def finish(self, rank: int, index: int) -> None:
        with self._changed:
            own, now = self._ranks[rank], self._clock()
            own.drawing.remove(index)
            own.seconds.append(now - own.since)
            own.since = now
            self._changed.notify_all()

    def lose(self, rank: int) -> list[int]:
        """What the rank has not finished waits again, before all others."""
        with self._changed:
            lost = list(self._ranks.pop(rank).drawing)
            self._waiting.extendleft(reversed(lost))
            self._changed.notify_all()
            return lost

    def _is_worth_it(self, rank: int) -> bool:
        """Whether a picture is waiting that the other ranks would not all finish sooner."""
        if not self._waiting:
            return False
        own = self._ranks[rank].usual_seconds
        others = {place: other for place, other in self._ranks.items() if place != rank}
        if own is None or any(other.usual_seconds is None for other in others.values()):
            return True
        return own <= self._seconds_without(others)

    def _seconds_without(self, others: dict[int, Rank]) -> float:
        """Until the others have drawn all that waits, each taking the next as soon as it is free."""
        now, last = self._clock(), 0.0
        free = {place: other.free_in(now) for place, other in others.items()}
        for _ in self._waiting:
            if not free:
                return float("inf")
            place = min(free, key=lambda each: free[each] + (others[each].usual_seconds or 0.0))
            free[place] += others[place].usual_seconds or 0.0
            last = max(last, free[place])
        return last
