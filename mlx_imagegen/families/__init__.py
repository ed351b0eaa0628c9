"""The registry: which model families there are, by what each one's folders are recognized, and how one is opened.

A family is a folder here with a `spec.py`, its manifests in weights/, its rows in quant/*.toml, and one line in
`BUILT_IN`. A family of another package is made known with `register`. Specs are light: MLX is imported when a model is
opened.
Must not know: any family's details.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..escaping import shown
from ..loading.folder import ModelFolder

if TYPE_CHECKING:
    from ..hub.manifest import Manifest
    from ..loading.weights import WeightTransforms
    from .base import Family

# Family -> the module that holds its SPEC.
BUILT_IN = {
    "flux1": "mlx_imagegen.families.flux1.spec",
    "qwen_image": "mlx_imagegen.families.qwen_image.spec",
    "qwen_image_21": "mlx_imagegen.families.qwen_image_21.spec",
    "hidream_o1": "mlx_imagegen.families.hidream_o1.spec",
    "z_image": "mlx_imagegen.families.z_image.spec",
    "flux2": "mlx_imagegen.families.flux2.spec",
    "flux3": "mlx_imagegen.families.flux3.spec",
}
_registered: dict[str, "FamilySpec"] = {}


@dataclass(frozen=True)
class TokenRoles:
    """Which tokens pass through the denoiser's linear layers, as globs over their paths; all others see the picture's
    tokens and its references'. For plans, and for the choice of kernels."""

    text: tuple[str, ...] = ()  # the prompt's alone
    joint: tuple[str, ...] = ()  # prompt and picture
    image: tuple[str, ...] = ()  # the picture's own, without references
    references: tuple[str, ...] = ()  # the references' alone
    single: tuple[str, ...] = ()  # one token, whatever the picture
    apart: tuple[str, ...] = ()  # those whose tokens attend to one another alone, not to the prompt's as well
    multiple: int = 1  # prompt and picture are each filled up to a multiple of so many tokens
    queries: tuple[str, ...] = ("*.to_q", "*.add_q_proj", "*.q_proj")  # the layers that attention's queries come from
    fused_queries: tuple[str, ...] = ()  # layers that give more than queries: of these as many as they have inputs
    pads_prompt: bool = False  # prompts always have max_sequence_length tokens


@dataclass(frozen=True)
class FamilySpec:
    """All that the rest of the library has to know about a family before one of its models is open."""

    name: str  # in manifests and recipes
    title: str  # for people
    opens: str  # "package.module:Class", a `base.Family`
    # The name of the manifest nearest to a folder, by the folder's own files; None if it is not this family's. Raises
    # ConfigError for a relative that this library does not have.
    recognize: Callable[[ModelFolder], str | None]
    classes: tuple[str, ...]  # what the folders' config files call a pipeline or model of this family
    roles: TokenRoles
    # What a model of the family may be asked; which of them take it, their manifests say.
    capabilities: frozenset[str] = frozenset({"image", "negative_prompt", "guidance"})
    components: tuple[str, ...] = ("transformer", "text_encoder", "vae")  # that recipes may name
    # A regular expression for names of modules that only this family has: tells whose a LoRA is.
    lora_sign: str = r"(?!)"
    lora_prefixes: Mapping[str, str] = field(default_factory=dict)  # of keys -> a component other than the denoiser
    # A linear layer's path (a regular expression) -> the norm whose output it reads (a template), where inputs count by
    # that norm's weight.
    norms: Mapping[str, str] = field(default_factory=dict)
    # What the published files of the family say of sizes and noise in a block of their own: config -> manifest keys.
    own_numbers: Callable[["Manifest", ModelFolder], "Manifest"] | None = None
    manifests: Path | None = None  # a folder with manifests of a family outside this package
    fits_float16: bool = False  # the denoiser, shown by a test; then its precision may be chosen
    overflowing: tuple[str, ...] = ()  # globs of its layers whose outputs are known not to fit
    # "package.module:NAME", the layouts (loading/single_file.py) in which its components are published as single files.
    single_files: str | None = None
    tokenizers: Mapping[str, str] = field(default_factory=dict)  # a model's folder -> the repository's that it is
    packaged_tokenizers: Mapping[str, str] = field(default_factory=dict)  # folder -> a name in weights/tokenizers/
    mirrors: tuple[str, ...] = ()  # repositories that have the same small files, and ask for no access


def register(spec: FamilySpec) -> None:
    """Makes a family of another package known, for this process."""
    _registered[spec.name] = spec


def registered_specs() -> list[FamilySpec]:
    """Those that `register` has added."""
    return list(_registered.values())


def family_spec(name: str) -> FamilySpec:
    if name in _registered:
        return _registered[name]
    if name not in BUILT_IN:
        known = ", ".join([*BUILT_IN, *_registered])
        raise ConfigError(f"the family '{name}' is not part of this version, which has {known}; update mlx-imagegen.")
    spec: FamilySpec = importlib.import_module(BUILT_IN[name]).SPEC
    return spec


def family_specs() -> list[FamilySpec]:
    return [*map(family_spec, BUILT_IN), *_registered.values()]


def open_family(manifest: "Manifest", folder: Path, transforms: "WeightTransforms") -> "Family[Any]":
    """The model in a folder, its files checked; no weights are read."""
    spec = family_spec(manifest.family)
    _check_classes(spec, ModelFolder(folder))
    module, _, name = spec.opens.partition(":")
    try:
        opened: Family[Any] = getattr(importlib.import_module(module), name).open(folder, manifest, transforms)
    except OverflowError as error:  # each of a config's numbers is within its range, and their product in no array's
        raise ConfigError(
            f"{shown(str(folder), 160)}: the widths in its configs make a layer larger than any array may be; take "
            "them from the model's repository."
        ) from error
    return opened


def _check_classes(spec: FamilySpec, folder: ModelFolder) -> None:
    """The folder is one of the family's, whatever it was taken for: by a converter's note, by its name."""
    named = {"model_index.json": folder.pipeline, "transformer/config.json": folder.transformer}
    for file, kind in named.items():
        if kind is not None and kind not in spec.classes:
            raise ConfigError(
                f"{folder.path}: {file} says {shown(kind)}, and {spec.title} has {', '.join(spec.classes)}: another "
                "architecture's file. Take it from the model's repository."
            )
