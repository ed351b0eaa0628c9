"""Steps that are predicted: the decisions and predictions by their formulas, and what real models make of them."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_imagegen.errors import RequestError
from mlx_imagegen.families.step_cache import KEPT_ARRAYS, CacheRule, StepCache
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.pipeline import Pipeline, load
from mlx_imagegen.planning.plan import plan, step_cache_bytes
from mlx_imagegen.request.job import resolve, usual_job
from mlx_imagegen.result import Result, StepEvent
from tests.conftest import DATA
from tests.families.flux2.test_flux2 import open_pipeline as open_flux2

PROMPT = "a red circle on a white background"
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 12, "seed": 5}
MODELS = ("flux-demo", "qwen-demo", "hidream-demo-full")


@pytest.fixture(scope="module", params=MODELS)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return load(request.param)


def pixels(result: Result) -> np.ndarray:
    return np.asarray(result.image).astype(np.int32)


def walk(rule: CacheRule, changes: list[np.ndarray], added: list[np.ndarray]) -> tuple[list[int], list[np.ndarray]]:
    """A loop whose first block adds `changes`, the others `added`; which steps were predicted, and what came out."""
    cache, outs = StepCache(rule, len(changes)), []
    for index, (change, more) in enumerate(zip(changes, added, strict=True)):
        before = mx.full(change.shape, 0.5)
        after = before + mx.array(change)
        out = cache.at(index, 0)(before, after, lambda after=after, more=more: after + mx.array(more))  # type: ignore[misc]
        outs.append(np.array(out))
    return cache.predicted, outs


def expected(rule: CacheRule, changes: list[np.ndarray], added: list[np.ndarray]) -> tuple[list[int], list[np.ndarray]]:
    """DBCache with one block in front and TaylorSeer of order 1, written out in float64."""
    steps = len(changes)
    warmup = max(4, int(steps * rule.warmup_share))
    predicted, outs, run = [], [], 0
    reference = kept = slope = None
    at = 0
    for index in range(steps):
        r, h = changes[index], 0.5 + changes[index]
        if index >= warmup and index < steps - 1 and run < rule.in_a_row:
            assert reference is not None and kept is not None
            if np.abs(r - reference).mean() / np.abs(reference).mean() < rule.threshold:
                predicted.append(index)
                outs.append(h + kept + (index - at) * (0 if slope is None else slope))
                run += 1
                continue
        slope = None if kept is None else (added[index] - kept) / (index - at)
        reference, kept, at, run = r, added[index], index, 0
        outs.append(h + added[index])
    return predicted, outs


def sequences(steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(4)
    start, drift = rng.normal(size=(1, 6, 8)), rng.normal(size=(1, 6, 8))
    changes = [(start + 0.03 * step * drift).astype(np.float32) for step in range(steps)]
    added = [(np.sin(0.2 * step) * drift + start).astype(np.float32) for step in range(steps)]
    return changes, added


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.09, 0.5])
@pytest.mark.parametrize("in_a_row", [1, 3])
def test_decisions_and_predictions_follow_the_published_formulas(threshold: float, in_a_row: int) -> None:
    rule = CacheRule(threshold, in_a_row=in_a_row)
    changes, added = sequences(24)
    (predicted, outs), (want, pictures) = walk(rule, changes, added), expected(rule, changes, added)
    assert predicted == want
    for out, picture in zip(outs, pictures, strict=True):
        np.testing.assert_allclose(out, picture, atol=1e-5)


def test_what_grows_in_a_straight_line_is_predicted_exactly() -> None:
    changes, _ = sequences(16)
    added = [(0.1 * step * changes[0]).astype(np.float32) for step in range(16)]
    predicted, outs = walk(CacheRule(2.0), changes, added)
    assert len(predicted) >= 7
    for out, change, more in zip(outs, changes, added, strict=True):
        np.testing.assert_allclose(out, 0.5 + change + more, atol=1e-5)


def test_a_polynomial_adds_up_from_step_to_step() -> None:
    """Its value for each change is added, and reaches the threshold; above the range that it was fitted in a step is
    computed."""
    rule = CacheRule(0.1, in_a_row=99, polynomial=(2.0, 0.5, 0.0), largest_change=0.3)
    sizes = [0.05] * 11 + [0.4] + [0.05] * 8
    changes, level = [np.ones((1, 2, 4), np.float32)], 1.0
    for size in sizes:
        level *= 1 + size
        changes.append(np.full((1, 2, 4), level, np.float32))
    predicted, _ = walk(rule, changes, [np.zeros_like(changes[0])] * len(changes))
    each = 2 * 0.05**2 + 0.5 * 0.05  # 0.03: three of them stay below 0.1, a fourth does not
    want, total = [], 0.0
    for index in range(4, 20):
        total += each
        if sizes[index - 1] > 0.3 or total >= 0.1:
            total = 0.0
        else:
            want.append(index)
    assert predicted == want and 12 not in predicted and len(want) > 8


def test_a_threshold_that_nothing_is_below_changes_no_bit(pipeline: Pipeline) -> None:
    plain = pipeline.generate(PROMPT, **SMALL)
    cached = pipeline.generate(PROMPT, cache=1e-9, **SMALL)
    assert (pixels(plain) == pixels(cached)).all()
    assert cached.report.choices["step cache"].startswith("0 of 12 steps reused")
    assert "step cache" not in plain.report.choices and "cache" not in plain.record


def test_predicted_steps_make_nearly_the_same_picture(pipeline: Pipeline) -> None:
    plain, cached = (pipeline.generate(PROMPT, cache=cache, **SMALL) for cache in (None, 0.3))
    assert reused(cached) >= 4
    assert 0 < np.abs(pixels(plain) - pixels(cached)).mean() < 6
    again = pipeline.generate(PROMPT, **(SMALL | {"cache": cached.record["cache"]}))
    assert cached.record["cache"] == 0.3 and (pixels(again) == pixels(cached)).all()


def test_two_branches_decide_together(pipeline: Pipeline) -> None:
    scale = {"true_cfg": 3.0} if pipeline.model.manifest.guidance == "embedded" else {"guidance": 3.0}
    plain, cached = (pipeline.generate(PROMPT, cache=cache, **scale, **SMALL) for cache in (None, 0.3))
    assert reused(cached) >= 4 and np.abs(pixels(plain) - pixels(cached)).mean() < 8


def test_a_picture_that_is_stopped_leaves_nothing_behind(pipeline: Pipeline) -> None:
    class Stopped(Exception):
        pass

    def stop(event: StepEvent) -> None:
        event.preview()
        if event.step == 7:
            raise Stopped

    want = pipeline.generate(PROMPT, cache=0.3, **SMALL)
    with pytest.raises(Stopped):
        pipeline.generate(PROMPT, cache=0.3, on_step=stop, **SMALL)
    denoiser = pipeline._denoisers._kept[1]  # type: ignore[index]
    assert denoiser.step_cache is not None and not denoiser.step_cache._computed
    assert (pixels(pipeline.generate(PROMPT, cache=0.3, **SMALL)) == pixels(want)).all()


@pytest.mark.parametrize("model", ["flux-demo", "qwen-demo"])
def test_packed_weights_and_pictures_to_start_from(model: str) -> None:
    warm = load(model, quant="q8")
    picture = warm.generate(PROMPT, **SMALL).image
    more: dict[str, Any] = {"image": picture, "strength": 0.9, **SMALL}
    plain, cached = (warm.generate(PROMPT, cache=cache, **more) for cache in (None, 0.3))
    assert reused(cached) >= 3 and "of 11 steps" in cached.report.choices["step cache"]
    assert np.abs(pixels(plain) - pixels(cached)).mean() < 6


@pytest.mark.parametrize(
    ("folder", "predicted"), [("z_image/base", 6), ("qwen_image_21/model", 6), ("flux2/klein", 6), ("flux3/base", 5)]
)
def test_families_without_a_demo_model(folder: str, predicted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`predicted`: the joint states of the random FLUX.3 once change by more than twice their size in a step."""
    warm, small = load(DATA / folder), SMALL | {"guidance": 3.0}
    if folder.startswith("flux"):
        small["max_sequence_length"] = 64  # they pad prompts
    monkeypatch.setitem(warm.model.manifest.extras, "step_cache", {})  # a polynomial of the real model's
    plain, never, always = (warm.generate(PROMPT, cache=cache, **small) for cache in (None, 1e-9, 2.0))
    assert (pixels(plain) == pixels(never)).all() and reused(never) == 0 and reused(always) == predicted
    count, _ = passes(warm, lambda: warm.generate(PROMPT, guidance_until=0.5, **small))
    assert count == 18


@pytest.mark.parametrize("like", ["flux2-klein-4b", "flux2-klein-9b-kv", "flux3-klein"])
def test_reference_pictures_are_never_predicted(like: str) -> None:
    """What is kept is of the picture's own tokens, wherever references stand."""
    folder = DATA / ("flux3/base" if like == "flux3-klein" else "flux2/klein")
    warm = load(folder) if like == "flux3-klein" else open_flux2(folder, like)
    kept: list[tuple[int, ...]] = []
    small: dict[str, Any] = SMALL | {"references": [Image.new("RGB", (64, 96), "red")], "max_sequence_length": 32}
    plain, never = (warm.generate(PROMPT, cache=cache, **small) for cache in (None, 1e-9))

    def note(event: StepEvent) -> None:
        cache = warm._denoisers._kept[1].step_cache  # type: ignore[index]
        assert cache is not None
        kept.extend(each.added.shape for each in cache._computed.values())

    always = warm.generate(PROMPT, cache=2.0, on_step=note, **small)
    assert (pixels(plain) == pixels(never)).all() and reused(always) >= 5
    side = 64 // warm.family.size_multiple
    assert {shape[1] for shape in kept} == {side * side}


def test_guidance_until_drops_the_second_branch(pipeline: Pipeline) -> None:
    scale = {"true_cfg": 3.0} if pipeline.model.manifest.guidance == "embedded" else {"guidance": 3.0}
    results: dict[float | str | None, tuple[int, Result]] = {}
    for share in (None, 1.0, 0.5, 0.01, "0.25-0.5", "0.99-1"):
        counted = passes(
            pipeline, lambda share=share: pipeline.generate(PROMPT, guidance_until=share, **scale, **SMALL)
        )  # type: ignore[misc]
        results[share] = counted
    assert {share: count for share, (count, _) in results.items()} == {
        None: 24, 1.0: 24, 0.5: 18, 0.01: 13, "0.25-0.5": 15, "0.99-1": 13,
    }  # fmt: skip
    assert (pixels(results[None][1]) == pixels(results[1.0][1])).all()
    assert "guidance_until" not in results[1.0][1].record and results[0.5][1].record["guidance_until"] == 0.5
    assert np.abs(pixels(results[0.5][1]) - pixels(results[1.0][1])).mean() > 0
    between = results["0.25-0.5"][1]
    assert between.record["guidance_until"] == "0.25-0.5" and not (pixels(between) == pixels(results[0.5][1])).all()


def test_both_shortcuts_together(pipeline: Pipeline) -> None:
    scale = {"true_cfg": 3.0} if pipeline.model.manifest.guidance == "embedded" else {"guidance": 3.0}
    both = pipeline.generate(PROMPT, guidance_until=0.5, cache=0.3, **scale, **SMALL)
    alone = pipeline.generate(PROMPT, guidance_until=0.5, **scale, **SMALL)
    assert reused(both) >= 4 and np.abs(pixels(both) - pixels(alone)).mean() < 8
    # Step 6, at which the second branch begins, is computed for both.
    both = pipeline.generate(PROMPT, guidance_until="0.5-1", cache=2.0, **scale, **SMALL)
    alone = pipeline.generate(PROMPT, guidance_until="0.5-1", **scale, **SMALL)
    assert reused(both) >= 4 and np.abs(pixels(both) - pixels(alone)).mean() < 20


def test_a_batch_of_two_branches_becomes_one_of_one() -> None:
    """Where both branches run as one batch, and guidance begins or ends in between."""
    cache = StepCache(CacheRule(2.0), 14)
    for index in range(14):
        rows = 2 if 5 <= index < 10 else 1
        before = mx.random.normal((rows, 3, 4), key=mx.random.key(1))
        out = cache.at(index, 0, computed=index == 5)(before, before + 1, lambda before=before: before + 2)  # type: ignore[misc]
        assert out.shape == before.shape
        np.testing.assert_allclose(np.array(out), np.array(before) + 2, atol=1e-6)
    assert len(cache.predicted) >= 4 and 4 in cache.predicted and 5 not in cache.predicted


@pytest.mark.parametrize("model", ["flux-demo", "flux2/klein", "flux3/base"])
def test_its_memory_is_planned(model: str) -> None:
    opened = load(DATA / model if "/" in model else model)
    family, multiple = opened.family, opened.family.size_multiple
    scale = {"true_cfg": 3.0} if opened.model.manifest.guidance == "embedded" else {"guidance": 3.0}
    size = {"width": 8 * multiple, "height": 8 * multiple}
    job = usual_job(opened.model.manifest, multiple, **scale, **size)
    cached = usual_job(opened.model.manifest, multiple, cache=0.1, **scale, **size)
    stages = [{stage.name: stage for stage in plan(family, each.settings).stages} for each in (cached, job)]
    more = stages[0]["denoise"].working_bytes - stages[1]["denoise"].working_bytes
    assert stages[0]["encode"] == stages[1]["encode"]
    tokens, width = 64, family.files.config.inner_dim  # type: ignore[attr-defined]
    assert more == 2 * step_cache_bytes(family.transformer, tokens, gpu=False) == 2 * KEPT_ARRAYS * tokens * width * 4


def test_requests_are_checked() -> None:
    flux, schnell = manifests()["flux-dev"], manifests()["flux-schnell"]
    job = resolve(flux, 16, "a fox", 1, cache="fast")[0]
    assert job.settings.cache is not None and job.settings.cache.threshold == 0.12
    z_image = resolve(manifests()["z-image"], 16, "a fox", 1, cache="fast")[0].settings.cache
    assert z_image is not None and len(z_image.polynomial) == 5 and z_image.largest_change == 0.25914
    for manifest, given, message in (
        (schnell, {"cache": "fast"}, "no threshold is known for flux-schnell"),
        (manifests()["qwen-image-lightning"], {"cache": "fast"}, "no threshold is known"),
        (flux, {"cache": "slow"}, "'slow': give 'fast', or a threshold above 0 and up to 2"),
        (flux, {"cache": 0}, "above 0"),
        (flux, {"cache": float("nan")}, "above 0"),
        (flux, {"guidance_until": 0.0}, "guidance_until 0.0: give a share"),
        (flux, {"guidance_until": 1.5}, "guidance_until 1.5: give a share"),
        *(
            (flux, {"guidance_until": odd}, "give a share")
            for odd in ("0.8-0.2", "a-b", "", "-0.5", True, [0.2, 0.8], "nan", 10**5000)
        ),
    ):
        with pytest.raises(RequestError, match=message):
            resolve(manifest, 16, "a fox", 1, **given)
    for given, shares in ((0.6, (0, 0.6)), ("0.6", (0, 0.6)), ("1e-3", (0, 0.001)), ("0.1 - 0.8", (0.1, 0.8))):
        assert resolve(flux, 16, "a fox", 1, guidance_until=given, true_cfg=2.0)[0].settings.guided == shares
    few = resolve(schnell, 16, "a fox", 1, cache=0.1)[0]
    assert few.notes == ("cache has no effect in 4 steps: the first 4 and the last are computed",)
    alone = resolve(flux, 16, "a fox", 1, guidance_until=0.5)[0]
    assert alone.settings.guided == (0, 1) and "no effect without a second branch" in alone.notes[0]


def reused(result: Result) -> int:
    return int(result.report.choices["step cache"].split()[0])


def passes(pipeline: Pipeline, draw: Callable[[], Result]) -> tuple[int, Result]:
    """How often the denoiser runs, and what comes out."""
    count = 0
    transformer = type(pipeline.family.transformer.load())
    call = transformer.__call__

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        return call(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "__call__", counted)
        result = draw()
    return count, result
