"""FLUX.1's modulation weights: read for several prompts at once, kept where there is room, never wrong for that."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import load, machine
from mlx_imagegen.families.flux1 import modulation
from mlx_imagegen.loading.weights import Weights
from mlx_imagegen.machine import USABLE_SHARE
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.planning.plan import plan
from tests.lora.test_pipeline import draw_lora
from tests.tiny import draw_flux

ASKED: dict[str, Any] = {"seed": 1, "steps": 2, "width": 64, "height": 48, "max_sequence_length": 16}
LINEARS = 2 * 2 + 3 + 1  # of draw_flux: two double blocks, three single ones, and the last norm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_flux(tmp_path_factory.mktemp("modulation") / "model")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The modulation layers that are read, in order."""
    found: list[str] = []
    read = Weights.read_layer

    def watched(self: Weights, layer: Any, path: str) -> Any:
        if (".norm" in path and path.endswith(".linear")) or path.startswith("norm_out"):
            found.append(path)
        return read(self, layer, path)

    monkeypatch.setattr(Weights, "read_layer", watched)
    yield found


def pictures(pipeline: Pipeline, prompts: Sequence[str], **more: Any) -> list[np.ndarray]:
    return [np.asarray(result.image) for result in pipeline.generate(list(prompts), **ASKED | more)]


def same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return len(one) == len(other) and all((a == b).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("quant", [None, "q8", "q4"])
def test_where_there_is_room_they_are_read_once(folder: Path, reads: list[str], quant: str | None) -> None:
    pipeline = load(folder, quant=quant, resident=True)
    first = pictures(pipeline, ["a cat"])
    assert len(reads) == LINEARS
    later = pictures(pipeline, ["a dog"]) + pictures(pipeline, ["a cat"])
    assert len(reads) == LINEARS, "a new prompt reads nothing"
    fresh = [pictures(load(folder, quant=quant, resident=False), [prompt]) for prompt in ("a dog", "a cat")]
    assert same(later, [*fresh[0], *fresh[1]]) and same(first, fresh[1]), "and the numbers are those of the file"


def test_where_there_is_no_room_each_request_reads_them(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(folder)
    made = plan(pipeline.family, pipeline.jobs("a cat", **ASKED)[0].settings)
    weights = pipeline.family.prompt_weight_bytes
    assert 0.2 < weights / pipeline.family.transformer.held_bytes(2) < 0.6  # in 16 bits, as the file has them
    room = made.resident_peak_bytes + weights
    for usable, count, resident in ((room, 1, True), (room - 10, 2, True), (made.resident_peak_bytes - 10, 2, False)):
        monkeypatch.setattr(machine, "physical_bytes", lambda usable=usable: int(usable / USABLE_SHARE) + 1)
        reads.clear()
        for prompt in ("a cat", "a dog"):
            pictures(pipeline, [prompt])
        assert (len(reads), pipeline.residency.resident) == (count * LINEARS, resident), usable - room


def test_prompts_of_a_request_are_tabulated_at_once(folder: Path, reads: list[str]) -> None:
    prompts = ["a cat", "a dog", "an owl"]
    pipeline = load(folder, resident=False)
    results = pipeline.generate(prompts, **ASKED | {"negative_prompt": "rain", "true_cfg": 2.0})
    assert len(reads) == LINEARS
    said = [result.report.choices["modulation"] for result in results]
    assert set(said) == {"for 4 prompts at once, from weights that are read for it"}
    alone = pictures(pipeline, ["an owl"], negative_prompt="rain", true_cfg=2.0)
    assert same([np.asarray(results[2].image)], alone), "a prompt's numbers do not depend on the others"


def test_no_more_tables_wait_than_there_is_room_for(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a cat", "a dog", "an owl", "a hen", "a fox"]
    monkeypatch.setattr(modulation, "TABLES_BYTES", 2 * (4 * 6 + 3 * 3 + 2) * 64 * ASKED["steps"] * 4 + 100)
    pipeline = load(folder, resident=False)
    found = pictures(pipeline, prompts)
    assert len(reads) == 3 * LINEARS, "two prompts at a time"
    assert len(pipeline.family.modulation._tables) <= 2  # type: ignore[attr-defined]
    monkeypatch.setattr(modulation, "TABLES_BYTES", 0)
    one_by_one = pictures(load(folder, resident=False), prompts)
    assert same(found, one_by_one)


def test_another_schedule_or_guidance_has_tables_of_its_own(folder: Path, reads: list[str]) -> None:
    pipeline = load(folder, resident=True)
    changes: list[dict[str, Any]] = [{}, {"steps": 3}, {"guidance": 7.0}, {"width": 96}, {}]
    found = [pictures(pipeline, ["a cat"], **change)[0] for change in changes]
    for change, picture in zip(changes, found, strict=True):
        assert same([picture], pictures(load(folder), ["a cat"], **change)), change


def test_a_lora_reaches_weights_that_are_kept(folder: Path, tmp_path: Path) -> None:
    style = draw_lora(tmp_path / "style.safetensors", folder, 5, part="norm1.linear", size=0.5)
    pipeline = load(folder, resident=True)
    plain = pictures(pipeline, ["a cat"])
    pipeline.set_lora([style])
    changed = pictures(pipeline, ["a cat"])
    assert not same(plain, changed) and same(changed, pictures(load(folder, lora=[style]), ["a cat"]))
    pipeline.set_lora([])
    assert same(pictures(pipeline, ["a cat"]), plain)


def test_what_is_kept_is_evaluated(folder: Path) -> None:
    """A lazy array belongs to the thread that made it."""
    pipeline = load(folder, resident=True)
    pictures(pipeline, ["a cat", "a dog"])
    kept = pipeline.family.modulation  # type: ignore[attr-defined]
    assert len(kept.layers._kept) == LINEARS + 3 and kept.layers.keep  # and three embedders
    before = mx.get_active_memory()
    pipeline.family.keep_prompt_weights(False)
    assert before - mx.get_active_memory() == pytest.approx(kept.weight_bytes, rel=0.05)
