"""A family from outside the package, which no file of the library names, draws, is planned, quantized, takes LoRAs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_imagegen import generate, load, quantize
from mlx_imagegen.errors import ConfigError, LoraError, RequestError
from mlx_imagegen.families import BUILT_IN, _registered, family_spec, family_specs, register
from mlx_imagegen.hub.manifest import KINDS, manifests
from tests.conftest import DATA, Ran
from tests.made_up import SPEC
from tests.made_up.family import draw

PICTURE: dict[str, Any] = {"seed": 1, "steps": 2}
RECIPE = "bits = 4\n[[colour_field]]\nmatch = ['transformer/x_*']\nbits = 16\n"


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    register(SPEC)
    try:
        yield draw(tmp_path / "model")
    finally:
        _registered.clear()


def lora(folder: Path, module: str = "blocks.1.mix") -> Path:
    path = folder / "lora.safetensors"
    down, up = (mx.random.normal(shape, key=mx.random.key(3)) for shape in ((4, 128), (128, 4)))
    mx.save_safetensors(str(path), {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    return path


def test_it_draws(model: Path) -> None:
    one, two = (generate(words, model=model, **PICTURE) for words in ("a red sea", "a blue hen"))
    assert one.image.size == (64, 64) and one.record["manifest"] == "colour-field"
    assert np.asarray(one.image).std() > 5 and (np.asarray(one.image) != np.asarray(two.image)).any()
    again = generate(
        "a red sea", model=model, image=two.image, strength=0.5, guidance=2.0, negative_prompt="sky", **PICTURE
    )
    assert again.record["negative_prompt"] == "sky"
    with pytest.raises(RequestError, match="no step of colour-field can be predicted"):
        generate("a red sea", model=model, cache=0.1, **PICTURE)


def test_the_command_line_draws_plans_and_lists_it(model: Path, cli: Callable[..., Ran]) -> None:
    assert cli("a red sea", "--model", model, "--steps", 1, "-o", "sea.png").code == 0 and Path("sea.png").is_file()
    ran = cli("plan", "--model", model, "--size", 64)
    assert ran.code == 0 and "colour-field, 64x64, 4 steps" in ran.out
    assert "colour-field" in cli("models", "--names").out


def test_it_is_quantized(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    made = quantize(model, tmp_path / "q4", quant=str(recipe))
    saved, loaded = load(made), load(model, quant=str(recipe))
    assert saved.family.components["transformer"].held_as == "4-bit 8, float32 2"
    pictures = [np.asarray(pipeline.generate("a red sea", **PICTURE).image) for pipeline in (saved, loaded)]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != np.asarray(generate("a red sea", model=model, **PICTURE).image)).any()


def test_it_takes_a_lora_by_its_own_names(model: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    file = lora(tmp_path)
    plain, merged = (generate("a red sea", model=model, lora=chosen, **PICTURE) for chosen in ([], [file]))
    assert (np.asarray(plain.image) != np.asarray(merged.image)).any()
    assert "1 of 1 modules of" in cli("lora", file, "--model", model).out
    with pytest.raises(LoraError, match="none of its 1 modules has a place in ColourField"):
        load(model, lora=[lora(tmp_path, "blocks.7.mix")])


def test_what_is_not_registered_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ColourFieldPipeline, which is not an architecture this library has"):
        load(draw(tmp_path / "model"))
    with pytest.raises(ConfigError, match="the family 'colour_field' is not part of this version, which has flux1"):
        family_spec("colour_field")


def test_every_manifest_s_family_is_registered() -> None:
    assert {manifest.family for kind in KINDS for manifest in manifests(kind).values()} <= set(BUILT_IN)
    assert [spec.name for spec in family_specs()] == list(BUILT_IN)


@pytest.mark.parametrize(
    ("folder", "expected"), [("flux/dev", "flux1"), ("qwen_image/image", "qwen_image"), ("hidream_o1", "hidream_o1")]
)
def test_a_folder_is_one_family_s_alone(folder: str, expected: str) -> None:
    from mlx_imagegen.loading.folder import ModelFolder

    found = [spec.name for spec in family_specs() if spec.recognize(ModelFolder(DATA / folder))]
    assert found == [expected]
