"""Who comes next."""

import threading

import pytest

from mlx_imagegen.serving.fair_queue import FairQueue, QueueFullError


def filled(*items: str) -> FairQueue[str]:
    """An item's first letter is its client."""
    queue: FairQueue[str] = FairQueue(100)
    for item in items:
        queue.put(item[0], item)
    return queue


def test_clients_take_turns_and_each_keeps_its_order() -> None:
    queue = filled("a1", "a2", "a3", "b1", "c1", "b2")
    expected = ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert queue.order() == expected
    assert [queue.take() for _ in expected] == expected


def test_a_client_that_comes_later_waits_for_one_round_at_most() -> None:
    queue = filled("a1", "a2", "a3", "b1", "b2")
    assert queue.take() == "a1"
    queue.put("c", "c1")
    assert queue.order() == ["b1", "a2", "c1", "b2", "a3"]


def test_no_more_wait_than_the_limit() -> None:
    queue: FairQueue[str] = FairQueue(2)
    queue.put("a", "a1")
    queue.put("b", "b1")
    with pytest.raises(QueueFullError):
        queue.put("c", "c1")
    queue.take()
    queue.put("c", "c1")
    assert len(queue) == 2


def test_what_is_removed_does_not_come() -> None:
    queue = filled("a1", "b1", "a2")
    assert queue.remove("a", "a1") and not queue.remove("a", "a1") and not queue.remove("x", "x1")
    assert [queue.take(), queue.take(), queue.take(timeout=0)] == ["a2", "b1", None]


def test_closing_wakes_the_taker_and_gives_back_what_waited() -> None:
    queue: FairQueue[str] = FairQueue(2)
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    assert queue.close() == []
    thread.join(5)
    assert taken == [None] and queue.closed
    with pytest.raises(QueueFullError):
        queue.put("a", "a1")
    assert filled("a1", "b1").close() == ["a1", "b1"]
