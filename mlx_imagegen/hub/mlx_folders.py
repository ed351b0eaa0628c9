"""Folders that mflux and mlx-gen have saved: their components, and how their weights are packed.

In: a folder. Out: whether it is one, and the packings that its metadata and shapes give. Such folders have a component
in every subfolder, in names of their own, in MLX's packing, without config.json files.
Must not know: any family's names (they are layouts in each family's `single_files`).
"""

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..layers.linear import GROUP_SIZES, MODES, Packing
from ..loading.config import read_json
from ..loading.safetensors import read_metadata
from ..loading.tensor import Tensor
from ..paths import visible

VERSION, LEVEL = "mflux_version", "quantization_level"
SCALES = ".scales"


def component_folders(folder: Path) -> list[Path]:
    """Its components, if it is such a folder."""
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and visible(path, "*.safetensors")]
    return [path for path in found if VERSION in saved_metadata(path)]


def saved_metadata(component: Path) -> Mapping[str, str]:
    """Of a component's index, or of its first file."""
    for index in visible(component, "*.safetensors.index.json"):
        metadata = read_json(index).get("metadata")
        if isinstance(metadata, dict) and VERSION in metadata:
            return metadata
    files = visible(component, "*.safetensors")
    return read_metadata(files[0]) if files else {}


def saved_packings(component: Path, tensors: Mapping[str, Tensor]) -> dict[str, Packing]:
    """By the file's names of modules: the bits are the metadata's, the groups follow from the shapes."""
    modules = [name.removesuffix(SCALES) for name in tensors if name.endswith(SCALES)]
    if not modules:
        return {}
    level = str(saved_metadata(component).get(LEVEL))
    if not level.isdecimal() or int(level) not in MODES["affine"]:
        raise CheckpointError(
            f"{component}: it has packed weights, and its metadata's '{LEVEL}' is {level}, which is no number of bits "
            "that MLX packs. Save the model again."
        )
    return {module: _packing(component, module, int(level), tensors) for module in modules}


def _packing(component: Path, module: str, bits: int, tensors: Mapping[str, Tensor]) -> Packing:
    codes, scales = tensors[f"{module}.weight"], tensors[f"{module}{SCALES}"]
    columns = codes.shape[-1] * 32 // bits
    group_size = columns // max(1, scales.shape[-1])
    if group_size not in GROUP_SIZES["affine"] or group_size * scales.shape[-1] != columns:
        raise CheckpointError(
            f"{component}: '{module}' has codes {list(codes.shape)} and scales {list(scales.shape)}, which are not of "
            f"{bits} bits as the metadata says. Save the model again."
        )
    return Packing(bits, group_size)
