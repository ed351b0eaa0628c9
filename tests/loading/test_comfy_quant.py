"""ComfyUI's quantized formats against the numbers of ComfyUI's own library (tests/references/comfy_quant.py), and
refusals of what is none of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_imagegen.errors import CheckpointError
from mlx_imagegen.loading.checkpoint import Tensor, open_checkpoint
from mlx_imagegen.loading.comfy_quant import hadamard, unpack_layers
from mlx_imagegen.loading.safetensors import read_header

STORED = Path(__file__).parents[1] / "data/comfy/formats.safetensors"
LAYERS = ["float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4", "int8", "int8_rows", "int8_convrot", "int8_convrot64"]


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_those_of_comfyui(layer: str) -> None:
    checkpoint = open_checkpoint(STORED)
    weight, expected = checkpoint[f"{layer}.weight"], checkpoint[f"{layer}.expected"].floats()
    floats = weight.floats()
    # A rotation is a sum of as many numbers as there are in a group; all else is one product.
    np.testing.assert_allclose(floats[-len(expected) :], expected, rtol=0, atol=2e-6 if "convrot" in layer else 0)
    np.testing.assert_array_equal(np.array(weight.read()), floats)
    np.testing.assert_array_equal(weight.floats(3, 4), floats[3:7])
    np.testing.assert_array_equal(np.array(weight.gather([5, 0])), floats[[5, 0]])


def test_what_belongs_to_a_weight_is_no_tensor_of_its_own() -> None:
    assert set(open_checkpoint(STORED)) == {f"{layer}.{part}" for layer in LAYERS for part in ("weight", "expected")}


def test_the_rotation_is_its_own_inverse() -> None:
    for size in (4, 64, 256):
        np.testing.assert_allclose(hadamard(size) @ hadamard(size), np.eye(size), atol=1e-6)


def test_formats_may_stand_in_the_metadata(tmp_path: Path) -> None:
    """As ComfyUI has written them since, in place of a tensor a layer."""
    tensors, _ = read_header(STORED)
    path = tmp_path / "a.safetensors"
    raw = STORED.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    said = {
        name[:-12]: json.loads(tensors[name].bytes().tobytes()) for name in tensors if name.endswith(".comfy_quant")
    }
    header["__metadata__"] = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": said})}
    for name in [name for name in header if name.endswith(".comfy_quant")]:
        header[f"{name}_before"] = header.pop(name)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    before, after = open_checkpoint(STORED), open_checkpoint(path)
    for layer in LAYERS:
        np.testing.assert_array_equal(after[f"{layer}.weight"].floats(), before[f"{layer}.weight"].floats())


def test_a_factor_for_each_input_goes_into_the_weight(tmp_path: Path) -> None:
    """`pre_quant_scale`: what a layer's inputs are multiplied by."""
    tensors, metadata = read_header(STORED)
    factors = np.linspace(0.5, 2, 80).astype(np.float32)
    save_file({"nvfp4.pre_quant_scale": factors}, tmp_path / "a.safetensors")
    extra, _ = read_header(tmp_path / "a.safetensors")
    plain = unpack_layers(tensors, metadata, STORED)["nvfp4.weight"].floats()
    scaled = unpack_layers({**tensors, **extra}, metadata, STORED)["nvfp4.weight"].floats()
    np.testing.assert_array_equal(scaled, plain * factors)


def fp8(dtype: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """A layer in fp8 with a scale of that form."""
    kinds = {"proj.weight": ("F8_E4M3", (4, 64)), "proj.weight_scale": (dtype, shape)}
    return {name: Tensor(Path("model.safetensors"), name, *kind, 0, 0) for name, kind in kinds.items()}


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
def test_fp8_has_a_scale_for_all_or_for_each_row(shape: tuple[int, ...]) -> None:
    tensors = fp8("BF16", shape)
    found = unpack_layers(tensors, {}, Path("model.safetensors"))
    assert found.keys() == {"proj.weight"} and found["proj.weight"].scale is tensors["proj.weight_scale"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("dtype", "shape"), [("U8", (4, 2)), ("U8", (4,)), ("F32", (4, 2)), ("F32", (3,))])
def test_scales_for_blocks_are_refused(dtype: str, shape: tuple[int, ...]) -> None:
    """The first numbers of as many as there are rows would be taken for the rows' own."""
    with pytest.raises(CheckpointError, match=r"'proj.weight_scale' .* is neither one scale for 'proj.weight' nor"):
        unpack_layers(fp8(dtype, shape), {}, Path("model.safetensors"))


def described(tmp_path: Path, said: Any, **tensors: np.ndarray) -> Path:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    layer = {f"proj.{name}": value for name, value in tensors.items()}
    path = tmp_path / "a.safetensors"
    save_file({"proj.comfy_quant": np.frombuffer(text, np.uint8), **layer}, path)
    return path


CODES = np.zeros((4, 64), np.int8)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"format": "convrot_w4a4"},
            r"'proj' is in the format 'convrot_w4a4', which this library does not unpack; it rea",
        ),
        ({"format": "asym_w4a8_int8"}, "'proj' is in the format 'asym_w4a8_int8', which"),
        ({"format": None}, "'proj' is in the format None, which"),
        ([], "'proj.comfy_quant' is a list, not a JSON object"),
        (b"{", "'proj.comfy_quant' is not valid JSON"),
        ({"format": "nvfp4"}, r"'proj.weight' \(I8 \[4, 64\]\) is said to be nvfp4, which does not fit"),
        (
            {"format": "float8_e4m3fn"},
            r"'proj.weight' \(I8 \[4, 64\]\) is said to be float8_e4m3fn, which does not fit",
        ),
        ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 48}, "rotated over 48 columns"),
        ({"format": "int8_tensorwise", "convrot": True}, "rotated over 256 columns"),
        ({"format": "int8_tensorwise"}, "no scale is neither one scale for 'proj.weight' nor one for each of its rows"),
    ],
)
def test_what_cannot_be_unpacked_is_refused_by_name(tmp_path: Path, said: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(described(tmp_path, said, weight=CODES))


def test_scales_of_other_tiles_are_refused(tmp_path: Path) -> None:
    codes, scales = np.zeros((4, 40), np.uint8), np.zeros((4, 5), np.uint8)
    with pytest.raises(CheckpointError, match=r"is nvfp4, and its scales are not \[128, 8\] in F8_E4M3"):
        open_checkpoint(described(tmp_path, {"format": "nvfp4"}, weight=codes, weight_scale=scales))


def test_an_empty_mark_of_old_files_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(
        {"model.diffusion_model.scaled_fp8": np.zeros(0, np.float32), "x.weight": np.ones((2, 2), np.float32)}, path
    )
    assert set(load_file(path)) - set(open_checkpoint(path)) == {"model.diffusion_model.scaled_fp8"}
