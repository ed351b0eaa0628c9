"""Z-Image's published files, name by name and shape by shape, at full size; ComfyUI's names; LoRAs' names; and what is
refused. Nothing here reads a weight of the published size."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_imagegen import load
from mlx_imagegen.errors import ConfigError, LoraError, MismatchError
from mlx_imagegen.families import open_family
from mlx_imagegen.families.z_image.config import ZImageConfig
from mlx_imagegen.families.z_image.family import ZImage
from mlx_imagegen.families.z_image.keys import from_comfyui, lora_names
from mlx_imagegen.families.z_image.modulation import ZImageModulators
from mlx_imagegen.families.z_image.transformer import PromptRefiner, ZImageTransformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.recognition import recognize
from mlx_imagegen.hub.tensor_shapes import shape_only_folder
from mlx_imagegen.loading.checkpoint import Checkpoint, Tensor
from mlx_imagegen.loading.weights import WeightTransforms, open_weights
from tests.draw import drawn_data

FACTS = Path(__file__).parents[4] / "shared" / "facts" / "manifests" / "Z-Image-Turbo"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
DATA = drawn_data() / "z_image"


@pytest.fixture(scope="module")
def published() -> Iterator[ZImage]:
    with shape_only_folder(manifests()["z-image-turbo"]) as folder:
        family = open_family(manifests()["z-image-turbo"], folder, WeightTransforms())
        assert isinstance(family, ZImage)
        yield family


def test_every_published_tensor_has_one_place(published: ZImage) -> None:
    transformer, text, vae = published.files.transformer, published.files.text, published.files.vae
    assert (len(transformer.slices), len(text.slices), len(vae.slices)) == (521, 398, 244)
    assert sum(part.nbytes // 4 for part in transformer.slices.values()) == 6_154_908_736
    for weights in (transformer, text, vae):
        assert weights.needed == set(weights.slices)


def comfyui(name: str) -> str:
    """A published name in ComfyUI's words; q, k and v have one name together."""
    name = re.sub(r"\.attention\.to_[qkv]\.", ".attention.qkv.", name).replace(".to_out.0.", ".out.")
    name = re.sub(r"\.norm_([qk])\.", r".\1_norm.", name)
    return name.replace("all_x_embedder.2-1", "x_embedder").replace("all_final_layer.2-1", "final_layer")


def comfyui_shapes(published: ZImage) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"norm_final.weight": (3840,)}
    for name, part in published.files.transformer.slices.items():
        rows, *rest = part.shape
        before = shapes.get(comfyui(name), (0,))[0]
        shapes[comfyui(name)] = (before + rows, *rest)
    return shapes


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_comfyui_s_single_file_has_the_same_tensors(published: ZImage, prefix: str) -> None:
    where = Path("z_image_turbo_bf16.safetensors")
    tensors = {
        f"{prefix}{name}": Tensor(where, f"{prefix}{name}", "BF16", shape, 0, 0)
        for name, shape in comfyui_shapes(published).items()
    }
    assert len(tensors) == 454  # 453 and the norm without use, which older files have
    config = published.files.config
    trees = [ZImageTransformer(config), PromptRefiner(config), ZImageModulators(config)]
    weights = open_weights("transformer", Checkpoint(tensors, [], where), trees, rename=from_comfyui)
    q, k, v = (weights.slices[f"layers.7.attention.to_{part}.weight"] for part in "qkv")
    assert [part.row for part in (q, k, v)] == [0, 3840, 7680] and q.shape[0] == 3840
    assert weights.slices["x_pad_token"].name == f"{prefix}x_pad_token"


@pytest.mark.skipif(not FACTS.is_dir(), reason="the published lists are not next to this checkout")
def test_the_names_are_the_published_ones(published: ZImage) -> None:
    tensors = json.loads((FACTS / "comfy_z_image_turbo_bf16.json").read_text())["tensors"]
    shapes = comfyui_shapes(published)
    shapes.pop("norm_final.weight")
    assert {name: tuple(entry["shape"]) for name, entry in tensors.items()} == shapes


def test_a_folder_whose_transformer_has_comfyui_s_names_makes_the_same_picture(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "turbo", tmp_path / "model")
    ours = mx.load(str(folder / WEIGHTS))
    theirs: dict[str, mx.array] = {}
    for name in sorted(ours):  # to_k, to_q, to_v
        if ".to_q." in name:
            parts = [ours[name.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            theirs[comfyui(name)] = mx.concatenate(parts)
        elif not re.search(r"\.to_[kv]\.", name):
            theirs[comfyui(name)] = ours[name]
    mx.save_safetensors(str(folder / WEIGHTS), theirs)
    options: dict[str, Any] = {"seed": 3, "steps": 1, "width": 32, "height": 32}
    first, second = (load(each).generate("a fox", **options).image for each in (DATA / "turbo", folder))
    assert first.tobytes() == second.tobytes()


def test_turbo_and_base_are_told_apart_by_their_schedules(tmp_path: Path) -> None:
    assert [recognize(DATA / kind).name for kind in ("base", "turbo")] == ["z-image", "z-image-turbo"]
    folder = shutil.copytree(DATA / "base", tmp_path / "model")
    (folder / "model_index.json").unlink()
    assert recognize(folder).name == "z-image"
    shutil.rmtree(folder / "scheduler")
    assert recognize(folder).name == "z-image-turbo"


@pytest.mark.parametrize("pipeline", ["ZImageControlNetPipeline", "ZImageControlNetInpaintPipeline"])
def test_relatives_are_refused_by_name(tmp_path: Path, pipeline: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(ConfigError, match="Z-Image with a ControlNet"):
        recognize(tmp_path)


def config_of(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((DATA / "base/transformer/config.json").read_text())
    return data | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": False}, "'qk_norm' is False"),
        ({"n_kv_heads": 1}, "'n_kv_heads' is 1"),
        ({"all_f_patch_size": [2]}, "'all_f_patch_size'"),
        ({"all_patch_size": [2, 4]}, "'all_patch_size' is"),
        ({"n_layers": 0}, "'n_layers' is 0"),
        ({"axes_dims": [2, 2, 2]}, "'axes_dims'"),
        ({"windows": 3}, "'windows'"),
    ],
)
def test_other_architectures_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZImageConfig.read(config_of(**changes), "transformer/config.json")


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "base", tmp_path / "model")
    path = folder / "transformer/config.json"
    path.write_text(json.dumps(config_of(cap_feat_dim=2560)))
    with pytest.raises(ConfigError, match="'cap_feat_dim' is 2560, but the text_encoder's hidden_size"):
        load(folder)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "base", tmp_path / "model")
    tensors = mx.load(str(folder / WEIGHTS))
    del tensors["cap_pad_token"]
    mx.save_safetensors(str(folder / WEIGHTS), tensors)
    with pytest.raises(MismatchError, match="1 missing: cap_pad_token"):
        load(folder)


def test_loras_may_use_comfyui_s_names(published: ZImage) -> None:
    modules = [name.removesuffix(".weight") for name in published.files.transformer.slices if name.endswith(".weight")]
    names = lora_names("transformer", modules)
    assert len(names) == 3 + 34 * 4 and not lora_names("text_encoder", modules)
    assert [target.name for target in names["layers.29.attention.qkv"]] == [
        f"layers.29.attention.to_{part}" for part in "qkv"
    ]
    assert [target.name for target in names["noise_refiner.1.attention.out"]] == ["noise_refiner.1.attention.to_out.0"]
    assert {target.name for targets in names.values() for target in targets} <= set(modules)


def lora_of(path: Path, names: list[str], rows: int, columns: int) -> Path:
    tensors = {}
    for name in names:
        tensors |= {f"{name}.lora_A.weight": mx.ones((2, columns)), f"{name}.lora_B.weight": mx.ones((rows, 2))}
    mx.save_safetensors(str(path), tensors)
    return path


def test_a_lora_of_z_image_on_another_family_is_refused_by_name(tmp_path: Path, flux_folder: Path) -> None:
    path = lora_of(tmp_path / "z.safetensors", ["diffusion_model.layers.0.attention.to_q"], 3840, 3840)
    with pytest.raises(LoraError, match="looks like a LoRA for Z-Image"):
        load(flux_folder, lora=[path])


def test_a_lora_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    path = lora_of(tmp_path / "q.safetensors", ["transformer.transformer_blocks.0.img_mlp.net.2"], 64, 64)
    with pytest.raises(LoraError, match="looks like a LoRA for Qwen-Image"):
        load(DATA / "turbo", lora=[path])
