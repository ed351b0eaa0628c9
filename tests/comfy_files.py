"""A diffusers folder's weights as a folder of ComfyUI's models: single files in the names of the published ones.

The names are those of the published files (tests/data/names), so far as the small model has what they hold.
"""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from mlx_imagegen.autoencoders.kl import Autoencoder, VaeConfig
from mlx_imagegen.autoencoders.layouts import from_ldm
from mlx_imagegen.families.flux1.config import FluxConfig
from mlx_imagegen.families.flux1.keys import from_original
from mlx_imagegen.families.flux1.modulation import FluxModulators
from mlx_imagegen.families.flux1.transformer import FluxTransformer
from mlx_imagegen.hub.manifest import manifests
from mlx_imagegen.hub.tensor_shapes import each_name
from mlx_imagegen.loading.names import Rename
from mlx_imagegen.loading.weights import layers, own_parameters
from tests.draw import drawn_data
from tests.gguf_files import HALVES, Drawn, dequantized, draw_blocks, encode, write_gguf

NAMES = Path(__file__).parent / "data/names"
Tensors = dict[str, np.ndarray]


def published_names(place: str) -> list[str]:
    data = json.loads((NAMES / place).read_text())
    return [name for names in data["tensors"] for name in each_name(names)]


def read_tensors(folder: Path) -> Tensors:
    (path,) = folder.glob("*.safetensors")
    return {name: np.array(value.astype(mx.float32)) for name, value in mx.load(str(path)).items()}


def fused(tensors: Tensors, names: Iterable[str], rename: Rename) -> Tensors:
    """The inverse of a rename: the parts that a published name holds, put together."""
    out = {}
    for name in names:
        parts = list(rename(name))
        if parts and all(part.name in tensors for part in parts):
            whole = np.concatenate([tensors[part.name] for part in parts]) if len(parts) > 1 else tensors[parts[0].name]
            out[name] = np.concatenate(np.split(whole, 2)[::-1]) if parts[0].swap_halves else whole
    return out


def draw_flux(folder: Path) -> Path:
    """The stored draw with a transformer 256 wide, so that its rows are whole blocks of every GGUF type, and with an
    autoencoder as the original's file implies it."""
    return shutil.copytree(_drawn_flux()[0], folder)


@functools.cache
def _drawn_flux() -> tuple[Path, "tempfile.TemporaryDirectory[str]"]:
    """Drawn once, and removed when the process ends: many tests ask for it."""
    place = tempfile.TemporaryDirectory(prefix="mlx_imagegen_flux_")
    folder = shutil.copytree(drawn_data() / "flux/dev", Path(place.name) / "flux")
    widths = {"attention_head_dim": 128, "num_attention_heads": 2, "num_layers": 1, "num_single_layers": 2}
    config = _rewritten(folder / "transformer", widths | {"axes_dims_rope": [16, 56, 56]})
    read = FluxConfig.read(config, "config.json")
    _draw(folder / "transformer", FluxTransformer(read), FluxModulators(read))
    sizes = {"block_out_channels": [32] * 4, "norm_num_groups": 32, "layers_per_block": 1}
    numbers = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    config = _rewritten(folder / "vae", sizes | numbers)
    _draw(folder / "vae", Autoencoder(VaeConfig.read(config, "config.json")))
    return folder, place


def _rewritten(folder: Path, more: Mapping[str, object]) -> dict[str, object]:
    config = json.loads((folder / "config.json").read_text()) | more
    (folder / "config.json").write_text(json.dumps(config))
    return config


def _draw(folder: Path, *trees: object) -> None:
    """Random tensors for every parameter, convolutions as torch keeps them."""
    dice, tensors = np.random.default_rng(0), {}
    for path, layer in (item for tree in trees for item in layers(tree)):  # type: ignore[arg-type]
        for name, value in own_parameters(layer).items():
            array = dice.normal(0, 0.5 / np.sqrt(value.shape[-1]), value.shape).astype(np.float32)
            array += name == "weight" and array.ndim == 1
            tensors[f"{path}.{name}"] = np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


def flux_files(folder: Path) -> dict[str, Tensors]:
    """Each component's tensors by the names of its published file."""
    vae = fused(read_tensors(folder / "vae"), published_names("FLUX.1-dev/bfl_single_file_ae.json"), from_ldm)
    attention = {name for name in vae if "attn_1" in name and vae[name].ndim == 2}
    clip = read_tensors(folder / "text_encoder")
    return {
        "transformer": fused(
            read_tensors(folder / "transformer"),
            published_names("FLUX.1-dev/bfl_single_file_flux1-dev.json"),
            from_original,
        ),
        "vae": {name: value[:, :, None, None] if name in attention else value for name, value in vae.items()},
        "text_encoder": {f"text_model.{name.removeprefix('text_model.')}": value for name, value in clip.items()},
        "text_encoder_2": read_tensors(folder / "text_encoder_2"),
    }


def save_with_config(path: Path, tensors: Tensors, config: Path) -> Path:
    """A file, and next to it what no shape of a small model tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    shutil.copyfile(config, path.with_suffix(".json"))
    return path


def comfy_flux(models: Path, folder: Path, save: Callable[[Path, Tensors, Path], Path] = save_with_config) -> Path:
    """ComfyUI's folder; the diffusion model's file in it. `save`: for the diffusion model."""
    files = flux_files(folder)
    places = {"vae": "vae/ae", "text_encoder": "text_encoders/clip_l", "text_encoder_2": "clip/t5xxl_fp16"}
    for component, place in places.items():
        save_with_config(models / f"{place}.safetensors", files[component], folder / component / "config.json")
    place = models / "diffusion_models/flux1-dev.safetensors"
    return save(place, files["transformer"], folder / "transformer/config.json")


def cache_tokenizers(cache: Path, folder: Path, manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's cache that has nothing of a model's repository but its tokenizers."""
    from huggingface_hub import constants

    known = manifests()[manifest]
    snapshot = cache / f"models--{str(known.repo).replace('/', '--')}" / "snapshots" / str(known.revision)
    for place in folder.glob("tokenizer*"):
        shutil.copytree(place, snapshot / place.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def gguf_flux(models: Path, folder: Path, kind: Kind) -> tuple[Path, Path]:
    """ComfyUI's folder with the transformer in a type of GGUF: the file, and a diffusers folder of the same numbers."""
    files = quantized(flux_files(folder)["transformer"], kind)
    numbers = {name: dequantized(drawn) for name, drawn in files.items()}
    same = models.with_name(f"{models.name}_numbers")
    shutil.copytree(folder, same)
    save_file(to_folder(numbers, from_original), same / "transformer/diffusion_pytorch_model.safetensors")
    return comfy_flux(models, folder, lambda path, *_: write_gguf(path.with_suffix(".gguf"), files)), same


def quantized(tensors: Tensors, kind: Kind) -> dict[str, Drawn]:
    """As converters do: matrices in blocks, vectors and what has no whole blocks plain."""
    out = {}
    for seed, (name, value) in enumerate(tensors.items()):
        if value.ndim < 2 or value.shape[1] % 256:
            out[name] = encode(value, Kind.F32)
        elif kind in HALVES:
            out[name] = draw_blocks(kind, *value.shape, seed, size=0.5 / np.sqrt(value.shape[1]))
        else:
            out[name] = encode(value, kind)
    return out


def to_folder(tensors: Tensors, rename: Rename) -> Tensors:
    """A published file's tensors by a component folder's names."""
    out = {}
    for name, value in tensors.items():
        for target in rename(name):
            unit = len(value) // target.of if value.ndim else 0
            rows = value[target.start * unit : (target.start + target.share) * unit] if target.of > 1 else value
            out[target.name] = np.concatenate(np.split(rows, 2)[::-1]) if target.swap_halves else rows
    return {name: np.ascontiguousarray(value) for name, value in out.items()}
