"""What the library does with any family, done with Z-Image: packing, LoRAs, records, the command line.

The drawn model here is wide enough to be packed; numbers are compared with the same model's, opened in another way.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from PIL import Image

from mlx_imagegen import load
from mlx_imagegen.errors import QuantizationError
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.modulation import ZImageModulators
from mlx_imagegen.families.z_image.transformer import PromptRefiner, ReferenceRefiner, ZImageTransformer
from mlx_imagegen.layers.embed import Table
from mlx_imagegen.loading.config import read_json
from mlx_imagegen.pipeline import Pipeline
from mlx_imagegen.planning.plan import plan
from mlx_imagegen.quantization.quantizer import quantize
from mlx_imagegen.text.qwen import LanguageModel, read_config
from mlx_imagegen.vision.siglip import Siglip2Config, Siglip2VisionModel
from tests.draw import drawn_data
from tests.planning.test_plan import Counter, counted
from tests.tiny import draw_tensors

STORED = drawn_data() / "z_image" / "base"
WIDTHS = {"dim": 64, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [8, 12, 12], "cap_feat_dim": 64}
PICTURE: dict[str, Any] = {"seed": 3, "steps": 2, "width": 48, "height": 32}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return widened(STORED, tmp_path_factory.mktemp("z-image") / "model")


def widened(stored: Path, folder: Path) -> Path:
    """A stored draw with other networks around the autoencoder, 64 wide."""
    shutil.copytree(stored, folder)
    changes = {"transformer": WIDTHS, "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}}
    if (folder / "siglip").is_dir():
        changes["transformer"] = WIDTHS | {"siglip_feat_dim": 64}
        changes["siglip"] = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    for part, changed in changes.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(read_json(path) | changed))
        next((folder / part).glob("*.safetensors")).unlink()
    config = ZImageConfig.read(read_json(folder / "transformer/config.json"), "transformer")
    text = read_config(read_json(folder / "text_encoder/config.json"), folder)
    trees: dict[str, list[nn.Module]] = {
        "transformer": [ZImageTransformer(config), PromptRefiner(config), ZImageModulators(config)],
        "text_encoder": [LanguageModel(text), Table("embed_tokens.weight", text.vocab_size, text.hidden_size)],
    }
    if config.is_omni:
        trees["transformer"].append(ReferenceRefiner(config))
        trees["siglip"] = [Siglip2VisionModel(Siglip2Config.read(read_json(folder / "siglip/config.json"), "siglip"))]
    for part, modules in trees.items():
        tensors = draw_tensors(modules, seed=5, dtype=mx.bfloat16)
        mx.save_safetensors(str(folder / part / "model.safetensors"), tensors)
    return folder


@pytest.fixture(scope="module")
def packed(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(wide, tmp_path_factory.mktemp("packed") / "q4", quant="q4")


def pixels(pipeline: Pipeline, **changes: Any) -> np.ndarray:
    result = pipeline.generate("a red fox", **PICTURE | changes)
    return np.asarray(result.image).astype(int)  # type: ignore[union-attr]


def draw_lora(path: Path, modules: Sequence[str], folder: Path) -> Path:
    shapes = load(folder).family.weights["transformer"].linears
    dice, tensors = np.random.default_rng(0), {}
    for module in modules:
        rows, columns = shapes[module]
        for end, shape in (("lora_A", (2, columns)), ("lora_B", (rows, 2))):
            tensors[f"diffusion_model.{module}.{end}.weight"] = mx.array(0.3 * dice.standard_normal(shape, np.float32))
    mx.save_safetensors(str(path), tensors)
    return path


def test_a_packed_folder_makes_the_picture_of_packing_while_loading(wide: Path, packed: Path) -> None:
    made, asked = load(packed), load(wide, quant="q4")
    assert np.array_equal(pixels(made), pixels(asked)) and not np.array_equal(pixels(made), pixels(load(wide)))
    bits = {path: packing and packing.bits for path, _, packing in made.family.transformer.linears()}
    assert (bits["layers.1.attention.to_q"], bits["layers.1.attention.to_v"], bits["layers.1.feed_forward.w1"]) == (
        4,
        6,
        4,
    )
    assert bits["noise_refiner.0.attention.to_q"] == 8 and bits["all_x_embedder.2-1"] is None
    assert (made.model.manifest.name, made.model.manifest.guidance) == ("z-image", "cfg_from_0")


def test_a_packed_folder_is_planned_as_the_recipe_was(wide: Path, packed: Path) -> None:
    made, asked = load(packed), load(wide, quant="q4")
    settings = asked.jobs("a fox", seed=1)[0].settings
    stages = [
        [replace(stage, disk_bytes=0) for stage in plan(each.family, settings, gpu=True).stages]
        for each in (made, asked)
    ]
    assert stages[0] == stages[1] and plan(made.family, settings).disk_bytes < plan(asked.family, settings).disk_bytes


def test_sequences_that_are_filled_up_are_planned_as_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 tokens of a picture are 32 in every block, and so are a short prompt's."""
    pipeline = load(STORED)
    flops, settings = counted(pipeline, Counter(monkeypatch), width=48, height=48, steps=1)
    lengths = {branch.txt.shape[1] for branch in pipeline._branches.values()}
    assert lengths == {32}
    monkeypatch.setattr("mlx_imagegen.planning.plan.PROMPT_TOKENS", 20)
    assert plan(pipeline.family, settings).step_flops == pytest.approx(flops, rel=0.03)  # both ends see 9 tokens


PLACES = (
    ["layers.0.attention.to_q", "layers.1.feed_forward.w2"],
    ["noise_refiner.0.attention.to_out.0"],
    ["context_refiner.0.feed_forward.w1"],
    ["cap_embedder.1"],
    ["layers.0.adaLN_modulation.0"],
    ["t_embedder.mlp.2"],
    ["all_final_layer.2-1.adaLN_modulation.1", "all_x_embedder.2-1"],
)


@pytest.mark.parametrize("modules", PLACES, ids=lambda modules: modules[0])
def test_a_lora_on_every_kind_of_layer_changes_the_next_picture_and_goes_again(
    modules: list[str], wide: Path, tmp_path: Path
) -> None:
    """In the loop, in what is computed once a prompt, and in what is tabulated once a schedule."""
    pipeline, file = load(wide), draw_lora(tmp_path / "lora.safetensors", modules, wide)
    before = pixels(pipeline)
    pipeline.set_lora([file])
    assert len(pipeline.merge.matches[0].matched) == len(modules)
    changed = pixels(pipeline)
    assert not np.array_equal(before, changed) and np.array_equal(changed, pixels(load(wide, lora=[file])))
    pipeline.set_lora([])
    assert np.array_equal(before, pixels(pipeline))


def test_a_lora_on_a_packed_folder_is_merged_before_packing(wide: Path, packed: Path, tmp_path: Path) -> None:
    modules = ["layers.0.attention.to_q", "layers.1.adaLN_modulation.0", "context_refiner.0.feed_forward.w1"]
    file = draw_lora(tmp_path / "lora.safetensors", modules, wide)
    made, asked = load(packed, lora=[file]), load(wide, quant="q4", lora=[file])
    assert np.array_equal(pixels(made), pixels(asked)) and not np.array_equal(pixels(made), pixels(load(packed)))


def test_a_record_makes_the_picture_again(wide: Path, tmp_path: Path, cli: Any) -> None:
    asked = {"guidance": 7.5, "negative_prompt": "a hen", "cfg_normalization": True}
    first = load(wide).generate("a red fox", **PICTURE | asked)
    saved = first.save(tmp_path / "first.png", paths=True)  # type: ignore[union-attr]
    assert {name: first.record[name] for name in asked} == asked  # type: ignore[union-attr]
    done = cli("--from", saved, "-o", tmp_path / "again.png")
    assert done.code == 0, done.err
    assert Image.open(saved).tobytes() == Image.open(tmp_path / "again.png").tobytes()


def test_a_model_without_it_refuses_cfg_normalization(flux_folder: Path) -> None:
    with pytest.raises(ValueError, match="cfg_normalization: flux-schnell does not take it"):
        load(flux_folder).generate("a fox", cfg_normalization=True)


def test_fold_is_refused_with_its_reason(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="2% of its weights"):
        quantize(wide, tmp_path / "made", quant="q4", fold=4)


def test_pictures_to_change_are_refused(wide: Path) -> None:
    with pytest.raises(ValueError, match="references: z-image takes none"):
        load(wide).generate("a fox", references=["a.png"])


@pytest.mark.parametrize("side", [40, 0, 1000])
def test_sizes_that_are_no_multiples_of_16_are_refused(wide: Path, side: int) -> None:
    with pytest.raises(ValueError, match="multiple of 16 pixels"):
        load(wide).generate("a fox", width=side, height=64)


def test_the_command_line_knows_both(cli: Any) -> None:
    assert {"z-image", "z-image-turbo"} <= set(cli("models", "--names").out.split())
    done = cli("plan", "--model", "z-image-turbo", "--quant", "q4")
    assert done.code == 0 and "1024x1024, 8 steps" in done.out and "text_encoder, prompt_refiner" in done.out
    done = cli("plan", "--model", "z-image", "--quant", "q8")
    assert done.code == 0 and "prompt and negative prompt" in done.out


def test_a_packed_omni_reads_references_as_packing_while_loading_does(tmp_path: Path) -> None:
    """The vision tower comes with it, and its refiner takes LoRAs."""
    omni = drawn_data() / "z_image" / "omni"
    wide, asked = widened(omni, tmp_path / "wide"), {"references": [omni / "picture1.png"], "steps": 1}
    made = load(quantize(wide, tmp_path / "q4", quant="q4"))
    picture, components = pixels(made, **asked), made.family.components
    assert np.array_equal(picture, pixels(load(wide, quant="q4"), **asked))
    assert made.model.manifest.title == "Z-Image-Omni"
    tower, refiner = (components[name].linears() for name in ("image_encoder", "reference_refiner"))
    assert {packing and packing.bits for _, _, packing in tower} == {8, None}  # patches of 48 numbers
    bits = {path: packing and packing.bits for path, _, packing in refiner}
    assert (bits["siglip_embedder.1"], bits["siglip_refiner.0.attention.to_q"]) == (None, 8)
    lora = draw_lora(tmp_path / "lora.safetensors", ["siglip_refiner.0.attention.to_q"], wide)
    made.set_lora([lora])
    assert not np.array_equal(picture, pixels(made, **asked))
