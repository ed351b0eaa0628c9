"""What was measured on Macs: the files are read, estimates come from the nearest chip, and say so."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_imagegen.errors import ConfigError
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.planning.chips import CHIPS, chip_of
from mlx_imagegen.planning.measurements import (
    Measurement,
    bound_per_step,
    chip_distance,
    efficiency,
    estimate,
    is_usable,
    measurements,
    read,
)

FOLDER = Path(__file__).parents[2] / "benchmarks" / "macs"


def measured(chip: str, model: str = "flux-schnell", quant: str | None = "q8", **more: Any) -> Measurement:
    fields: dict[str, Any] = {"seconds_per_step": 20.0, "program": "a program", "source": "a file", **more}
    return Measurement((chip,), model, quant, 1024, 1024, **fields)


def test_every_file_of_the_folder_is_sound() -> None:
    """Known models and chips, a source of what is published, nothing faster than its chip can be."""
    assert list(FOLDER.glob("*.json"))
    for each in (each for path in FOLDER.glob("*.json") for each in read(path)):
        assert each.model in manifests() and each.chips and set(each.chips) <= set(CHIPS), each
        assert not each.published or len(each.source) > 10, each
        assert min(efficiency(each, chip) for chip in each.chips) < 1, each
        if is_usable(each):
            assert 0.05 < efficiency(each, each.chips[0]) < 1, each
    assert {"hidream-o1-dev", "flux-schnell", "flux-dev"} <= {each.model for each in measurements() if each.published}


def test_the_bound_is_the_plan_s() -> None:
    """FLUX.1 [schnell], 1024x1024: 69.5 TFLOP a step."""
    assert bound_per_step(measured("m2-pro"), "m2-pro") == pytest.approx(69.46 / 6.8, rel=1e-3)


def test_an_estimate_is_the_bound_over_the_share_that_was_reached() -> None:
    row = measured("m2-pro", seconds_per_step=2 * 69.46 / 6.8)
    found = estimate("m2-max", "flux-dev", "q8", [row])
    assert found is not None and found.by == (row,)
    assert found.efficiency == pytest.approx(0.5, rel=1e-3) and found.seconds(30) == pytest.approx(60, rel=1e-3)
    text = found.describe("m2-max", 30)
    assert text.startswith("m2-max: about 60.0 s, an estimate: 50% of the bound was reached by a program on m2-pro")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([measured("m1-max"), measured("m2-max")], [1]),  # the chip itself
        ([measured("m5-max"), measured("m1")], [1]),  # matrix units are far from all others
        ([measured("m2-max", "z-image-turbo"), measured("m2-max")], [1]),  # then the model
        ([measured("m2-max", quant=None), measured("m2-max")], [1]),  # then the quant
        ([measured("m3-max", "flux-dev", "q4"), measured("m1-max", "flux-dev")], [0, 1]),  # not of other models
        ([measured("m2-max", published=True), measured("m1")], [1]),  # this library's own before others'
        ([measured("m2-max"), measured("m2-max", seconds_per_step=30.0)], [0, 1]),  # all that are as near
    ],
)
def test_the_nearest_is_taken(rows: list[Measurement], expected: list[int]) -> None:
    found = estimate("m2-max", "flux-schnell", "q8", rows)
    assert found is not None and found.by == tuple(rows[index] for index in expected)


def test_chips_are_apart_by_generations_and_sizes() -> None:
    assert chip_distance("m2-pro", "m2-pro") == 0 and chip_distance("m1", "m2-max") == 3
    assert chip_distance("m4-max", "m5-max") > chip_distance("m1", "m4-max")
    assert estimate("m2", "flux-dev", None, []) is None


@pytest.mark.parametrize(
    "row",
    [
        Measurement(("m1-max", "m2-max"), "flux-dev", None, 1024, 1024, 20, "p", "s"),  # which of them is not known
        measured("m2-max", mlx=False),
        measured("m2-max", "a model that is not known"),
        measured("m9-max"),
    ],
)
def test_what_says_nothing_of_this_library_is_not_used(row: Measurement) -> None:
    assert is_usable(measured("m2-max")) and not is_usable(row)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"rows": [{"chips": ["m2"], "seconds": 3}]}))
    with pytest.raises(ConfigError, match=r"mine\.json: a row is damaged"):
        measurements(tmp_path)


@pytest.mark.parametrize(
    ("device", "chip"),
    [("Apple M2 Max", "m2-max"), ("Apple M3", "m3"), ("Apple Paravirtual device", None), ("AMD EPYC", None)],
)
def test_a_chip_is_known_by_its_device(device: str, chip: str | None) -> None:
    assert chip_of(device) == chip
