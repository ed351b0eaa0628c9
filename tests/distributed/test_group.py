"""Ranks as processes of this machine: sums, messages, and that they end together, whatever ends one of them."""

import re
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import finish, start

PROGRAM = str(Path(__file__).parent / "group_program.py")
SOON = 10.0  # seconds in which all ranks end after one has failed
DEAD = "rank 1 (host) has ended without a word: it was killed, or its host or the network is gone"


def run(case: str, count: int, folder: Path, **environment: str) -> list[tuple[int, str]]:
    """Exit code and the last line of each rank, with the host's name left out."""
    outputs = finish(start(count, [PROGRAM, case], folder, **environment))
    lines = [(code, (out.strip() or error.strip()).split("\n")[-1]) for code, out, error in outputs]
    return [(code, re.sub(r"\([\w-]+\)", "(host)", line)) for code, line in lines]


@pytest.mark.parametrize("count", [2, 4])
def test_mlx_adds_and_gathers_over_ranks(count: int, tmp_path: Path) -> None:
    assert run("sums", count, tmp_path) == [(0, "right")] * count


def test_messages_carry_arrays_and_bytes(tmp_path: Path) -> None:
    assert run("messages", 3, tmp_path) == [(0, "[0, 1, 2]"), (0, ""), (0, "")]


def test_the_slowest_link_counts(tmp_path: Path) -> None:
    assert run("link", 3, tmp_path) == [(0, "True")] * 3


def test_a_rank_killed_in_a_collective_ends_all_with_one_reason(tmp_path: Path) -> None:
    started = time.monotonic()
    first, second, third = run("killed_in_collective", 3, tmp_path)
    assert time.monotonic() - started < SOON
    assert second[0] == -9
    for code, line in (first, third):
        assert code == 2 and line.startswith(f"DistributedError: {DEAD}"), line


def test_the_first_rank_killed_ends_all(tmp_path: Path) -> None:
    first, second = run("first_killed_in_collective", 2, tmp_path)
    assert first[0] == -9
    assert second[0] == 2 and second[1].startswith("DistributedError: rank 0 (host) has ended without a word")


def test_a_silent_rank_ends_the_others_though_they_wait_in_a_collective(tmp_path: Path) -> None:
    processes = start(2, [PROGRAM, "frozen"], tmp_path)
    try:
        assert processes[0].wait(SOON + 5) == 2
    finally:
        processes[1].kill()
    error = finish(processes)[0][2]
    assert re.search(r"mlx-imagegen: rank 1 \([\w-]+\) has not been heard of for 3 s", error), error


def test_one_rank_s_refusal_is_all_ranks_reason(tmp_path: Path) -> None:
    first, second = run("refused", 2, tmp_path)
    assert second == (2, "RequestError: this rank has no such file.")
    assert first == (2, "DistributedError: rank 1 (host): this rank has no such file.")


def test_an_interrupted_rank_ends_all(tmp_path: Path) -> None:
    assert run("interrupted", 2, tmp_path) == [
        (130, "interrupted"),
        (2, "DistributedError: rank 0 (host) was interrupted."),
    ]


def test_a_rank_ended_from_outside_ends_all(tmp_path: Path) -> None:
    assert run("terminated", 2, tmp_path) == [(2, "DistributedError: rank 1 (host) was ended from outside.")] * 2


def test_collectives_that_do_not_connect_end_the_process(tmp_path: Path) -> None:
    first, second = run("not_connected", 2, tmp_path)
    assert first[0] == -9 and "ring has not connected rank 0 (host) with all others within 1 s" in first[1]
    assert second[0] == 2


def test_ranks_of_other_versions_are_refused_on_all(tmp_path: Path) -> None:
    for code, line in run("messages", 2, tmp_path, VERSION_OF_RANK_1="0.0.1"):
        assert code == 2
        assert re.search(r"rank 1 \(host\) has mlx-imagegen 0.0.1, and rank 0 \(host\) has .*install the same", line)


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    first, second = start(2, [PROGRAM, "messages"], tmp_path, JOIN_SECONDS="1")
    second.kill()
    code, _, error = finish([first, second])[0]
    assert code == 2 and re.search(r"DistributedError: rank 1 did not connect to 127.0.0.1:\d+ in time", error)


def test_a_first_rank_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    first, second = start(2, [PROGRAM, "messages"], tmp_path, JOIN_SECONDS="1")
    first.kill()
    code, _, error = finish([first, second])[1]
    assert code == 2 and re.search(r"DistributedError: rank 1 cannot reach rank 0 at 127.0.0.1:\d+", error)
