"""config.json's `quantization` -> how each weight on disk is packed, by our paths.

Two forms are read. Ours, also mlx-lm's for mixed bits, has an entry {"bits", "group_size", "mode"} for each packed
layer's path. MLX's common form has "bits", "group_size" and "mode" for all, and entries or true and false for single
paths: a layer is packed where the file has its scales. Paths are ours, or the file's own before renaming.
Must not know: modules, recipes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..escaping import quoted
from ..layers.linear import GROUP_SIZES, MODES, Packing
from .names import Rename

GLOBAL_KEYS = frozenset({"bits", "group_size", "mode"})
# What MLX takes for a mode where an entry gives no number: (group size, bits).
DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
SCALES = ".scales"


def stored_packings(
    quantization: object, names: Mapping[str, object], rename: Rename, where: Path
) -> dict[str, Packing]:
    """`names`: the checkpoint's tensors by our names. `where`: the checkpoint, for errors."""
    if not isinstance(quantization, Mapping):
        raise ConfigError(_unknown_form(where))
    shared = {key: value for key, value in quantization.items() if key in GLOBAL_KEYS}
    default = _packing("every layer", shared, where) if shared else None
    scaled = [name.removesuffix(SCALES) for name in names if name.endswith(SCALES)]
    out: dict[str, Packing | None] = dict.fromkeys(scaled, default) if default else {}
    for written, entry in quantization.items():
        if written in GLOBAL_KEYS:
            continue
        packing = _entry(written, entry, default, where)
        paths = list(_our_paths(written, names, rename))
        if packing and paths and not any(f"{path}.weight" in names for path in paths):
            raise ConfigError(
                f"{where}: config.json's 'quantization' names {quoted(written)}, and the file has no such weight: they "
                "are of different models. Take config.json and the .safetensors files from one repository."
            )
        out |= dict.fromkeys(paths, packing)
    return {path: packing for path, packing in out.items() if packing}


def _entry(path: str, entry: object, default: Packing | None, where: Path) -> Packing | None:
    """One path's packing; None if it is dense."""
    if entry is False:
        return None
    if entry is True and default:
        return default
    if not isinstance(entry, Mapping):
        raise ConfigError(_unknown_form(where))
    return _packing(f"'{path}'", entry, where)


def _packing(path: str, entry: Mapping[str, Any], where: Path) -> Packing:
    if entry.keys() - GLOBAL_KEYS or not isinstance(entry.get("mode", ""), str):
        raise ConfigError(_unknown_form(where))
    try:
        return read_packing(entry)
    except ValueError as error:
        raise ConfigError(
            f"{where}: config.json's 'quantization' for {path}: {error}. Download config.json again, or take another "
            "copy of the model."
        ) from error


def read_packing(entry: Mapping[str, Any]) -> Packing:
    """Of {"bits", "group_size", "mode"}, a file's or a recipe's; ValueError for what MLX does not have."""
    mode = entry.get("mode", "affine")
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"mode {quoted(mode)} is not one of MLX's: {', '.join(MODES)}")
    group_size, bits = DEFAULTS[mode]
    group_size, bits = entry.get("group_size", group_size), entry.get("bits", bits)
    for key, value, choices in (("bits", bits, MODES[mode]), ("group_size", group_size, GROUP_SIZES[mode])):
        if type(value) is not int or value not in choices:  # 4.0 and true are equal to numbers of the list
            numbers = ", ".join(map(str, choices))
            raise ValueError(f"{key} {quoted(value)} is not possible; MLX's {mode} packing has {numbers}")
    return Packing(bits, group_size, mode)


def _our_paths(path: str, names: Mapping[str, object], rename: Rename) -> Iterator[str]:
    """The modules that `path` means: one of ours, or those that one of the file's modules holds."""
    if f"{path}.weight" in names:
        yield path
        return
    for target in rename(f"{path}.weight"):
        yield target.name.removesuffix(".weight")


def _unknown_form(where: Path) -> str:
    return (
        f"{where}: config.json's 'quantization' gives neither every weight's packing by its path nor MLX's 'bits' and "
        "'group_size', so it is another tool's work. Take the full-precision model, and pack it with `mlx-imagegen "
        "quantize`."
    )
