"""Folders that other MLX programs have saved: their components, and how their weights are packed.

In: a folder. Out: whether it is one, which model it was saved from, and the packings that its metadata and shapes give.
mflux's and mlx-gen's have a component in every subfolder, in names of their own, in MLX's packing, mostly without
config.json. Z-Image.swift's are in diffusers' layout and names, with a list of what is packed next to the components.
Must not know: any family's names (they are layouts in each family's `single_files`).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..escaping import shown
from ..layers.linear import GROUP_SIZES, MODES, Packing
from ..loading.config import read_json
from ..loading.packings import GLOBAL_KEYS
from ..loading.safetensors import read_metadata
from ..loading.tensor import Tensor
from ..paths import visible

VERSION, LEVEL = "mflux_version", "quantization_level"
SCALES = ".scales"
NOTE = "mflux_model.json"  # what newer versions write next to the components
NETWORK_FOLDER = "transformer_controlnet"  # where mflux saves a control network together with its model
LIST = "quantization.json"  # Z-Image.swift's


def component_folders(folder: Path) -> list[Path]:
    """Its components, if it is such a folder."""
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and visible(path, "*.safetensors")]
    return [path for path in found if VERSION in saved_metadata(path)]


def check_no_network(folder: Path) -> None:
    """Its names are those of no published network."""
    if (folder / NETWORK_FOLDER).is_dir():
        raise ConfigError(
            f"{folder / NETWORK_FOLDER} is a control network saved by mflux, which is not read in that layout; move it "
            "out of the folder to use the model, and name the published network (control, --control) to use that."
        )


def saved_metadata(component: Path) -> Mapping[str, str]:
    """Of a component's index, or of its first file."""
    for index in visible(component, "*.safetensors.index.json"):
        metadata = read_json(index).get("metadata")
        if isinstance(metadata, dict) and VERSION in metadata:
            return metadata
    files = visible(component, "*.safetensors")
    return read_metadata(files[0]) if files else {}


def saved_name(component: Path) -> str:
    """Of the model that a component was saved from: as its maker noted it, or else its folder's name, which in the
    hub's cache is a revision, and the repository's is above it."""
    folder = component.parent
    note = read_json(folder / NOTE) if (folder / NOTE).is_file() else {}
    if name := note.get("base_model") or note.get("model_name"):
        return str(name)
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def saved_by(folder: Path) -> dict[str, str]:
    """For people: which program saved such a folder, of what, and at how many bits; empty for any other."""
    components = component_folders(folder)
    if not components:
        listed = read_json(folder / LIST) if (folder / LIST).is_file() else {}
        packed = f"packed to {listed.get('bits')} bits ({listed.get('mode')})"
        return {"saved_by": f"Z-Image.swift, {packed}", "saved_from": str(listed.get("model_id"))} if listed else {}
    metadata = [saved_metadata(component) for component in components]
    levels = {str(each.get(LEVEL)) for each in metadata} & {str(bits) for bits in MODES["affine"]}
    packed = f"packed to {' and '.join(sorted(levels))} bits" if levels else "not packed"
    return {"saved_by": f"mflux {metadata[0][VERSION]}, {packed}", "saved_from": saved_name(components[0])}


def saved_packings(component: Path, tensors: Mapping[str, Tensor]) -> dict[str, Packing]:
    """By the file's names of modules. The metadata gives the bits of most, and with them the size of all groups; a few
    modules may have other bits."""
    rows: dict[str, tuple[int, int]] = {}  # bits of all codes in a row, groups in a row
    for module in (name.removesuffix(SCALES) for name in tensors if name.endswith(SCALES)):
        codes, scales = (tensors.get(f"{module}{end}") for end in (".weight", SCALES))
        if not codes or not codes.shape or not scales or not scales.shape:
            raise CheckpointError(
                f"{component}: '{shown(module)}' has scales of no packed weight. Save the model again."
            )
        rows[module] = 32 * codes.shape[-1], max(1, scales.shape[-1])
    if not rows:
        return {}
    level = str(saved_metadata(component).get(LEVEL))
    if not level.isdecimal() or int(level) not in MODES["affine"]:
        raise CheckpointError(
            f"{component}: it has packed weights, and its metadata's '{LEVEL}' is {level}, which is no number of bits "
            "that MLX packs. Save the model again."
        )
    group_size = Counter(bits / int(level) / groups for bits, groups in rows.values()).most_common(1)[0][0]
    packings = {}
    for module, (row_bits, groups) in rows.items():
        bits = row_bits / (groups * group_size)
        if group_size not in GROUP_SIZES["affine"] or bits not in MODES["affine"]:
            codes_shape, scales_shape = (list(tensors[f"{module}{end}"].shape) for end in (".weight", SCALES))
            raise CheckpointError(
                f"{component}: '{module}' has codes {codes_shape} and scales {scales_shape}, which are not of {level} "
                "bits as the metadata says. Save the model again."
            )
        packings[module] = Packing(int(bits), int(group_size))
    return packings


def listed_packings(folder: Path, component: str) -> dict[str, Any]:
    """What Z-Image.swift's list says of a component, as config.json's `quantization`; empty without one."""
    path, before = folder / LIST, f"{component}."
    layers = read_json(path).get("layers") if path.is_file() else None
    entries = {}
    for layer in layers if isinstance(layers, list) else ():
        name = layer.get("name") if isinstance(layer, dict) else None
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path}: 'layers' has {shown(repr(layer))}, which names no layer; download it again."
            )
        if name.startswith(before):
            entries[name.removeprefix(before)] = {key: layer[key] for key in GLOBAL_KEYS if key in layer}
    return entries
