"""LoRAs in every format: merged weights against stored references, what is refused, and warm pipelines."""

import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen import load
from mlx_imagegen.errors import CheckpointError, LoraError, MissingFileError
from mlx_imagegen.families import family_spec
from mlx_imagegen.families.flux1.family import Flux1
from mlx_imagegen.families.flux2.family import Flux2
from mlx_imagegen.families.flux3.family import Flux3
from mlx_imagegen.families.hidream_o1.family import HiDreamO1
from mlx_imagegen.families.z_image.family import ZImage
from mlx_imagegen.hub.manifest import data_folder
from mlx_imagegen.loading.checkpoint import open_checkpoint
from mlx_imagegen.loading.names import Rename, RowRange
from mlx_imagegen.loading.weights import Weights, open_weights
from mlx_imagegen.lora.file import open_lora
from mlx_imagegen.lora.match import Lora, ModuleNames, match_loras
from mlx_imagegen.lora.merge import Merge, open_loras
from tests.references.weight_descriptions import signed_sums

DATA = Path(__file__).parents[1] / "data" / "lora"
SCALE = 0.7  # tests/references/lora.py merges at this one
TITLES = {
    "flux1": "FLUX.1",
    "flux2": "FLUX.2",
    "flux3": "FLUX.3",
    "qwen_image": "Qwen-Image",
    "hidream_o1": "HiDream-O1-Image",
    "z_image": "Z-Image",
}
FORMATS = sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in DATA.glob("*/*/lora.safetensors"))


def other_names(family: str, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
    known = {"flux1": Flux1, "flux2": Flux2, "flux3": Flux3, "hidream_o1": HiDreamO1, "z_image": ZImage}.get(family)
    return known.__new__(known).lora_names(component, modules) if known else {}


def open_base(folder: Path, family: str) -> list[Weights]:
    """base.safetensors as components: `text_encoder/…` names are another component's."""
    whole = open_checkpoint(folder / family / "base.safetensors")
    names = {name.rpartition("/")[0] or "transformer" for name in whole}

    def rename(component: str) -> Rename:
        def targets(name: str) -> list[RowRange]:
            where, _, bare = name.rpartition("/")
            return [RowRange(bare.removeprefix("text_model."))] if (where or "transformer") == component else []

        return targets

    return [open_weights(name, whole, [], rename=rename(name), unused=("",)) for name in sorted(names)]


def known(weights: Sequence[Weights], family: str) -> list[ModuleNames]:
    prefixes = family_spec(family).lora_prefixes
    return [
        ModuleNames.of(
            each,
            lambda component, modules: other_names(family, component, modules),
            [prefix for prefix, component in prefixes.items() if component == each.component],
        )
        for each in weights
    ]


def merged(weights: Sequence[Weights], merge: Merge) -> dict[str, np.ndarray]:
    """Every tensor by its name in base.safetensors."""
    out = {}
    for each in weights:
        for name, part in each.slices.items():
            path, _, parameter = name.rpartition(".")
            value = merge(each.component, path, parameter, part.read())
            out[part.name] = np.array(value.astype(mx.float32))
    return out


def check_format(folder: Path, name: str) -> None:
    family = name.partition("/")[0]
    weights = open_base(folder, family)
    merge = Merge()
    plain = merged(weights, merge)
    file = open_lora(folder / name / "lora.safetensors")
    merge.select(match_loras([Lora(file, SCALE)], known(weights, family), TITLES[family]))
    result = merged(weights, merge)
    expected = load_file(folder / name / "merged.safetensors")
    assert expected
    for tensor, value in result.items():
        if tensor in expected:
            scale, sums = np.abs(value).max(), signed_sums(tensor, value)
            np.testing.assert_allclose(sums, expected[tensor], atol=1e-6 * scale, rtol=0, err_msg=f"{name}: {tensor}")
            assert np.abs(value - plain[tensor]).max() > 1e-3 * scale, f"{name}: {tensor} did not change"
        else:
            assert np.array_equal(value, plain[tensor]), f"{name}: {tensor} should not change"
    assert len(merge.matches[0].matched) == len(file.entries)


@pytest.mark.parametrize("name", FORMATS)
def test_merged_weights_equal_the_reference(name: str) -> None:
    check_format(DATA, name)


# ---- what is refused ------------------------------------------------------------------------------------------------


def matched(file: Path, family: str = "flux1", partial: bool = False) -> Merge:
    merge = Merge()
    merge.select(match_loras(open_loras([file]), known(open_base(DATA, family), family), TITLES[family], partial))
    return merge


def changed(path: Path, change: dict[str, mx.array | None], format: str = "flux1/comfyui") -> Path:
    """A stored file with tensors put in (or, None, taken out)."""
    tensors = mx.load(str(DATA / format / "lora.safetensors")) | change
    mx.save_safetensors(str(path), {name: value for name, value in tensors.items() if value is not None})
    return path


QKV = "diffusion_model.double_blocks.0.img_attn.qkv"


def test_no_key_matches(tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    mx.save_safetensors(
        str(file), {f"unheard.of.{i}.lora_{end}.weight": mx.ones((2, 2)) for i in range(4) for end in "AB"}
    )
    with pytest.raises(LoraError) as refused:
        matched(file)
    message = str(refused.value)
    assert "none of its 4 modules has a place in FLUX.1" in message
    assert all(f"'unheard.of.{i}' (no such module)" in message for i in range(4))


def test_names_without_a_place_are_shown_in_full() -> None:
    with pytest.raises(LoraError) as refused:
        load("flux-demo", lora=[data_folder("weights") / "demo/loras/qwen-lightning.safetensors"])
    for end in ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj"):
        assert f"'transformer_blocks.0.{end}' (no such module)" in str(refused.value)


def test_halves_of_pairs_are_told_as_such(tmp_path: Path) -> None:
    """Its modules are the model's own: that is not what is wrong with it."""
    halves = {f"{QKV}.lora_down.weight": mx.ones((2, 8)), f"{QKV[:-3]}proj.lora_down.weight": mx.ones((2, 8))}
    mx.save_safetensors(str(tmp_path / "halves.safetensors"), halves)
    with pytest.raises(LoraError, match=r"none of its 2 modules .* '.*qkv' \(it has down, which make no change"):
        matched(tmp_path / "halves.safetensors", partial=True)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(LoraError, match=r"empty.safetensors holds no tensors"):
        matched(tmp_path / "empty.safetensors")


def test_a_lora_for_another_model_says_which() -> None:
    for family, other, title in (
        ("flux1", "hidream_o1/musubi", "HiDream-O1-Image"),
        ("flux1", "qwen_image/lightning", "Qwen-Image"),
        ("qwen_image", "flux1/kohya", "FLUX.1"),
        ("hidream_o1", "qwen_image/lightning", "Qwen-Image"),
        ("flux1", "flux2/peft", "FLUX.2"),
        ("flux1", "flux2/kohya", "FLUX.2"),
        ("flux2", "flux1/kohya", "FLUX.1"),
        ("flux2", "flux1/aitoolkit", "FLUX.1"),
        ("flux2", "qwen_image/lightning", "Qwen-Image"),
        ("qwen_image", "flux2/aitoolkit", "FLUX.2"),
        ("flux2", "flux3/aitoolkit", "FLUX.3"),
        ("flux2", "flux3/peft", "FLUX.3"),
        ("flux3", "flux2/kohya", "FLUX.2"),
        ("flux3", "flux1/comfyui", "FLUX.1"),
    ):
        for partial in (False, True):  # a few names that fit by chance do not make it fit
            with pytest.raises(LoraError, match=f"It looks like a LoRA for {title}"):
                matched(DATA / other / "lora.safetensors", family, partial)


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "Stable Diffusion or SDXL"),
        ("transformer.single_stream_modulation.linear.lora_A.weight", "FLUX.2"),
        ("diffusion_model.blocks.3.self_attn.q.lora_A.weight", "Wan"),
        ("diffusion_model.layers.3.attention.qkv.lora_A.weight", "Z-Image"),
        ("lora_unet_double_blocks_3_img_mlp_fc1.lora_down.weight", "HunyuanVideo"),
        ("diffusion_model.double_blocks.3.img_attn_qkv.lora_A.weight", "HunyuanVideo"),
        ("diffusion_model.distilled_guidance_layer.layers.0.in_layer.lora_A.weight", "Chroma"),
        ("diffusion_model.joint_blocks.3.x_block.attn.qkv.lora_A.weight", "Stable Diffusion 3"),
    ],
)
def test_models_that_are_not_ours_are_named(tmp_path: Path, key: str, model: str) -> None:
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {key: mx.ones((2, 2))})
    assert open_lora(tmp_path / "other.safetensors").family == model


def test_metadata_tells_what_names_cannot(tmp_path: Path) -> None:
    """FLUX.1's and Qwen-Image's attention have the same names."""
    tensors = {f"transformer.transformer_blocks.0.attn.to_q.lora_{end}.weight": mx.ones((8, 8)) for end in "AB"}
    file = tmp_path / "attention.safetensors"
    mx.save_safetensors(str(file), tensors, {"modelspec.architecture": "qwen-image/lora"})
    assert open_lora(file).family == "Qwen-Image"
    matched(file, "qwen_image")
    with pytest.raises(LoraError, match="says that it is for Qwen-Image"):
        matched(file, "flux1")


def test_leftovers_are_listed_and_may_be_allowed(tmp_path: Path) -> None:
    stray = {"diffusion_model.unheard.of.lora_A.weight": mx.ones((2, 2)), "diffusion_model.strange.ending": mx.ones(1)}
    half = {f"{QKV}.lora_up.weight": None}
    file = changed(tmp_path / "partly.safetensors", stray | half)
    with pytest.raises(LoraError) as refused:
        matched(file)
    message = str(refused.value)
    assert "12 of 15 modules match FLUX.1" in message
    assert "'diffusion_model.unheard.of' (no such module)" in message
    assert "'diffusion_model.strange.ending' (its ending is of no known kind)" in message
    assert f"'{QKV}' (it has alpha, down, which make no change together)" in message
    assert "--lora-partial" in message
    merge = matched(file, partial=True)
    assert len(merge.matches[0].matched) == 12
    assert not merge.touches("transformer", "transformer_blocks.0.attn.to_q")
    assert merge.record() == {"lora": [[str(file), 1.0]], "lora_partial": True}


@pytest.mark.parametrize(
    "format",
    ["flux1/comfyui", "flux1/lokr_kohya_fused", "flux1/loha_lycoris", "flux1/dora_lycoris", "flux1/differences"],
)
def test_wrong_shapes(tmp_path: Path, format: str) -> None:
    tensors = mx.load(str(DATA / format / "lora.safetensors"))
    endings = ("lora_up.weight", "lokr_w2", "lokr_w2_a", "hada_w1_a", "dora_scale", "diff")
    tall = next(name for name in tensors if "attn_qkv" in name.replace(".", "_") and name.endswith(endings))
    file = changed(tmp_path / "tall.safetensors", {tall: mx.concatenate([tensors[tall], tensors[tall]])}, format)
    for partial in (False, True):
        with pytest.raises(LoraError, match="shapes that do not fit") as refused:
            matched(file, partial=partial)
        assert tall.rpartition(".")[0].removesuffix(".lora_up") in str(refused.value)
        assert "expected [24, 8], found" in str(refused.value)


@pytest.mark.parametrize(
    ("format", "part", "shape"),
    [
        ("dora_lycoris", "dora_scale", (23, 1)),
        ("dora_lycoris", "dora_scale", (1, 8)),  # over columns, of a module that is three of ours
        ("dora_lycoris_columns", "dora_scale", (1, 7)),
        ("peft_dora", "lora_magnitude_vector", (7,)),
        ("loha_dora", "dora_scale", (23, 1)),
    ],
)
def test_a_magnitude_of_another_length(tmp_path: Path, format: str, part: str, shape: tuple[int, ...]) -> None:
    stored = open_checkpoint(DATA / "flux1" / format / "lora.safetensors")
    name = next(
        name for name in stored if part in name and ("img_attn_qkv" in name or "attn_to_q" in name.replace(".", "_"))
    )
    with pytest.raises(LoraError, match="shapes that do not fit") as refused:
        matched(changed(tmp_path / "odd.safetensors", {name: mx.ones(shape)}, f"flux1/{format}"))
    assert str(list(shape)) in str(refused.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_numbers_that_are_none(tmp_path: Path, bad: float, dtype: mx.Dtype) -> None:
    values = np.ones((24, 2), np.float32)
    values[17, 1] = bad
    key = f"{QKV}.lora_up.weight"
    with pytest.raises(LoraError, match="NaN or infinity") as refused:
        open_lora(changed(tmp_path / "nan.safetensors", {key: mx.array(values).astype(dtype)}))
    assert f"'{key}'" in str(refused.value)


@pytest.mark.parametrize("ending", [".bin", ".pt", ".ckpt", ".PT"])
def test_pickles(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"my style{ending}"
    path.write_bytes(b"\x80\x04")
    for source in (path, tmp_path):  # the file, or the folder that holds nothing else
        with pytest.raises(LoraError, match="pickle, which can run any code") as refused:
            open_lora(source)
        assert "safetensors.torch" in str(refused.value)
        told = shlex.split(str(refused.value).partition("python -c ")[2])[1:]
        assert told == [str(path), str(path.with_suffix(".safetensors"))]  # from any folder, with any name


def test_control_loras(tmp_path: Path) -> None:
    """Their norms come whole; tests/lora/test_control.py merges one."""
    tensors = {f"img_in.lora_{end}.weight": mx.ones((128, 128)) for end in "AB"}
    tensors |= {"img_in.lora_B.bias": mx.ones(128), "double_blocks.0.img_attn.norm.query_norm.scale": mx.ones(128)}
    mx.save_safetensors(str(tmp_path / "depth.safetensors"), tensors)
    entries = open_lora(tmp_path / "depth.safetensors").entries
    kinds = {name: (entry.form, entry.shape, entry.bias_shape) for name, entry in entries.items()}
    assert kinds == {
        "img_in": ("LoRA", (128, 128), (128,)),
        "double_blocks.0.img_attn.norm.query_norm": ("replacement", (128,), None),
    }


def test_two_entries_for_one_module_are_not_added_up(tmp_path: Path) -> None:
    again = {f"transformer.transformer_blocks.0.attn.to_out.0.lora_{end}.weight": mx.ones((8, 8)) for end in "AB"}
    with pytest.raises(LoraError, match="img_attn.proj' already speaks of this module"):
        matched(changed(tmp_path / "again.safetensors", again))


@pytest.mark.parametrize(
    ("format", "more"),
    [
        ("comfyui", ["diff"]), ("comfyui", ["lokr_w1"]), ("comfyui", ["diff_b", "lora_B.bias"]),
        ("lokr_kohya_fused", ["lokr_w1_a"]), ("dora_lycoris", ["lora_magnitude_vector"]),
        ("loha_lycoris", ["lora_magnitude_vector"]), ("differences", ["alpha"]), ("differences", ["dora_scale"]),
        ("differences", ["lora_B.bias"]),
    ],
)  # fmt: skip
def test_tensors_that_do_not_go_together(tmp_path: Path, format: str, more: list[str]) -> None:
    """Whatever were computed from some of them, the others would be lost."""
    entries = open_lora(DATA / "flux1" / format / "lora.safetensors").entries
    module = next(name for name in entries if "attn_qkv" in name.replace(".", "_"))
    extra = {f"{module}.{part}": mx.ones(1) if part == "alpha" else mx.ones(24) for part in more}
    with pytest.raises(LoraError, match="which make no change together"):
        matched(changed(tmp_path / "odd.safetensors", extra, f"flux1/{format}"))


def test_a_damaged_file_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((DATA / "flux1/kohya/lora.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        open_lora(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"owner/name:file\.safetensors"):
        open_lora(tmp_path / "nothing.safetensors")
    for name in ("a", "b"):
        shutil.copy(DATA / "flux1/kohya/lora.safetensors", tmp_path / f"{name}.safetensors")
    with pytest.raises(LoraError, match="holds 2"):
        open_lora(tmp_path)


def test_a_bias_that_the_model_does_not_have(tmp_path: Path) -> None:
    bias = {"lora_unet_model_final_layer2_linear.diff_b": mx.ones(6)}
    with pytest.raises(LoraError, match="the module has no bias"):
        matched(changed(tmp_path / "bias.safetensors", bias, "hidream_o1/musubi"), "hidream_o1")


def test_what_is_told_as_left_over_is_not_merged_in_part(tmp_path: Path) -> None:
    """Its weight would fit."""
    bias = {"lora_unet_model_language_model_layers_0_self_attn_q_proj.diff_b": mx.ones(8)}
    merge = matched(changed(tmp_path / "bias.safetensors", bias, "hidream_o1/musubi"), "hidream_o1", partial=True)
    (match,) = merge.matches
    assert list(match.unmatched.values()) == ["the module has no bias"]
    assert not merge.touches("transformer", "model.language_model.layers.0.self_attn.q_proj")
    assert merge.touches("transformer", "model.language_model.layers.0.self_attn.k_proj")


def test_rows_in_pieces_equal_the_whole() -> None:
    """As a converter reads weights; swapped halves and fused modules included."""
    for name in ("kohya_all", "dora_lycoris", "lokr_kohya_fused", "differences"):
        merge = matched(DATA / "flux1" / name / "lora.safetensors")
        for each in open_base(DATA, "flux1"):
            for tensor, part in each.slices.items():
                path, _, parameter = tensor.rpartition(".")
                value = part.read()
                whole = merge(each.component, path, parameter, value)
                pieces = [
                    merge.rows(each.component, path, parameter, value[start : start + 5], start, len(value))
                    for start in range(0, len(value), 5)
                ]
                np.testing.assert_allclose(np.array(mx.concatenate(pieces)), np.array(whole), rtol=1e-5, atol=1e-5)


def test_the_scale_of_a_file() -> None:
    def scales(name: str) -> set[float]:
        return {round(entry.scale, 4) for entry in open_lora(DATA / name / "lora.safetensors").entries.values()}

    assert scales("flux1/aitoolkit") == {1.0}
    assert scales("flux1/peft_rslora") == {round(2 / 3**0.5, 4)}
    assert scales("flux1/peft_patterns") == {1.5, round(5 / 3, 4), 1.0}
    assert scales("flux1/peft_folder") == {1.5}


@pytest.mark.parametrize("name", ["flux1/peft_dora", "flux1/dora_lycoris", "flux1/kohya"])
def test_scale_0_touches_nothing(name: str) -> None:
    """PEFT's DoRA would set every row's length even then."""
    weights = open_base(DATA, "flux1")
    merge = Merge()
    plain = merged(weights, merge)
    file = open_lora(DATA / name / "lora.safetensors")
    merge.select(match_loras([Lora(file, 0.0)], known(weights, "flux1"), "FLUX.1"))
    assert all(np.array_equal(value, plain[tensor]) for tensor, value in merged(weights, merge).items())


@pytest.mark.parametrize(
    "metadata", ["not json", "[1]", '{"transformer.r": "many"}', '{"transformer.r": 4, "transformer.alpha_pattern": 3}']
)
def test_an_unreadable_configuration(tmp_path: Path, metadata: str) -> None:
    tensors = mx.load(str(DATA / "flux1/peft_patterns/lora.safetensors"))
    mx.save_safetensors(str(tmp_path / "style.safetensors"), tensors, {"lora_adapter_metadata": metadata})
    with pytest.raises(LoraError, match="configuration cannot be read"):
        open_lora(tmp_path / "style.safetensors")


def test_an_alpha_of_any_width(tmp_path: Path) -> None:
    for dtype in (np.float16, np.float32, np.float64, np.int64):
        tensors = {f"{QKV}.alpha": np.array([6], dtype), f"{QKV}.lora_down.weight": np.ones((2, 8), np.float32)}
        save_file(tensors | {f"{QKV}.lora_up.weight": np.ones((24, 2), np.float32)}, tmp_path / "alpha.safetensors")
        (entry,) = open_lora(tmp_path / "alpha.safetensors").entries.values()
        assert entry.scale == 3.0
