"""What a service does with a pipeline: streams side by side, threads that share it, previews looked at elsewhere."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_imagegen import load
from mlx_imagegen.errors import ImagegenError, InsufficientMemoryError, RequestError, UnknownModelError
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.request.parameters import PICTURE_FIELDS
from mlx_imagegen.result import Result, StepEvent
from tests.draw import drawn_data

SIZE: dict[str, Any] = {"width": 48, "height": 32, "steps": 3}


@pytest.fixture(params=[True, False], ids=["resident", "staged"])
def pipeline(flux_folder: Path, request: pytest.FixtureRequest) -> Pipeline:
    return load(flux_folder, resident=request.param)


def pixels(result: Any) -> bytes:
    assert isinstance(result, Result)
    return result.image.tobytes()


def in_a_thread(work: Callable[[], Any]) -> Any:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    thread.join()
    return done[0]


def test_two_streams_side_by_side(pipeline: Pipeline) -> None:
    """The second one's prompts are not in the place of the first one's."""
    alone = [pixels(pipeline.generate("a fox", seed=seed, **SIZE)) for seed in (1, 2)]
    first = pipeline.stream(pipeline.jobs("a fox", seed=[1, 2], **SIZE))
    second = pipeline.stream(pipeline.jobs("a hen", seed=[1, 2], **SIZE))
    got = [next(stream) for stream in (first, second, first, second)]
    assert [pixels(result) for result in got[::2]] == alone
    assert pixels(got[1]) not in alone


@pytest.mark.parametrize("streams", [False, True])
def test_threads_take_turns(streams: bool, pipeline: Pipeline) -> None:
    """Whatever the memory was counted for is there for one request alone."""
    steps: list[str] = []

    def draw(prompt: str) -> None:
        def note(event: StepEvent) -> None:
            steps.append(prompt)

        if streams:
            list(pipeline.stream(pipeline.jobs(prompt, seed=[1, 2], **SIZE), note))
        else:
            pipeline.generate(prompt, seed=[1, 2], on_step=note, **SIZE)

    prompts = [f"{count} foxes" for count in range(4)]
    threads = [threading.Thread(target=draw, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blocks = [steps[start : start + 6] for start in range(0, len(steps), 6)]
    assert sorted(blocks) == [[prompt] * 6 for prompt in prompts]


def test_another_guidance_encodes_no_text_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(drawn_data() / "flux/dev")
    encoded, encode = [], pipeline.family.encode
    monkeypatch.setattr(pipeline.family, "encode", lambda *given: encoded.append(given) or encode(*given))
    pictures = [pipeline.generate("a fox", seed=1, guidance=value, **SIZE) for value in (1.5, 3.0)]
    assert len(encoded) == 1 and pixels(pictures[0]) != pixels(pictures[1])


def test_the_peak_of_the_steps_is_the_one_that_they_reached(flux_folder: Path) -> None:
    peaks: list[int] = []
    options: dict[str, Any] = {"steps": 2, "width": 32, "height": 32}
    result = load(flux_folder).generate("a fox", **options, on_step=lambda _: peaks.append(mx.get_peak_memory()))
    assert result.report.mlx_peak_bytes["step"] >= max(peaks) > 0


def test_a_preview_can_be_looked_at_in_another_thread(pipeline: Pipeline) -> None:
    events: list[StepEvent] = []
    result = pipeline.generate("a fox", seed=1, on_step=events.append, preview="full", **SIZE)
    last = in_a_thread(events[-1].preview)
    assert last is not None and last.tobytes() == pixels(result)


def test_a_pipeline_is_drawn_with_from_any_thread(pipeline: Pipeline) -> None:
    here = pixels(pipeline.generate("a fox", seed=1, **SIZE))
    assert pixels(in_a_thread(lambda: pipeline.generate("a fox", seed=1, **SIZE))) == here


@pytest.mark.usefixtures("no_other_model")
def test_a_model_named_by_its_repository_is_refused_before_its_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_imagegen.hub.download.fetch", lambda *_: pytest.fail("a download began"))
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: 16 * 10**9)
    with pytest.raises(InsufficientMemoryError, match=r"qwen-image needs .* this machine has 16.0 GB"):
        load("Qwen/Qwen-Image")


def test_what_is_none_is_not_given(flux_folder: Path) -> None:
    """As a service passes on what it was not asked for."""
    taken = dict[str, Any].fromkeys((*PICTURE_FIELDS, "seed", "count", "on_step")) | SIZE | {"seed": 1}
    opened = load(flux_folder, quant=None, lora=None, resident=None, on_load=None)
    assert pixels(opened.generate("a fox", **taken)) == pixels(load(flux_folder).generate("a fox", seed=1, **SIZE))


def test_streams_of_nothing_and_of_generators(flux_folder: Path) -> None:
    pipeline = load(flux_folder)
    assert list(pipeline.stream([])) == []
    jobs = pipeline.jobs("a fox", seed=1, **SIZE)
    assert len(list(pipeline.stream(job for job in jobs))) == 1


def test_an_on_step_that_cannot_be_called_is_refused_at_once(flux_folder: Path) -> None:
    with pytest.raises(RequestError, match="on_step is 5"):
        load(flux_folder).generate("a fox", on_step=5, **SIZE)  # type: ignore[call-overload]


def test_a_pipeline_of_another_process_is_refused(flux_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child has the object, and MLX's threads are gone."""
    pipeline = load(flux_folder)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(RequestError, match="forked"):
        pipeline.generate("a fox", **SIZE)


def test_names_of_models_that_are_no_names(tmp_path: Path) -> None:
    for name in ("", " "):
        with pytest.raises(UnknownModelError, match="empty"):
            load(name)
    for name in ("x" * 300, "~nobody-of-that-name/model", "a\0b", "x/" * 3000):
        with pytest.raises(ImagegenError) as caught:
            load(name)
        assert str(caught.value).isprintable()
