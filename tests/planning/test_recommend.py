"""What a Mac of some memory should begin with: rules, checked on made-up models and on the published ones."""

import time

import pytest

from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.machine import GB, GIB, working_set_of
from mlx_imagegen.planning import recommend as module
from mlx_imagegen.planning.chips import CHIPS, Chip
from mlx_imagegen.planning.measurements import estimate
from mlx_imagegen.planning.recommend import (
    FEW_BITS,
    PATIENCE_SECONDS,
    Start,
    choose,
    recommend,
    starts,
)


def start(model: str, quant: str | None, peak: float, parameters: int, bits: float, steps: int, likely: float) -> Start:
    return Start(model, quant, int(peak * GB), parameters, bits, steps, likely / 2, likely, 10**10)


MEMORIES_GB = (16, 24, 32, 64)  # what Macs are sold with
MADE_UP = (
    start("largest", "q8", 4, 30, 8.5, 50, 301),
    start("large", "q4", 7, 20, 5.0, 50, 299),
    start("large", "q6", 10, 20, 6.5, 50, 299),
    start("large", "q8", 13, 20, 8.5, 50, 299),
    start("large-fast", "q8", 13, 20, 8.5, 4, 70),
    start("large-fast-2512", "q8", 13, 20, 8.5, 4, 70),
    start("small", "q4", 3, 6, 5.0, 40, 300),
    start("small", "q8", 6, 6, 8.5, 40, 300),
    start("small-turbo", "q4", 3, 6, 5.0, 8, 60),
    start("small-turbo", "q8", 6, 6, 8.5, 8, 60),
)


@pytest.mark.parametrize(
    ("usable", "best", "fastest"),
    [
        (13, ("large", "q8"), ("small-turbo", "q8")),  # the one that is not distilled, at the most bits that fit
        (12, ("large", "q6"), ("small-turbo", "q8")),
        (9, ("small", "q8"), ("small-turbo", "q8")),  # rather a smaller model than few bits
        (3.5, ("small", "q4"), ("small-turbo", "q4")),  # where nothing else fits, few bits
        (5, ("largest", "q8"), ("largest", "q8")),  # rather a model that takes long than few bits
    ],
)
def test_the_rules(
    usable: float, best: tuple[str, str], fastest: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "starts", lambda chip, gpu: MADE_UP)
    found = recommend(usable * GB)
    assert found is not None
    assert (found.best.model, found.best.quant) == best
    assert (found.fastest.model, found.fastest.quant) == fastest
    assert recommend(2 * GB) is None


def test_the_published_models_are_reckoned_in_time() -> None:
    starts.cache_clear()
    before = time.process_time()
    found = [recommend(working_set_of(size * GIB)) for size in MEMORIES_GB]
    assert time.process_time() - before < 3
    assert all(each and each.best and each.fastest for each in found)


def test_of_two_editions_the_newer() -> None:
    old, new = (each for each in MADE_UP if each.model.startswith("large-fast"))
    for both in ((old, new), (new, old)):
        found = choose(both, 13 * GB)
        assert found is not None and found.best == new


@pytest.mark.parametrize("size", MEMORIES_GB)
def test_a_recommendation_fits_and_nothing_that_fits_is_better(size: int) -> None:
    usable = working_set_of(size * GIB)
    found = recommend(usable)
    assert found is not None
    assert max(found.best.peak_bytes, found.fastest.peak_bytes) <= usable and found.best.bits >= FEW_BITS
    assert found.best.likely_seconds <= PATIENCE_SECONDS
    for other in starts():
        if other.peak_bytes <= usable and other.bits >= FEW_BITS:
            assert other.parameters <= found.best.parameters or other.likely_seconds > PATIENCE_SECONDS
            assert other.seconds >= found.fastest.seconds


def test_at_32_gb_q8_is_no_slower_than_q6_and_preferred() -> None:
    """The nearest rows are of two other models, one packed by q8 and on a slower chip: that says nothing of q8."""
    found = recommend(working_set_of(32 * GIB))
    assert found is not None and found.best.quant == "q8"
    likely = {each.quant: each.likely_seconds for each in starts() if each.model == found.best.model}
    assert likely["q8"] == pytest.approx(likely["q6"])


def test_a_start_asks_for_no_access_and_no_pictures() -> None:
    named = {each.model for each in starts()}
    assert {"z-image-turbo", "z-image", "qwen-image"} <= named
    assert not {name for name in named if manifests()[name].gated or manifests()[name].folder}
    assert not named & {"flux-schnell", "qwen-image-edit-2509", "flux-demo"}


def test_z_image_turbo_is_the_small_fast_one() -> None:
    """Of the models of 16-bit files under 15 GB in the loop, at every recipe."""
    rows = {(each.model, each.quant): each for each in starts()}
    for quant in (None, "q8", "q6", "q4"):
        turbo, base = rows["z-image-turbo", quant], rows["z-image", quant]
        assert turbo.peak_bytes == base.peak_bytes and turbo.parameters == base.parameters
        assert base.seconds == pytest.approx(turbo.seconds * 50 * 2 / 8)  # its steps, and two branches


def test_another_chip_changes_the_seconds_alone() -> None:
    slow, fast = ({(each.model, each.quant): each for each in starts(CHIPS[name])} for name in ("m1", "m4-max"))
    assert slow.keys() == fast.keys()
    assert all(slow[key].seconds > fast[key].seconds and slow[key].bits == fast[key].bits for key in slow)


def test_seconds_are_likely_by_the_nearest_mac_that_was_measured() -> None:
    named = next(each for each in starts() if (each.model, each.quant) == ("z-image-turbo", "q8"))
    nearest = estimate("m4", "z-image-turbo", "q8")
    assert nearest is not None and named.likely_seconds == pytest.approx(named.seconds / nearest.efficiency)
    assert f"{named.seconds:.0f} s at least, likely {named.likely_seconds:.0f} s" in str(named)
    measured = next(each for each in starts(Chip(100, 1)) if each.model == "z-image-turbo")
    assert measured.likely_seconds == measured.seconds and "likely" not in str(measured)
