"""MLX's limits on memory: the cache of freed buffers, and, while a run lasts, what it may hold and keeps wired.

In: the most that a run's arithmetic takes on top of its weights. The limits belong to the process: they are those of
the largest run of all that last, and are put back when the last one is over.
Must not know: models, plans.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from .errors import ImagegenError
from .machine import memory_limit
from .precision import on_gpu

# Freed buffers that MLX keeps for reuse. On Metal its own default is the whole memory limit: the next stage starves.
CACHE_LIMIT_BYTES = 2 * 2**30
CPU_CACHE_LIMIT_BYTES = 256 * 2**20  # there the buffers are larger (float32) and the system hands out new ones quickly
# What MLX, Metal and the C++ library say when memory runs out, or when an array is larger than any buffer may be.
OUT_OF_MEMORY = re.compile(
    r"unable to allocate|insufficient memory|out ?of ?memory|maximum allowed buffer size|bad_alloc", re.IGNORECASE
)


def bound_cache(working_bytes: int = 0) -> None:
    """`working_bytes`: what comes and goes within a block, which a smaller cache would free and take again."""
    mx.set_cache_limit(max(CACHE_LIMIT_BYTES, working_bytes) if on_gpu() else CPU_CACHE_LIMIT_BYTES)


_lock = threading.Lock()
_running: list[int] = []  # of every run of the process, the bytes that it works with
_before: list[int] = []  # the memory limit and the wired limit without a run


@contextmanager
def run_limits(working_bytes: int) -> Iterator[None]:
    """While a run lasts: a cache for what it works with; and on a GPU no more than `memory_limit`, at which MLX waits
    for what is in flight, and all of it wired, so that macOS pages none of the weights out between two pictures."""
    with _lock:
        if not _running and on_gpu():
            most = memory_limit().most_bytes
            _before[:] = mx.set_memory_limit(most), mx.set_wired_limit(most)
        _running.append(working_bytes)
        bound_cache(max(_running))
    try:
        yield
        if on_gpu():
            mx.synchronize()  # what is still computed must not lose its memory
    finally:
        with _lock:
            _running.remove(working_bytes)
            bound_cache(max(_running, default=0))
            if not _running and on_gpu():
                mx.set_memory_limit(_before[0])
                mx.set_wired_limit(_before[1])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether MLX or the system ran out of memory; not what this library refuses itself."""
    if isinstance(error, ImagegenError):
        return False
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))
