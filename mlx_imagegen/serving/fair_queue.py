"""Items that wait, fair between clients: each client's own in their order, and one of each client in turn.

In: items, each with the name of its client. Out: the next one, for the one thread that takes them.
Must not know: what an item is.
"""

import threading
from collections import deque
from itertools import zip_longest
from typing import Generic, TypeVar

Item = TypeVar("Item")


class QueueFullError(Exception):
    """More would wait than the queue holds."""


class FairQueue(Generic[Item]):
    def __init__(self, limit: int):
        self.limit = limit
        self._waiting: dict[str, deque[Item]] = {}  # by client, the next client first
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return self._count()

    def put(self, client: str, item: Item) -> None:
        with self._changed:
            if self._count() >= self.limit or self._closed:
                raise QueueFullError
            self._waiting.setdefault(client, deque()).append(item)
            self._changed.notify()

    def take(self, timeout: float | None = None) -> Item | None:
        """The next item; None after `timeout` seconds without one, or when the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout)
            if not self._waiting:
                return None
            client, items = next(iter(self._waiting.items()))
            item = items.popleft()
            del self._waiting[client]
            if items:  # the client's turn comes again after everyone else's
                self._waiting[client] = items
            return item

    def remove(self, client: str, item: Item) -> bool:
        """Takes an item out of the line; False if it does not wait any more."""
        with self._changed:
            items = self._waiting.get(client, deque())
            if item not in items:
                return False
            items.remove(item)
            if not items:
                del self._waiting[client]
            return True

    def order(self) -> list[Item]:
        """The items in the order in which they will be taken, as things are."""
        with self._changed:
            rounds = zip_longest(*self._waiting.values())
            return [item for each in rounds for item in each if item is not None]

    def close(self) -> list[Item]:
        """Takes no more items; gives back those that wait."""
        items = self.order()
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        return items

    @property
    def closed(self) -> bool:
        return self._closed

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))
