"""Control LoRAs on FLUX.1: the input is widened, norms are replaced, and all is as before without them.

That pictures equal diffusers' is in tests/families/flux1/test_tools.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mlx_imagegen import load
from mlx_imagegen.errors import LoraError, RequestError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.flux1.inputs import InputKind
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import shape_only_folder, write_shape_only
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.transforms import WeightTransforms
from mlx_imagegen.lora.file import LoraFile
from mlx_imagegen.lora.match import Lora, match_loras, module_names
from mlx_imagegen.quantization.quantizer import quantize
from tests.conftest import Ran
from tests.draw import drawn_data
from tests.references.flux_lora_names import published_control_lora

DATA = drawn_data()
CONTROL = DATA / "flux_tools/lora/control/model.safetensors"
PICTURE = Image.effect_noise((64, 32), 90).convert("RGB")
ASKED: dict[str, Any] = {"seed": 1, "steps": 2, "width": 64, "height": 32, "max_sequence_length": 48}


def drawn(pipeline: Any, **more: Any) -> np.ndarray:
    return np.asarray(pipeline.generate("a fox", **ASKED, **more).image).astype(int)


def test_it_comes_and_goes() -> None:
    """Without it the first layer and the norms are the folder's again, bit for bit."""
    pipeline = load(DATA / "flux/dev", resident=True)
    plain = drawn(pipeline)
    with pytest.raises(RequestError, match="takes no control pictures"):
        pipeline.jobs("a fox", **ASKED, control=PICTURE)
    pipeline.set_lora([CONTROL])
    assert pipeline.family.files.inputs is InputKind.CONTROL and pipeline.family.files.config.in_channels == 32
    with pytest.raises(RequestError, match="follow one picture, 0 are given"):
        pipeline.jobs("a fox", **ASKED)
    shown, other = drawn(pipeline, control=PICTURE), drawn(pipeline, control=Image.new("RGB", (8, 8)))
    assert np.abs(shown - plain).max() > 3 and np.abs(shown - other).max() > 3
    pipeline.set_lora([])
    assert pipeline.family.files.inputs is InputKind.NONE and np.array_equal(drawn(pipeline), plain)


def test_at_a_scale_of_nothing_it_changes_nothing() -> None:
    pipeline = load(DATA / "flux/dev", lora=[(CONTROL, 0.0)])
    assert np.array_equal(drawn(pipeline), drawn(load(DATA / "flux/dev")))


def test_norms_are_replaced_at_any_scale() -> None:
    pipeline, tensors = load(DATA / "flux/dev", lora=[(CONTROL, 0.3)]), load_file(CONTROL)
    norm = pipeline.family.components["transformer"].load().transformer_blocks[0].attn.norm_k.weight
    assert np.allclose(np.array(norm), tensors["double_blocks.0.img_attn.norm.key_norm.scale"], atol=1e-6)


@pytest.fixture
def plain_lora(tmp_path: Path) -> Path:
    """For the first layer as plain models have it."""
    tensors = {"x_embedder.lora_A.weight": mx.random.normal((2, 16)), "x_embedder.lora_B.weight": mx.ones((48, 2))}
    mx.save_safetensors(str(tmp_path / "plain.safetensors"), {f"transformer.{name}": t for name, t in tensors.items()})
    return tmp_path / "plain.safetensors"


def test_with_a_lora_for_the_plain_model(plain_lora: Path) -> None:
    """That one changes the columns of the latents alone; so it does in Fill."""
    both = load(DATA / "flux/dev", lora=[CONTROL, plain_lora])
    one = load(DATA / "flux/dev", lora=[CONTROL])
    weights = [np.array(each.family.components["transformer"].load().x_embedder.weight) for each in (both, one)]
    change = load_file(plain_lora)
    expected = change["transformer.x_embedder.lora_B.weight"] @ change["transformer.x_embedder.lora_A.weight"]
    assert weights[0].shape == (48, 32) and np.array_equal(weights[0][:, 16:], weights[1][:, 16:])
    assert np.allclose(weights[0][:, :16] - weights[1][:, :16], expected, atol=1e-5)


def test_a_packed_folder_takes_it_from_its_source(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    quantize(DATA / "flux/dev", quant="q8", output=folder)
    pipeline = load(folder, lora=[CONTROL])
    reference = drawn(load(DATA / "flux/dev", lora=[CONTROL]), control=PICTURE)
    assert np.abs(drawn(pipeline, control=PICTURE) - reference).mean() < 4


def test_a_folder_cannot_be_made_with_it(tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="widens the model's input for a control picture.*give it to generate"):
        quantize(DATA / "flux/dev", quant="q8", output=tmp_path / "packed", lora=[CONTROL])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["flux-dev", "flux-schnell"])
def test_the_published_file_finds_all_its_places(name: str, tmp_path: Path) -> None:
    """By the names and shapes of Black Forest Labs' files; schnell has no guidance embedder."""
    shapes = {name: shape for name, (_, shape) in published_control_lora().items()}
    write_shape_only(tmp_path, {"files": {}, "tensors": {"depth": {"BF16": shapes}}})
    checkpoint = open_checkpoint(tmp_path / "depth/model.safetensors")
    lora = Lora(LoraFile.of(checkpoint, {}, "depth"))  # its numbers are holes of 1.2 GB, which open_lora would read
    with shape_only_folder(manifests()[name]) as folder:
        family = open_family(manifests()[name], folder, WeightTransforms())
        if name == "flux-schnell":
            with pytest.raises(LoraError, match="'guidance_in.in_layer' .no such module."):
                match_loras([lora], module_names(family), "FLUX.1")
            return
        (match,) = match_loras([lora], module_names(family), "FLUX.1")
    assert match.total == len(match.matched) == 314 + 152 and match.widened == {"x_embedder": 128}
    assert len(published_control_lora()) == 1094


def test_the_command_says_what_it_is(cli: Callable[..., Ran]) -> None:
    ran = cli("lora", CONTROL)
    assert ran.code == 0 and "Black Forest Labs' control LoRA" in ran.out and "LoRA (36), replacement (12)" in ran.out
