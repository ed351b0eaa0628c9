"""What makes ranks differ, by name; equal ones do not."""

import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_imagegen.commands import compare_on_ranks
from mlx_imagegen.distributed.agreement import difference, identity
from mlx_imagegen.measuring.compare import Column, identified
from mlx_imagegen.pipeline import Pipeline, load
from tests.comfy_files import draw_flux
from tests.hub.test_mlx_folders import save_as_mflux


@pytest.fixture
def opened(flux_folder: Path) -> Pipeline:
    return load(flux_folder)


def test_the_same_is_the_same(opened: Pipeline, flux_copy: Path) -> None:
    jobs = opened.jobs("an owl", seed=1)
    assert difference(identity(opened, jobs), identity(load(flux_copy), jobs)) is None, "wherever the files lie"


def test_a_denoiser_in_another_dtype(opened: Pipeline) -> None:
    """An M1 takes float16 where later chips take bfloat16: a sum of both would be noise."""
    first = identity(opened, [])
    opened.family.transformer.dtype = mx.float16
    wanted = "a denoiser in float16 (see --precision), and rank 0 a denoiser in float32 (see --precision)"
    assert difference(first, identity(opened, [])) == wanted


def test_other_pictures_files_and_quants(opened: Pipeline, flux_folder: Path, flux_copy: Path) -> None:
    first = identity(opened, opened.jobs("an owl", seed=1))
    assert difference(first, identity(opened, opened.jobs("an owl", seed=2))) == "other pictures to draw"
    packed = load(flux_folder, quant="q8")
    assert (
        difference(first, identity(packed, packed.jobs("an owl", seed=1))) == "the quant q8, and rank 0 the quant none"
    )
    weights = next((flux_copy / "transformer").glob("*.safetensors"))
    weights.rename(weights.with_name("model.safetensors"))
    found = difference(first, identity(load(flux_copy), []))
    assert found == f"no transformer/{weights.name}, which rank 0 has", found


def test_folders_that_are_put_together_are_compared_by_the_files_behind_them(tmp_path: Path) -> None:
    """Wherever these lie, in generate and in compare, and by component: mflux calls all of them the same."""
    first, _ = save_as_mflux(tmp_path / "first", draw_flux(tmp_path / "diffusers"), 4)
    second = shutil.copytree(first, tmp_path / "second")
    columns = [Column(str(folder), "none", "") for folder in (first, second)]

    def differences() -> list[str | None]:
        compared = [[compare_on_ranks.identity(column)] for column in columns]
        reason = compare_on_ranks.differences(*compared).get("0")
        return [difference(*(identity(load(folder), []) for folder in (first, second))), reason]

    assert differences() == [None, None]
    assert identified(str(first), "none", {}) == identified(str(first), "none", {}), "and found again as they are"
    weights = second / "transformer/0.safetensors"
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    for found in differences():
        assert found and "another transformer/0.safetensors than rank 0" in found
