"""How components are published as one file: by what a file is recognized, and what its tensors become.

Families list their layouts as `SingleFile`s in keys.py; text encoders and autoencoders that several families share have
theirs next to their modules. A file may hold one component or, each under a prefix of its own, all of them.
Must not know: which families there are, folders of files.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import CheckpointError
from ..layers.linear import Packing
from .names import Rename, RowRange, same_names, source_rows
from .parts import Part
from .tensor import Tensor

Tensors = Mapping[str, Tensor]
# What stands before the names of a diffusion model in a file of all components, and in some of one alone.
DIFFUSION_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "net.", "model.")
VAE_PREFIXES = ("", "vae.", "first_stage_model.")
# Components that no model consists of: they run next to one, which is given them by a parameter.
NETWORK, IP_ADAPTER, REDUX = "control network", "IP-Adapter", "Redux"
GIVEN_AS = {NETWORK: "control", IP_ADAPTER: "ip_adapter", REDUX: "redux"}
NONE = r"(?!)"  # no module: a regular expression that matches nothing
# Left in some files by the tools that wrote them; no module reads them.
MARKERS = frozenset({"logit_scale", "__index_timestep_zero__", "spiece_model", "tekken_model", "tokenizer_json"})


@dataclass(frozen=True)
class SingleFile:
    """One layout of one component."""

    component: str
    title: str  # for people
    matches: Callable[[Tensors], bool]  # by names and shapes, the prefix taken off
    rename: Rename = same_names  # -> the names of the component's folder
    # What the shapes tell of config.json, over what is published with the family's nearest manifest.
    config: Callable[[Tensors], dict[str, Any]] = lambda tensors: {}
    prefixes: Sequence[str] = ("",)
    # Of a diffusion model: the nearest manifest, by the file's name in lower case and its tensors. Raises ConfigError
    # for a relative that the library does not have.
    manifest: Callable[[str, Tensors], str] | None = None
    of_manifest: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # more of config.json, by its name
    # Of what goes with a diffusion model: whether its config.json fits the diffusion model's.
    fits: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda config, denoiser: True
    architecture: str = ""  # that a GGUF file must give, where its names are another model's too
    channels_last: bool = False  # whether convolutions are in MLX's order of axes
    dense: str = NONE  # a regular expression for modules that take no codes, where a file has them packed
    place: str = ""  # its folder in the model's; named like the component, if not given
    # `rename`, where a name's meaning depends on which others there are.
    rename_among: Callable[[Tensors], Rename] | None = None
    adds: str = ""  # of a part of the component that its own file lacks: that part, for people

    @property
    def folder(self) -> str:
        return self.place or self.component


@dataclass(frozen=True)
class Found:
    """A layout that a file has, and its tensors by the names of the layout."""

    layout: SingleFile
    path: Path
    prefix: str
    tensors: Tensors

    @property
    def config(self) -> dict[str, Any]:
        return self.layout.config(self.tensors)

    @property
    def rename(self) -> Rename:
        among = self.layout.rename_among
        return among(self.tensors) if among else self.layout.rename

    @property
    def names(self) -> set[str]:
        """In the file."""
        return {self.prefix + name for name in self.tensors}

    def parts(self, packings: Mapping[str, Packing] = MappingProxyType({})) -> Iterator[Part]:
        """The tensors of the component's folder. `packings`: of weights that are to be read as numbers, by the layout's
        names of their modules."""
        rename = self.rename
        for name, tensor in self.tensors.items():
            module, _, parameter = name.rpartition(".")
            if name in MARKERS or (module in packings and parameter in ("scales", "biases")):
                continue
            packing = packings.get(module) if parameter == "weight" else None
            numbers_of = (packing.bits, packing.group_size) if packing else None
            for target in rename(name):
                place = *source_rows(tensor, target), target.swap_halves
                last, head = self.layout.channels_last, target.interleaved
                yield Part(target.name, tensor.path, tensor.name, *place, last, numbers_of, head, target.join)


def find_layout(path: Path, tensors: Tensors, layout: SingleFile) -> Found | None:
    """The layout in a file's tensors, under the first of its prefixes that fits."""
    for prefix in layout.prefixes:
        inner = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if inner and layout.matches(inner):
            return Found(layout, path, prefix, inner)
    return None


def saved_by_mflux(
    component: str, title: str, matches: Callable[[Tensors], bool], rename: Rename = same_names, dense: str = NONE
) -> SingleFile:
    """With MLX's order of a convolution's axes; it goes with no other diffusion model's file than its folder's."""
    return SingleFile(
        component, f"{title}, saved by mflux", matches, rename, channels_last=True, dense=dense,
        fits=lambda config, denoiser: False,
    )  # fmt: skip


def shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    """Of a weight's numbers, packed or not."""
    if name not in tensors:
        where = next((tensor.path for tensor in tensors.values()), "the file")
        raise CheckpointError(
            f"{where} has no '{name}', off which sizes are read: it is cut, or of another model. Download it again, or "
            "take the one that the model's repository has."
        )
    return tensors[name].full_shape


def has(*names: str, without: Iterable[str] = ()) -> Callable[[Tensors], bool]:
    """Whether all of `names` are there, and none of `without`."""
    absent = tuple(without)
    return lambda tensors: all(name in tensors for name in names) and not any(name in tensors for name in absent)


def count(tensors: Tensors, pattern: str) -> int:
    """How many numbers stand where the pattern has its group."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def substitute(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Every rule in turn, as re.sub takes it."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def renamed(*rules: tuple[str, str], drop: Sequence[str] = ()) -> Rename:
    """A rename by rules; names that end with one of `drop` are left out on purpose."""

    def rename(name: str) -> Iterator[RowRange]:
        if not name.endswith(tuple(drop)) or not drop:
            yield RowRange(substitute(name, rules))

    return rename
