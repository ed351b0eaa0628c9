"""A request from one thread after a cancelled one from another thread: nothing kept between them may be lazy.

An unevaluated MLX array belongs to the thread that made it, and raises an error in any other.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import numpy as np

from ..errors import described
from ..pipeline import Pipeline, load
from .check import EXACT, Check

THREADS = "threads"
MODELS = ("flux-demo", "qwen-demo", "hidream-demo")
REQUEST: dict[str, Any] = {"seed": 1, "steps": 2}
PROMPT = "a red circle"


T = TypeVar("T")


class Cancelled(Exception):
    pass


def thread_checks() -> Iterator[Check]:
    for model in MODELS:
        yield thread_check(model)


def thread_check(model: str) -> Check:
    case = f"{model}: cancelled in one thread, drawn in another"
    expected = picture(load(model))
    try:
        pipeline = in_a_thread(lambda: load(model))
        in_a_thread(lambda: cancelled(pipeline))
        out = in_a_thread(lambda: picture(pipeline))
    except Exception as error:  # whatever it is, it is what this checks for
        return Check(THREADS, f"{case}: {described(error)}", math.nan, EXACT)
    return Check(THREADS, case, float(np.mean(out != expected)), EXACT)


def picture(pipeline: Pipeline, **options: Any) -> np.ndarray:
    return np.asarray(pipeline.generate(PROMPT, **REQUEST, **options).image)


def cancelled(pipeline: Pipeline) -> None:
    def cancel(_: object) -> NoReturn:
        raise Cancelled

    try:
        picture(pipeline, on_step=cancel)
    except Cancelled:
        return
    raise RuntimeError("a request that was cancelled in its first step went on")


def in_a_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
