"""What is kept between pictures is evaluated: an array that is still lazy belongs to the thread that made it."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.families import BUILT_IN
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.pipeline import Pipeline, StepEvent
from tests.draw import drawn_data

DATA = drawn_data()
RED = Image.new("RGB", (96, 64), "red")
# A tiny model of each family, and what a request to it may hold.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux-dev": ("flux/dev", {"width": 48, "height": 32, "negative_prompt": "rain", "true_cfg": 2.0}),
    "flux-schnell": ("flux/schnell", {"width": 48, "height": 32}),
    "qwen-image": ("qwen_image/image", {"width": 32, "height": 48, "guidance": 2.0}),
    "qwen-image-2.1": ("qwen_image_21/model", {"width": 32, "height": 32, "guidance": 2.0, "transparent": True}),
    "flux2": ("flux2/klein", {"width": 64, "height": 64, "guidance": 2.0, "references": [RED]}),
    "flux3": ("flux3/klein", {"width": 64, "height": 64, "references": [RED]}),
    "z-image": ("z_image/base", {"width": 32, "height": 48, "guidance": 2.0}),
    "hidream-o1": ("hidream_o1", {"width": 32, "height": 24, "guidance": 2.0, "references": [RED]}),
}
Work = Callable[[], Any]


class Cancelled(Exception):
    pass


def in_a_thread(work: Work) -> Any:
    """Its result, or what it raised, in this thread."""
    done: list[Any] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(model: str, resident: bool | None = None) -> Pipeline:
    return load(DATA / MODELS[model][0], resident=resident)


def drawn(pipeline: Pipeline, model: str, **more: Any) -> np.ndarray:
    parameters = {"seed": 1, "steps": 2, **MODELS[model][1], **more}
    return np.asarray(pipeline.generate("a cat", **parameters).image)  # type: ignore[union-attr]


def cancel(event: StepEvent) -> None:
    raise Cancelled


@pytest.mark.parametrize("resident", [True, False])
def test_cancelled_in_one_thread_and_drawn_in_another(model: str, resident: bool) -> None:
    pipeline = opened(model, resident)
    with pytest.raises(Cancelled):
        in_a_thread(lambda: drawn(pipeline, model, on_step=cancel))
    assert (in_a_thread(lambda: drawn(pipeline, model)) == drawn(opened(model), model)).all()


def test_opened_and_drawn_in_different_threads(model: str) -> None:
    pipeline = in_a_thread(lambda: opened(model, resident=True))
    first = in_a_thread(lambda: drawn(pipeline, model))
    assert (in_a_thread(lambda: drawn(pipeline, model)) == first).all()
    assert (in_a_thread(lambda: drawn(pipeline, model, seed=2)) != first).any()


def test_a_preview_from_a_third_thread(model: str) -> None:
    pipeline, events = in_a_thread(lambda: opened(model)), list[StepEvent]()
    last = in_a_thread(lambda: drawn(pipeline, model, on_step=events.append, preview="full"))
    assert (np.asarray(in_a_thread(events[-1].preview)) == last).all()


def test_every_family_is_run_through() -> None:
    families = {recognize(DATA / folder).family for folder, _ in MODELS.values()}
    assert families == set(BUILT_IN)


def test_two_pipelines_on_two_threads(model: str) -> None:
    expected = drawn(opened(model), model)
    results: list[Any] = [None, None]

    def draw(index: int) -> None:
        results[index] = drawn(opened(model), model)

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((result == expected).all() for result in results)
