"""Checked weights -> modules: read, transform, bind, layer by layer.

In: a checkpoint under our names and the empty modules that it is for. Out: `Weights`: `open_weights` compares every
name and shape before a byte is read, and raises once with all that is wrong. `fill` then binds one layer after another,
so that the most that is ever held twice is one layer.
Must not know: families' names, LoRAs, recipes, sampling, how long a module stays.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError, MismatchError
from ..escaping import listed
from ..layers.embed import Table
from ..layers.linear import Linear, Packing
from ..layers.sharing import Share, share_of
from .checkpoint import Checkpoint
from .modules import join, layers, own_parameters
from .names import Rename, same_names
from .shares import cut_out, read_share
from .tensors import NamedTensors, Shape, fits, name_tensors
from .transforms import LayerTensors, PackingOf, Progress, WeightTransforms

__all__ = ["WeightTransforms", "Weights", "check_tensors", "join", "layers", "open_weights", "own_parameters"]

Module = TypeVar("Module", bound=nn.Module)

LISTED_LENGTH = 190  # of all names in a message


NO_LAYER: nn.Module = nn.Module()  # type: ignore[no-untyped-call]  # of a table, whose rows are gathered


@dataclass(frozen=True)
class Weights(NamedTensors):
    """Tensors that fit the modules they are for, and what is done to them on their way in."""

    transforms: WeightTransforms
    linears: Mapping[str, Shape]  # every linear layer's weight, packed or not
    needed: frozenset[str]  # every tensor that a module reads
    tables: frozenset[str]  # tensors that are only ever gathered by row
    folded: Mapping[str, Shape]  # what tables stand for in a folded checkpoint

    def fill(
        self, module: Module, path: str = "", dtype: mx.Dtype | None = mx.float32, progress: Progress | None = None
    ) -> Module:
        """Binds every tensor below `path` into `module`, evaluated, layer by layer; `progress` counts them dense.
        `dtype`: of floating-point numbers; None leaves them as they are stored."""
        steps = [(inner, layer, _count(layer) * (dtype or mx.float32).size) for inner, layer in layers(module)]
        done, total = 0, sum(size for _, _, size in steps)
        for inner, layer, size in steps:
            self.fill_layer(layer, join(path, inner), dtype)
            done += size
            if progress:
                progress(self.component, done, total)
        return module

    def fill_layer(self, layer: nn.Module, path: str, dtype: mx.Dtype | None) -> None:
        share = share_of(layer)
        part = self._read_part(layer, path, share) if share else None
        tensors = self.transforms.apply(part or self.read_layer(layer, path))
        _bind(cut_out(tensors, share) if share and part is None else tensors, dtype)

    def _read_part(self, layer: nn.Module, path: str, share: Share) -> LayerTensors | None:
        """One machine's part of a layer; None where the layer is changed or packed, which is done in full."""
        if self.changed([path]) or self.recipe_packing(layer, path):
            return None
        packing = _pack_as_stored(layer, self.stored.get(path))
        parts = {
            name: read_share(self, join(path, name), value.shape, share)
            for name, value in own_parameters(layer).items()
        }
        values = {name: value for name, value in parts.items() if value is not None}
        return LayerTensors(self, path, layer, values, values, packing) if len(values) == len(parts) else None

    def read_layer(self, layer: nn.Module, path: str) -> LayerTensors:
        """The layer's tensors as they are stored; `layer` is packed if they are."""
        packing = _pack_as_stored(layer, self.stored.get(path))
        values = {
            name: self.read(join(path, name), value.shape)
            for name, value in own_parameters(layer).items()
            if join(path, name) not in self.folded
        }
        return LayerTensors(self, path, layer, values, values, packing)

    def read_weight(self, path: str) -> mx.array:
        return self.read(f"{path}.weight", self.linears[path])

    def gather(self, name: str, rows: Sequence[int], dtype: mx.Dtype) -> mx.array:
        """Rows of a table that is too large to load: [len(rows), columns]."""
        path, _, parameter = name.rpartition(".")
        values = {parameter: self.gather_rows(name, rows)}
        changed = self.transforms.apply(LayerTensors(self, path, NO_LAYER, values, values, None))
        return changed.values[parameter].astype(dtype)

    def recipe_packing(self, layer: nn.Module, path: str, recipe: PackingOf | None = None) -> Packing | None:
        """How a layer that is dense on disk will be packed. `recipe`: as if it had been opened with this one."""
        if not isinstance(layer, Linear) or layer.packing is not None or f"{path}.weight" not in self.slices:
            return None
        stored = self.shape(f"{path}.weight")  # of a 1x1 convolution, which the converter does not pack either
        return (recipe or self.transforms.packing)(self.component, path, stored, self.depth(path))

    @property
    def unpacked_formats(self) -> Counter[str]:
        """How many linear layers' weights are numbers only because MLX's packing does not hold their file's format."""
        tensors = (self.slices[name] for path in self.linears if (name := f"{path}.weight") in self.slices)
        return Counter(tensor.stored_as for tensor in tensors if tensor.unpacked)

    def changed(self, paths: Collection[str]) -> bool:
        """Whether a LoRA changes any of these layers."""
        return any(step.changes(self.component, paths) for step in self.transforms.steps)

    def note_reuse(self, paths: Collection[str]) -> None:
        """What was computed from these layers is used again without their being read."""
        for step in self.transforms.steps:
            step.note_reuse(self.component, paths)

    def identity(self, paths: Collection[str]) -> str:
        """Another one whenever these layers' values may be others; for what is computed from them and kept."""
        stored = [(path, self.stored[path]) for path in paths if path in self.stored]
        steps = [step.identity(self, paths) for step in self.transforms.steps]
        return repr((self.checkpoint.stamp, stored, [identity for identity in steps if identity]))


def open_weights(
    component: str,
    checkpoint: Checkpoint,
    trees: Iterable[nn.Module],
    *,
    rename: Rename = same_names,
    config: Mapping[str, object] | None = None,
    unused: Sequence[str] = (),
    folded: nn.Module | None = None,
    transforms: WeightTransforms | None = None,
) -> Weights:
    """A component's checkpoint, named and checked. The arguments are those of `name_tensors` and `check_tensors`."""
    return check_tensors(name_tensors(component, checkpoint, rename, config), trees, unused, folded, transforms)


def check_tensors(
    named: NamedTensors,
    trees: Iterable[nn.Module],
    unused: Sequence[str] = (),
    folded: nn.Module | None = None,
    transforms: WeightTransforms | None = None,
) -> Weights:
    """Every parameter of `trees` must be there in its shape, and nothing else but names starting with `unused`.

    `folded`: what was left out of the files, since other tensors hold its results; LoRAs still name it.
    """
    transforms = transforms or WeightTransforms()
    for step in transforms.steps:
        step.check(named)
    expected: dict[str, mx.array] = {}
    linears: dict[str, Shape] = {}
    tables: set[str] = set()
    for tree in trees:
        for path, layer in layers(tree):
            if isinstance(layer, Linear):
                linears[path] = layer.weight.shape
            _pack_as_stored(layer, named.stored.get(path))
            parameters = {join(path, name): value for name, value in own_parameters(layer).items()}
            if isinstance(tree, Table):
                parameters = _packed_table(path, parameters, named.stored.get(path))
                tables.update(parameters)
            expected |= parameters
    _refuse_other_packing(named, expected, linears)
    _refuse_misfit(named, expected, unused)
    absent = {
        join(path, name): value.shape
        for path, layer in (layers(folded) if folded else ())
        for name, value in own_parameters(layer).items()
    }
    return Weights(
        **{each.name: getattr(named, each.name) for each in fields(NamedTensors)},
        transforms=transforms,
        linears=MappingProxyType(linears),
        needed=frozenset(expected),
        tables=frozenset(tables),
        folded=MappingProxyType(absent),
    )


def _refuse_misfit(named: NamedTensors, expected: Mapping[str, mx.array], unused: Sequence[str]) -> None:
    present = [(name, named.slices[name], value) for name, value in sorted(expected.items()) if name in named.slices]
    kinds = {True: "floats", False: "whole numbers"}
    faults = {
        "missing": sorted(set(expected) - set(named.slices)),
        "unexpected": sorted(n for n in set(named.slices) - set(expected) if not n.startswith(tuple(unused))),
        "misshapen": [
            f"{name} {list(stored.shape)} (expected {list(value.shape)})"
            for name, stored, value in present
            if not fits(stored.shape, value.shape)
        ],
        "mistyped": [
            f"{name} {stored.dtype} (expected {kinds[not stored.floating]})"
            for name, stored, value in present
            if stored.floating != mx.issubdtype(value.dtype, mx.floating)
        ],
    }
    if any(faults.values()):
        raise MismatchError(
            f"{named.checkpoint.shown}: the tensors do not fit the {named.component}'s config.json: "
            + _described_faults({what: names for what, names in faults.items() if names})
            + ". The files are of another model or version: take them all from one repository."
        )


def _described_faults(faults: Mapping[str, Sequence[str]]) -> str:
    """The first two names of each where there is room for them, and one where there is not."""

    def text(most: int, length: int) -> str:
        return "; ".join(f"{len(names)} {what}: {listed(names, most, length)}" for what, names in faults.items())

    whole = text(2, LISTED_LENGTH)
    return whole if len(whole) <= LISTED_LENGTH else text(1, LISTED_LENGTH // len(faults))


def _refuse_other_packing(named: NamedTensors, expected: Mapping[str, mx.array], linears: Mapping[str, Shape]) -> None:
    """Refuses codes and scales in the shapes of other bits or groups than config.json gives."""
    other = []
    for path, packing in named.stored.items():
        names = [f"{path}.weight", f"{path}.scales"]
        if path not in linears or not named.slices.keys() >= set(names):
            continue
        codes, scales = map(named.shape, names)
        if (codes, scales) != tuple(expected[name].shape for name in names):
            other.append(_described(path, packing, linears[path], codes, scales))
    if other:
        raise MismatchError(
            f"{named.checkpoint.shown}: config.json's 'quantization' does not describe the {named.component}'s packed "
            f"weights: {listed(other, 1)}. The files are of another packing: take config.json and the "
            ".safetensors files from the same repository, or correct 'quantization'."
        )


def _described(path: str, packing: Packing, linear: Shape, codes: Shape, scales: Shape) -> str:
    """How the shapes of a weight's codes and scales differ from what its packing says."""
    says = f"{path} should have {packing.bits} bits in groups of {packing.group_size}"
    rows, columns = linear
    sound = codes[:-1] == scales[:-1] == (rows,) and codes[-1] * 32 % columns == columns % max(scales[-1], 1) == 0
    if not sound or not scales[-1]:
        return f"{says}, and has codes {list(codes)} and scales {list(scales)} for a weight {list(linear)}"
    return f"{says}, and has {codes[-1] * 32 // columns} bits in groups of {columns // scales[-1]}"


def _packed_table(path: str, dense: dict[str, mx.array], packing: Packing | None) -> dict[str, mx.array]:
    """A table's tensors as they are on disk."""
    if packing is None:
        return dense
    (weight,) = dense.values()
    layer = Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.pack(packing)
    return {join(path, name): value for name, value in own_parameters(layer).items()}


def _pack_as_stored(layer: nn.Module, packing: Packing | None) -> Packing | None:
    """Makes a linear layer expect a packed weight; how it is packed."""
    if not isinstance(layer, Linear):
        return None
    if layer.packing is None and packing is not None:
        layer.pack(packing)
    return layer.packing


def _bind(tensors: LayerTensors, dtype: mx.Dtype | None) -> None:
    if absent := sorted(tensors.absent):
        name = join(tensors.path, absent[0])
        raise CheckpointError(f"{tensors.named.checkpoint.shown}: '{name}' is missing; download the model again.")
    bind(tensors.layer, tensors.values, tensors.packing, dtype)


def bind(layer: nn.Module, values: Mapping[str, mx.array], packing: Packing | None, dtype: mx.Dtype | None) -> None:
    """Gives an empty layer its parameters, evaluated; `dtype`: of floating-point numbers."""
    if isinstance(layer, Linear) and packing is not None:
        if layer.packing is None:
            layer.pack(packing)
        layer.packing = packing  # a changed weight may be packed in other bits than the file's
    for name, value in values.items():
        layer[name] = value.astype(dtype) if dtype and mx.issubdtype(value.dtype, mx.floating) else value
    mx.eval([layer[name] for name in values])


def _count(layer: nn.Module) -> int:
    return sum(value.size for value in own_parameters(layer).values())
