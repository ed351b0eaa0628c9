"""What one rank does in the tests of the group: `python group_program.py CASE`."""

import os
import signal
import sys
import time

import mlx.core as mx
import numpy as np

from mlx_imagegen.distributed import connections
from mlx_imagegen.distributed import group as group_module
from mlx_imagegen.distributed.group import Group
from mlx_imagegen.errors import ImagegenError, RequestError
from mlx_imagegen.launched import launch


def sums(group: Group) -> None:
    """Of numbers that have no rounding, so that they are equal however they are added."""
    group.start_collectives()
    for dtype in (mx.float32, mx.bfloat16, mx.float16, mx.int32):
        for shape in ((1,), (7,), (3, 1000), (257, 65)):
            values = np.arange(np.prod(shape)).reshape(shape) % 13
            total = group.all_sum(mx.array(values + group.rank).astype(dtype))
            mx.eval(total)
            wanted = group.size * values + sum(range(group.size))
            assert total.dtype == dtype and (np.array(total.astype(mx.float32)) == wanted).all(), (dtype, shape)
    gathered = group.all_gather(mx.full((1, 2), group.rank, mx.float32))
    mx.eval(gathered)
    assert gathered.tolist() == [[rank, rank] for rank in range(group.size)]
    noise = mx.random.normal((1001,), key=mx.random.key(group.rank))
    rounded = group.all_gather(group.all_sum(noise)[None])
    mx.eval(rounded)
    assert (np.array(rounded) == np.array(rounded[0])).all()  # the same bits on every rank
    print("right")


def messages(group: Group) -> None:
    shared = group.share({"a": np.arange(3.0), "b": b"bytes"} if group.rank == 0 else None)
    assert shared["a"].tolist() == [0, 1, 2] and shared["b"] == b"bytes"
    if gathered := group.gather({"rank": group.rank, "host": group.hosts[group.rank]}):
        print([each["rank"] for each in gathered])


def link(group: Group) -> None:
    """Of which one end takes its time."""
    if group.rank == 2:
        send = group.send
        group.send = lambda message, rank=0: (time.sleep(0.1), send(message, rank))  # type: ignore[method-assign]
    print(0 < group.link_speed() <= group_module.LINK_BYTES * 8 / 0.1 / 1e9)


def killed_in_collective(group: Group, victim: int = 1) -> None:
    group.start_collectives()
    mx.eval(group.all_sum(mx.ones(4)))
    if group.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    mx.eval(group.all_sum(mx.ones(4)))


def first_killed_in_collective(group: Group) -> None:
    killed_in_collective(group, victim=0)


def frozen(group: Group) -> None:
    """A host that has gone says nothing and closes nothing."""
    group.start_collectives()
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    mx.eval(group.all_sum(mx.ones(4)))


def refused(group: Group) -> None:
    group.start_collectives()
    if group.rank == 1:
        raise RequestError("this rank has no such file.")
    mx.eval(group.all_sum(mx.ones(4)))


def terminated(group: Group) -> None:
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def interrupted(group: Group) -> None:
    if group.rank == 0:
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)


def not_connected(group: Group) -> None:
    """MLX's backend lets no other thread run while it waits for a rank."""
    group_module.JOIN_SECONDS = 1.0
    if group.rank == 0:
        group.start_collectives()
    time.sleep(30)


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    connections.JOIN_SECONDS = float(os.environ.get("JOIN_SECONDS", "20"))  # a busy machine starts Python slowly
    connections.__version__ = os.environ.get("VERSION_OF_RANK_" + os.environ["MLX_RANK"], connections.__version__)
    try:
        found = launch()
        assert found is not None
        with Group(found, silence=3.0) as group:
            globals()[sys.argv[1]](group)
    except ImagegenError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
