"""Which bits every layer of the published Z-Image gets, what that comes to, and what each stage then takes."""

from collections.abc import Iterator

import pytest

from mlx_imagegen.families import open_family
from mlx_imagegen.families.z_image.family import ZImage
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.layers.linear import Packing
from mlx_imagegen.loading.weights import WeightTransforms
from mlx_imagegen.packing.recipes import read_recipe
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.request.job import usual_job

QUANTS = ("q8", "q6", "q4")
GB = 1e9


@pytest.fixture(scope="module")
def published() -> Iterator[ZImage]:
    with shape_only_folder(manifests()["z-image"]) as folder:
        family = open_family(manifests()["z-image"], folder, WeightTransforms())
        assert isinstance(family, ZImage)
        yield family


def bits_of(family: ZImage, component: str, quant: str) -> dict[str, int]:
    recipe = read_recipe(quant, family.name)
    linears = family.components[component].linears(recipe.packing)
    return {path: packing.bits if packing else 16 for path, _, packing in linears}


@pytest.mark.parametrize(("quant", "low", "high"), [("q8", 8.5, 8.6), ("q6", 6.5, 6.75), ("q4", 4.9, 5.3)])
def test_bits_a_weight_in_the_loop(published: ZImage, quant: str, low: float, high: float) -> None:
    bits = count = 0.0
    for _, shape, packing in published.transformer.linears(read_recipe(quant, "z_image").packing):
        assert packing is None or isinstance(packing, Packing)
        bits += shape[0] * shape[1] * (packing.bits_per_weight if packing else 16)
        count += shape[0] * shape[1]
    assert low < bits / count < high


@pytest.mark.parametrize("quant", QUANTS)
def test_both_ends_stay_at_16_bits_and_the_rest_is_packed(published: ZImage, quant: str) -> None:
    loop, prompt = bits_of(published, "transformer", quant), bits_of(published, "prompt_refiner", quant)
    dense = {path for bits in (loop, prompt) for path, width in bits.items() if width == 16}
    assert dense == {"all_x_embedder.2-1", "all_final_layer.2-1.linear", "cap_embedder.1"}
    assert set(bits_of(published, "text_encoder", quant).values()) == {8}
    recipe = read_recipe(quant, "z_image")
    modulation = recipe.packing("transformer", "layers.3.adaLN_modulation.0", (15360, 256), 30)
    assert modulation is not None and modulation.bits == 8
    assert recipe.packing("transformer", "t_embedder.mlp.0", (1024, 256), 0) is None
    assert recipe.drops("text_encoder", "lm_head.weight") and recipe.keep == ("vae",)


def test_four_bits_are_more_where_errors_show(published: ZImage) -> None:
    bits = bits_of(published, "transformer", "q4")
    assert (bits["layers.7.attention.to_q"], bits["layers.7.attention.to_v"]) == (4, 6)
    assert (bits["layers.7.feed_forward.w1"], bits["layers.7.feed_forward.w2"]) == (4, 5)
    assert bits["noise_refiner.0.attention.to_q"] == 8


@pytest.mark.parametrize(("quant", "most"), [("q4", 5.9), ("q6", 7.0), ("q8", 8.3)])
def test_every_stage_fits_a_16_gb_mac(published: ZImage, quant: str, most: float) -> None:
    settings = usual_job(manifests()["z-image"], 16).settings
    stages = plan(published, settings, gpu=True, recipe=read_recipe(quant, "z_image")).stages
    assert [stage.name for stage in stages] == ["encode", "denoise", "decode"]
    assert max(stage.peak_bytes for stage in stages) < most * GB
