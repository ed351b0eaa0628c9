"""What cannot fit is refused before anything is loaded or downloaded, and what would fit is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen import machine as memory
from mlx_imagegen.errors import InsufficientMemoryError
from mlx_imagegen.families import open_family
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import find
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.machine import USABLE_SHARE
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.pipeline import load_on_hosts
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.preflight import refuse_before_download
from mlx_imagegen.request.job import usual_job
from mlx_imagegen.result import StepEvent
from tests.draw import drawn_data
from tests.tiny import draw_flux

GB = 10**9
STORED = drawn_data() / "hidream_o1"


@pytest.fixture(autouse=True)
def as_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of 16-bit weights, whatever runs the tests."""
    for module in ("plan", "fitting", "hosts"):
        monkeypatch.setattr(f"mlx_imagegen.planning.{module}.on_gpu", lambda: True)


def memory_of(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("mlx_imagegen.machine.physical_bytes", lambda: size)


def peak(name: str, quant: str | None) -> int:
    """Of one picture of a published model at its own size."""
    manifest = manifests()[name]
    changes = read_recipe(quant, manifest.family).applied_to(WeightTransforms()) if quant else WeightTransforms()
    with shape_only_folder(manifest) as folder:
        family = open_family(manifest, folder, changes)
        return plan(family, usual_job(manifest, family.size_multiple).settings, gpu=True).peak_bytes


@pytest.mark.usefixtures("no_other_model")
def test_what_two_machines_can_share_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of FLUX.1 dev's transformer 17.2 GB stay in memory, and half of that on each of two."""
    memory_of(monkeypatch, 16 * GB)
    model = find("flux-dev")
    with pytest.raises(InsufficientMemoryError, match="flux-dev needs"):
        refuse_before_download(model, None)
    for memories in ([12 * GB] * 2, [16 * GB, 8 * GB]):
        refuse_before_download(model, None, memories=memories)
    said = r"host 0 gives 8.00 GB, and where layers are shared out its part needs"
    with pytest.raises(InsufficientMemoryError, match=said):
        load_on_hosts([8 * GB] * 2, model="flux-dev")


def test_a_mac_is_asked_once_how_much_memory_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    answer = SimpleNamespace(stdout=b"17179869184\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda command, **_: asked.append(command) or answer)
    memory.physical_bytes.cache_clear()
    try:
        assert [memory.physical_bytes() for _ in range(2)] == [2**34, 2**34]
    finally:
        memory.physical_bytes.cache_clear()
    assert asked == [["sysctl", "-n", "hw.memsize"]]


@pytest.mark.usefixtures("no_other_model")
def test_a_limit_of_this_process_is_what_to_raise(flux_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = memory.MemoryLimit(37 * 10**6, 0, 10**12, on_gpu=False, is_ulimit=True)
    monkeypatch.setattr("mlx_imagegen.planning.fitting.memory_limit", lambda: limit)
    words = r"this process may take 37 MB more .*it would not finish\. Raise that limit\."
    with pytest.raises(InsufficientMemoryError, match=words):
        load(flux_folder).generate("a fox", width=512, height=512, steps=1)


@pytest.mark.usefixtures("no_other_model")
def test_the_largest_recipe_that_fits_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that the tiny transformer is the largest stage.
    monkeypatch.setattr("mlx_imagegen.planning.plan.DECODED_COPIES", 0)
    monkeypatch.setattr("mlx_imagegen.planning.plan.STRIP_BYTES", 0)
    pipeline = load(draw_flux(tmp_path / "model"))
    asked: dict[str, Any] = {"seed": 1, "width": 64, "height": 64, "steps": 1}
    settings = pipeline.jobs("a cat", **asked)[0].settings
    recipes = [None, *(read_recipe(name, "flux1") for name in ("q8", "q6", "q4"))]
    peaks = [plan(pipeline.family, settings, recipe=recipe).peak_bytes for recipe in recipes]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 4
    for name, least in zip(("q8", "q6", "q4"), peaks[1:], strict=True):
        memory_of(monkeypatch, least)
        with pytest.raises(InsufficientMemoryError, match=f"Quant {name} would fit .--quant {name} on"):
            pipeline.generate("a cat", **asked)
    memory_of(monkeypatch, 10**6)
    with pytest.raises(InsufficientMemoryError, match="finish. No quant of this model fits; use another machine"):
        pipeline.generate("a cat", **asked)


def test_all_stages_stay_only_where_their_arithmetic_fits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the picture's size, whatever a smaller one before it left in memory."""
    pipeline = load(draw_flux(tmp_path / "model"))
    small, large = ({"seed": 1, "width": side, "height": side, "steps": 1} for side in (64, 256))
    plans = [plan(pipeline.family, pipeline.jobs("a cat", **asked)[0].settings) for asked in (small, large)]
    usable = (plans[0].resident_peak_bytes + plans[1].resident_peak_bytes) / 2
    assert sum(component.nbytes for component in pipeline.family.components.values()) < usable
    memory_of(monkeypatch, int(usable / USABLE_SHARE))
    chosen, loaded = [], []

    def look(_: StepEvent) -> None:
        loaded.append(len([part for part in pipeline.family.components.values() if part.loaded]))

    for asked in (small, large, small):
        chosen.append(pipeline.generate("a cat", on_step=look, **asked).report.choices["memory"].split(":")[0])
    assert chosen == ["resident", "staged", "resident"] and loaded == [3, 1, 3]
    memory_of(monkeypatch, plans[1].resident_peak_bytes - 1)
    with pytest.raises(InsufficientMemoryError, match="resident: all stages at once need .* Leave it out"):
        load(tmp_path / "model", resident=True).generate("a cat", **large)


def test_of_several_pictures_each_is_finished_when_it_is_drawn_if_the_decoder_fits_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of work are not lost with the last picture's. The last one is decoded alone."""
    pipeline = load(draw_flux(tmp_path / "model"))
    jobs = pipeline.jobs("a cat", seed=[1, 2, 3], width=64, height=64, steps=1)
    made = plan(pipeline.family, jobs[0].settings)
    both, decoder = {"transformer", "vae_decoder"}, {"vae_decoder"}
    for usable, expected in (
        ((made.decode_at_once_peak_bytes + made.resident_peak_bytes) / 2, [1, both, 2, both, 3, decoder]),
        (made.decode_at_once_peak_bytes - 1, [1, 2, 3, decoder, decoder, decoder]),
    ):
        memory_of(monkeypatch, int(usable / USABLE_SHARE))
        seen: list[object] = []
        for _ in pipeline.stream(jobs, lambda event, seen=seen: seen.append(event.picture + 1)):  # type: ignore[misc]
            seen.append({name for name, part in pipeline.family.components.items() if part.loaded})
        assert seen == expected and not pipeline.residency.resident


def test_pictures_that_need_no_decoder_are_finished_at_once() -> None:
    pipeline = load(STORED, resident=False)
    seen: list[str] = []
    jobs = pipeline.jobs("a cat", seed=[1, 2], width=96, height=96, steps=1)
    for result in pipeline.stream(jobs, lambda event: seen.append(f"step of {event.picture + 1}")):
        seen.append(f"finished {result.seed}")
    assert seen == ["step of 1", "finished 1", "step of 2", "finished 2"]


def test_a_large_picture_is_refused_among_smaller_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """References make it large, where its own size does not."""
    pipeline = load(STORED)
    asked: dict[str, Any] = {"seed": 1, "width": 96, "height": 96, "steps": 1}
    pictures = [Image.new("RGB", (96, 96))] * 3
    jobs = [*pipeline.jobs("a cat", references=pictures, **asked), *pipeline.jobs("a cat", **asked)]
    memory_of(monkeypatch, plan(pipeline.family, jobs[0].settings, prompt=jobs[0].prompt).peak_bytes - 1)
    with pytest.raises(InsufficientMemoryError):
        list(pipeline.stream(jobs))
    memory_of(monkeypatch, 10**6)
    with pytest.raises(
        InsufficientMemoryError, match="No quant of this model fits; give fewer references"
    ):  # and not FLUX.1
        list(pipeline.stream(jobs))


def test_where_no_recipe_helps_another_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    assert peak("hidream-o1", "q4") < 7 * GB < min(peak("flux-dev", "q4"), peak("hidream-o1", "q6"))
    memory_of(monkeypatch, 7 * GB)
    three = {name: manifests()[name] for name in ("flux-dev", "hidream-o1", "qwen-image")}
    monkeypatch.setattr("mlx_imagegen.planning.fitting.manifests", lambda: three)
    done = cli("plan", "--model", "qwen-image")
    assert done.code == 0 and "the largest that fits is hidream-o1 with quant q4" in done.out
    memory_of(monkeypatch, 30 * GB)
    assert "here one stage at a time" in cli("plan", "--model", "qwen-image").out


@pytest.mark.usefixtures("no_other_model")
def test_nothing_is_downloaded_that_cannot_fit(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small:
        memory_of(small, 16 * GB)
        small.setattr("mlx_imagegen.pipeline.files_of", lambda *_: pytest.fail("went for the files"))
        for name in ("qwen-image", "qwen-image-edit-2511-lightning"):
            with pytest.raises(InsufficientMemoryError, match="this machine has 16.0 GB"):
                load(name)
    done = cli("a cat", "--model", "flux-dev", "--quant", "q4")  # fits: goes on to the download, and is offline
    assert done.code == 2 and "cannot be downloaded" in done.err


@pytest.mark.usefixtures("no_other_model")
def test_a_gpu_refuses_what_is_beyond_its_working_set_not_beyond_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps no more than that in memory."""
    pipeline = load(draw_flux(tmp_path / "model"))
    asked: dict[str, Any] = {"seed": 1, "width": 64, "height": 64, "steps": 1}
    made = plan(pipeline.family, pipeline.jobs("a cat", **asked)[0].settings)
    monkeypatch.setattr(memory, "on_gpu", lambda: True)
    for working_set, expected in ((made.resident_peak_bytes, "resident"), (made.resident_peak_bytes - 1, "staged")):
        monkeypatch.setattr(memory, "_working_set_bytes", lambda size=working_set: size)
        assert pipeline.generate("a cat", **asked).report.choices["memory"].startswith(expected)  # type: ignore[union-attr]
    monkeypatch.setattr(memory, "_working_set_bytes", lambda: made.peak_bytes - 1)
    with pytest.raises(InsufficientMemoryError, match=r"this machine's GPU may hold 0.\d of \d+.\d GB"):
        pipeline.generate("a cat", **asked)


def test_what_is_in_flight_on_a_gpu_is_counted() -> None:
    """MLX submits ten command buffers before it waits; at 1024x1024 FLUX.1's hold 1 to 2 GB."""
    stages = {}
    for side in (1024, 2048):
        with shape_only_folder(manifests()["flux-dev"]) as folder:
            family = open_family(manifests()["flux-dev"], folder, WeightTransforms())
            job = usual_job(manifests()["flux-dev"], 16, width=side, height=side)
            stages[side] = {stage.name: stage.working_bytes for stage in plan(family, job.settings, gpu=True).stages}
    block = (4096 + 512) * (8 * 3072 + 2 * 15360) * 2
    assert 10**9 < stages[1024]["denoise"] - block < 2 * 10**9
    assert stages[2048]["denoise"] < 4 * stages[1024]["denoise"], "a command buffer takes fewer operations then"
