"""quant/*.toml: how many bits each weight of a family gets.

In: a recipe's name or file, and a family. Out: `Recipe`, which gives one linear layer's `Packing` at a time, or None
for 16 bits. Rows are globs over "component/path", the first that matches counts. A layer's number may also be
written from the end: `layers.-1.` is the last layer, whatever the model's depth. A row with `depth` counts only in
stacks of at least so many layers: four layers kept high are a tenth of a large model and most of a small one.
Must not know: tensors' values, files of checkpoints.
"""

import fnmatch
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import read_toml
from ..errors import QuantizationError
from ..escaping import quoted
from ..families import family_spec
from ..hub.manifest import data_folder
from ..layers.linear import GROUP_SIZES, Packing
from ..loading.packings import read_packing
from ..loading.tensors import NUMBER
from ..loading.transforms import WeightTransforms
from ..loading.weights import Weights
from ..paths import expanded
from .affine import pack
from .importance import Norms
from .packer import OnChange, Packer, RoundTo16Bits

AS_STORED = "none"  # in a recipe's place: weights stay as the model's files have them
DENSE_BITS = 16
COMPONENTS = ("transformer", "text_encoder", "text_encoder_2", "vae")  # all that a family may have
KEYS = frozenset({"title", "bits", "group_size", "mode", "search", "keep", "drop"})
ROW_KEYS = frozenset({"match", "depth", "bits", "group_size", "mode"})


@dataclass(frozen=True)
class Row:
    globs: tuple[str, ...]
    packing: Packing | None  # None: 16 bits
    least_depth: int = 0

    def matches(self, names: tuple[str, ...], depth: int) -> bool:
        found = any(fnmatch.fnmatchcase(name, glob) for name in names for glob in self.globs)
        return found and depth >= self.least_depth


@dataclass(frozen=True)
class Recipe:
    """One recipe's rows for one family."""

    name: str  # a file's: where it is
    family: str
    rows: tuple[Row, ...]
    search: bool  # look for each group's best scale: slower to make, closer to the original
    keep: tuple[str, ...]  # globs of components that stay exactly as they are stored
    drop: tuple[str, ...]  # globs of tensors that no picture needs
    digest: str  # of the rows, so that unfinished work by another recipe is not continued

    def packing(self, component: str, path: str, shape: tuple[int, ...], depth: int) -> Packing | None:
        """For a linear layer's weight [rows, columns], one of `depth` numbered siblings."""
        return fitted(self.row_packing(component, path, depth), shape)

    def row_packing(self, component: str, path: str, depth: int) -> Packing | None:
        """What the rows say, before the shape is looked at."""
        key = component, path, depth
        if key not in self._packings:
            whose = component.partition(":")[0]  # a control network is packed as what it stands next to
            names = (f"{whose}/{path}", f"{whose}/{from_the_end(path, depth)}")
            matching = (row.packing for row in self.rows if row.matches(names, depth))
            self._packings[key] = next(matching, None) if self.rounds_to_16_bits(component) else None
        return self._packings[key]

    @functools.cached_property
    def _packings(self) -> dict[tuple[str, str, int], Packing | None]:
        """By component, path and depth: plans need every layer's many times."""
        return {}

    def rounds_to_16_bits(self, component: str) -> bool:
        """Whether the component's matrices that stay dense are rounded to 16 bits."""
        return not any(fnmatch.fnmatchcase(component, glob) for glob in self.keep)

    @property
    def norms(self) -> Norms:
        """Which of the family's layers read a norm's output."""
        return family_spec(self.family).norms

    def applied_to(self, transforms: WeightTransforms, on_change: OnChange | None = None) -> WeightTransforms:
        """For loading: weights are packed as they stream in."""
        pack_one = functools.partial(pack, search=self.search)
        packer = Packer(pack_one, self.packing, self.digest, self.norms, on_change)
        return transforms.then(packer, RoundTo16Bits(self.rounds_to_16_bits))

    def unused_rows(self, weights: Mapping[str, Weights]) -> list[str]:
        """Lines for users: which of its rows' globs match no layer of an open model."""
        paths = [(component, path, held.depth(path)) for component, held in weights.items() for path in held.linears]
        names = [
            f"{component}/{name}" for component, path, depth in paths for name in (path, from_the_end(path, depth))
        ]
        globs = [glob for row in self.rows for glob in row.globs if not fnmatch.filter(names, glob)]
        return [f"the recipe {self.name}: '{glob}' fits no layer of this model" for glob in globs]

    def drops(self, component: str, name: str) -> bool:
        return any(fnmatch.fnmatchcase(f"{component}/{name}", glob) for glob in self.drop)


def fitted(packing: Packing | None, shape: tuple[int, ...]) -> Packing | None:
    """`packing` with the largest group, not above its own, that divides the columns; None if there is none."""
    if packing is None:
        return None
    sizes = [size for size in GROUP_SIZES[packing.mode] if size <= packing.group_size and shape[-1] % size == 0]
    return Packing(packing.bits, max(sizes), packing.mode) if sizes else None


def from_the_end(path: str, depth: int) -> str:
    """`layers.35.mlp` of 36 layers -> `layers.-1.mlp`."""
    number = NUMBER.search(path)
    return path if number is None else f"{path[: number.start(1)]}{int(number[1]) - depth}{path[number.end(1) :]}"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in data_folder("quant").glob("*.toml"))


def canonical_name(quant: str) -> str:
    """A recipe's name for records: a file in a way that means the same from everywhere."""
    return str(expanded(quant).absolute()) if quant.endswith(".toml") else quant


def recipe_of(quant: str | None) -> str | None:
    """A recipe's name or path; None where weights stay as they are, by whichever word."""
    return None if quant == AS_STORED else quant


def read_recipe(quant: str, family: str) -> Recipe:
    """`quant`: a name (q4, q6, q8), or the path of a .toml file, which is read each time: it may have been edited."""
    if not isinstance(quant, str):
        raise QuantizationError(
            f"quant {quoted(quant)}: give a recipe's name, such as 'q6', or a .toml file's path as text."
        )
    path = expanded(quant) if quant.endswith(".toml") else data_folder("quant") / f"{quant}.toml"
    if not path.is_file():
        raise QuantizationError(
            f"no recipe is called '{quant}'; there are {', '.join(recipe_names())}, or give the path of a .toml file; "
            "without one, weights stay as they are stored."
        )
    return _read(quant, path, family) if quant.endswith(".toml") else _read_once(quant, path, family)


def _read(quant: str, path: Path, family: str) -> Recipe:
    known = ", ".join(recipe_names())
    data = read_toml(path, QuantizationError, f"see the recipes that come with it: {known}")
    rows = data.get(family)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise QuantizationError(
            f"{path} has no rows for the family {family}; add [[{family}]] tables, or use one of: {known}."
        )
    rest = {key: value for key, value in data.items() if not isinstance(value, list) or key in KEYS}
    _refuse_unknown(path, rest, KEYS)
    search = rest.get("search", False)
    if not isinstance(search, bool):
        raise QuantizationError(f"{path}: search {quoted(search)} is not possible; give true or false.")
    digest = hashlib.sha256(repr((rows, sorted(rest.items()))).encode()).hexdigest()[:16]
    general = Row(("*",), _packing(path, rest))
    return Recipe(
        canonical_name(quant),
        family,
        (*(_row(path, rest, row) for row in rows), general),
        search,
        _kept(path, rest),
        _globs(path, rest, "drop"),
        digest,
    )


_read_once = functools.cache(_read)  # and what it finds out of a layer's path once (Recipe.row_packing)


def _row(path: Path, general: dict[str, Any], row: dict[str, Any]) -> Row:
    _refuse_unknown(path, row, ROW_KEYS)
    globs = _globs(path, row, "match")
    if not globs:
        raise QuantizationError(
            f"{path}: a row has no 'match'; give a glob over component/path, such as \"transformer/proj_out\"."
        )
    depth = row.get("depth", 0)
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
        raise QuantizationError(
            f"{path}: depth {quoted(depth)} is no number of layers; give the least that the row is for."
        )
    return Row(globs, _packing(path, general | row), depth)


def _packing(path: Path, row: dict[str, Any]) -> Packing | None:
    if row.get("bits") == DENSE_BITS:
        return None
    try:
        return read_packing({"bits": None, **row})
    except ValueError as error:
        dense = f", or {DENSE_BITS} to leave a weight unpacked" if str(error).startswith("bits") else ""
        raise QuantizationError(f"{path}: {error}{dense}.") from error


def _kept(path: Path, table: dict[str, Any]) -> tuple[str, ...]:
    globs = _globs(path, table, "keep")
    for glob in globs:
        if not fnmatch.filter(COMPONENTS, glob):
            raise QuantizationError(
                f"{path}: keep {quoted(glob)} is no part of a model; there are {', '.join(COMPONENTS)}."
            )
    return globs


def _globs(path: Path, table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    globs = [value] if isinstance(value, str) else value
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise QuantizationError(
            f"{path}: {key} {quoted(value)} is not possible; give a glob in quotes, or a list of them."
        )
    return tuple(globs)


def _refuse_unknown(path: Path, given: dict[str, Any], known: frozenset[str]) -> None:
    if unknown := given.keys() - known:
        raise QuantizationError(
            f"{path}: {quoted(min(unknown))} is not known in a recipe; known: {', '.join(sorted(known))}."
        )
