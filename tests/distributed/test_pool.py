"""Who draws which picture: by who is free, by measured seconds, and again by another where a rank is lost."""

import threading

import pytest

from mlx_imagegen.distributed.pool import Pool


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(count: int, seconds: list[float]) -> tuple[list[int], float]:
    """How many pictures each rank draws, and when the last is finished, with ranks that need so long for each."""
    clock = Clock()
    pool = Pool([0] * count, len(seconds), clock)
    free = dict.fromkeys(range(len(seconds)), 0.0)
    drawing: dict[int, list[int]] = {}
    drawn, last = [0] * len(seconds), 0.0
    while sum(drawn) < count:
        for rank in sorted(set(free) - set(drawing)):
            if pool._is_worth_it(rank):
                drawing[rank] = pool.take(rank, 1)
                free[rank] = clock.now + seconds[rank]
        rank = min(drawing, key=lambda each: free[each])
        clock.now = last = free[rank]
        pool.finish(rank, drawing.pop(rank)[0])
        drawn[rank] += 1
    return drawn, last


def test_a_rank_draws_as_many_as_its_speed_allows() -> None:
    drawn, last = simulate(40, [1.0, 3.0])
    assert drawn == [30, 10] and last == 30.0


def test_a_slow_rank_is_given_nothing_that_the_other_finishes_sooner() -> None:
    drawn, last = simulate(10, [1.0, 5.0])
    assert drawn == [9, 1] and last == 9.0  # a second one on the slow rank would end at 10


def test_a_lost_rank_s_pictures_are_drawn_by_another_first() -> None:
    pool = Pool([0] * 5, 2)
    assert pool.take(0, 1) == [0] and pool.take(1, 2) == [1, 2]
    pool.finish(1, 1)
    assert pool.lose(1) == [2]
    pool.finish(0, 0)
    taken = []
    while one := pool.take(0, 1):
        taken += one
        pool.finish(0, one[0])
    assert taken == [2, 3, 4]


def test_a_free_rank_waits_for_what_may_be_lost() -> None:
    pool = Pool([0], 2)
    assert pool.take(1, 1) == [0]
    taken: list[list[int]] = []
    waiting = threading.Thread(target=lambda: taken.append(pool.take(0, 1)))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    pool.lose(1)
    waiting.join(5)
    assert taken == [[0]]


def test_nothing_is_left_once_all_are_finished() -> None:
    pool = Pool([0], 2)
    pool.take(1, 1)
    pool.finish(1, 0)
    assert pool.take(0, 1) == [] and pool.take(1, 1) == []


def test_a_rank_stays_with_its_model_and_others_begin_with_the_next() -> None:
    pool = Pool([0, 0, 0, 1, 1, 1], 2)
    taken: list[list[int]] = [[], []]
    for rank in (0, 1) * 3:
        (index,) = pool.take(rank, 1)
        pool.finish(rank, index)
        taken[rank].append(index)
    assert taken == [[0, 1, 2], [3, 4, 5]]


def test_what_a_rank_declines_is_left_to_others() -> None:
    pool = Pool([0, 0, 1], 2)
    assert pool.take(1, 1) == [0]
    pool.decline(1, 0)
    assert pool.take(1, 1) == [2], "the other kind"
    pool.finish(1, 2)
    assert pool.take(0, 1) == [0]
    pool.finish(0, 0)
    assert pool.take(0, 1) == [1]
    pool.decline(0, 1)
    assert pool.take(0, 1) == [] and pool.take(1, 1) == [] and pool.waiting == 1


def test_a_picture_that_failed_at_once_says_nothing_of_a_rank_s_speed() -> None:
    clock = Clock()
    pool = Pool([0] * 6, 2, clock)
    taken = [pool.take(rank, 1)[0] for rank in (0, 1)]
    pool.finish(0, taken[0], counts=False)
    pool.take(0, 1)
    clock.now = 5.0
    pool.finish(1, taken[1])
    assert pool._is_worth_it(1)


def test_ranks_that_leave_the_rest_to_each_other_draw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is slow at the kind that it drew last, and expects another to be sooner."""
    monkeypatch.setattr("mlx_imagegen.distributed.pool.IDLE_SECONDS", 0.01)
    pool = Pool([0, 1], 3)
    for rank, kind, seconds in ((0, 0, (5.0, 1.0)), (1, 1, (1.0, 6.0)), (2, 0, (9.0, 1.0))):
        pool._ranks[rank].kind = kind
        pool._ranks[rank].seconds = {each: [usual] for each, usual in enumerate(seconds)}
    assert not any(pool._is_worth_it(rank) for rank in range(3))
    taken: list[list[int]] = []
    taking = threading.Thread(target=lambda: taken.append(pool.take(0, 1)), daemon=True)
    taking.start()
    taking.join(5)
    assert taken == [[0]]
