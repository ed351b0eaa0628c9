"""read -> rename -> merge LoRA -> quantize -> bind: the one way by which tensors get into modules.

`Weights` is one component's checkpoint seen under our modules' names. `check` compares every name and shape with the
modules before a byte is read, and raises once with all that is wrong. `fill` then binds layer by layer, so that the
most that is ever held twice is one layer. `Component` keeps a filled module until its stage is over.
Must not know: families' names, sampling, prompts.
Longer than most, because what is checked and what is bound must be read side by side.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import CheckpointError, ConfigError, MismatchError, QuantizationError
from ..layers.embed import Table
from ..layers.linear import Linear, Packing
from ..packing.weighting import importance
from .checkpoint import Checkpoint
from .keys import Rename, Slice, same_names, slices

if TYPE_CHECKING:
    from ..lora.merge import Merge

Module = TypeVar("Module", bound=nn.Module)
Shape = tuple[int, ...]
# (component, module path, [rows, columns], layers beside it) -> how to pack that weight, or None to leave it dense.
PackingOf = Callable[[str, str, Shape, int], Packing | None]
# The first number in a layer's path: which of a stack of layers it is.
NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
# A layer's path in the checkpoint, the layer without weights, and how it is packed or will be.
Planned = tuple[str, nn.Module, Packing | None]
# (component, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]


class Pack(Protocol):
    """(weight, packing, how much each of its columns counts) -> weight, scales[, biases]"""

    def __call__(
        self, weight: mx.array, packing: Packing, *, importance: np.ndarray | None = None
    ) -> dict[str, mx.array]: ...


@dataclass(frozen=True)
class Changes:
    """What is done to weights on their way in. The defaults change nothing."""

    recipe: PackingOf | None = None
    pack: Pack | None = None
    # Whether a component's dense matrices are rounded to 16 bits, as they would be in a quantized checkpoint.
    halves: Callable[[str], bool] | None = None
    merge: "Merge | None" = None
    progress: Progress | None = None
    # A component's full-precision weights, where what is opened is quantized already: LoRAs merge into those.
    source: "Callable[[str], Weights] | None" = None
    digest: str = ""  # of the recipe


@dataclass(frozen=True)
class Weights:
    """A component's tensors by our names."""

    component: str
    checkpoint: Checkpoint
    slices: Mapping[str, Slice]
    stored: Mapping[str, Packing]  # config.json's `quantization`: what is packed on disk already
    changes: Changes
    config: Mapping[str, object]
    linears: dict[str, Shape] = field(default_factory=dict)  # every linear layer's weight, packed or not; by `check`
    tables: set[str] = field(default_factory=set)  # weights that are only ever gathered by row; by `check`
    folded: dict[str, Shape] = field(default_factory=dict)  # what tables stand for in a folded checkpoint; by `check`

    @classmethod
    def open(
        cls,
        component: str,
        checkpoint: Checkpoint,
        rename: Rename = same_names,
        config: Mapping[str, object] | None = None,
        changes: Changes | None = None,
    ) -> "Weights":
        packings = _packings((config or {}).get("quantization") or {}, checkpoint)
        if packings and changes and changes.recipe:
            raise QuantizationError(
                f"{checkpoint.where} is quantized already, and quantizing it again would add the errors of both. Leave"
                " quant out, or begin with the full-precision model."
            )
        return cls(component, checkpoint, slices(checkpoint, rename), packings, changes or Changes(), config or {})

    def check(self, trees: Iterable[nn.Module], unused: Sequence[str] = (), folded: nn.Module | None = None) -> None:
        """Every parameter of `trees` must be here in its shape, and nothing else but names starting with `unused`.

        `folded`: what was left out of the files, since other tensors hold its results; LoRAs still speak of it.
        """
        expected: dict[str, mx.array] = {}
        for path, layer in layers(folded) if folded else ():
            self.folded.update({_join(path, name): value.shape for name, value in own_parameters(layer).items()})
        for tree in trees:
            for path, layer in layers(tree):
                if isinstance(tree, Table):
                    self.tables.update(_join(path, name) for name in own_parameters(layer))
                if isinstance(layer, Linear):
                    self.linears[path] = layer.weight.shape
                self._expect_packed(layer, path)
                expected |= {_join(path, name): value for name, value in own_parameters(layer).items()}
        present = [(name, self.slices[name], value) for name, value in sorted(expected.items()) if name in self.slices]
        floats = {True: "floats", False: "whole numbers"}
        faults = {
            "missing": sorted(set(expected) - set(self.slices)),
            "unexpected": sorted(n for n in set(self.slices) - set(expected) if not n.startswith(tuple(unused))),
            "misshapen": [
                f"{name} {list(stored.shape)} (expected {list(value.shape)})"
                for name, stored, value in present
                if not _fits(stored.shape, value.shape)
            ],
            "mistyped": [
                f"{name} {stored.tensor.dtype} (expected {floats[not stored.tensor.floating]})"
                for name, stored, value in present
                if stored.tensor.floating != mx.issubdtype(value.dtype, mx.floating)
            ],
        }
        if any(faults.values()):
            raise MismatchError(
                f"{self.checkpoint.where}: the tensors do not fit the {self.component}'s config.json: "
                + "; ".join(
                    f"{len(names)} {what}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
                    for what, names in faults.items()
                    if names
                )
                + ". The files are of another model or version, or incomplete: take config.json and the .safetensors "
                "files from the same repository."
            )

    def fill(
        self, module: Module, path: str = "", dtype: mx.Dtype = mx.float32, progress: Progress | None = None
    ) -> Module:
        """Binds every tensor below `path` into `module`, evaluated, layer by layer; `progress` counts them dense."""
        steps = [(inner, layer, _count(layer) * dtype.size) for inner, layer in layers(module)]
        done, total = 0, sum(size for _, _, size in steps)
        for inner, layer, size in steps:
            self._fill_layer(layer, _join(path, inner), dtype)
            done += size
            if progress:
                progress(self.component, done, total)
        return module

    def fill_from_source(self, module: Module, path: str = "", dtype: mx.Dtype = mx.float32) -> Module:
        """As `fill`, from what this folder was made from, with the LoRAs of then and now."""
        merge, source = self.changes.merge, self.changes.source
        assert merge is not None and source is not None  # only a LoRA asks for this, and only from a made folder
        for inner, layer in layers(source(self.component).fill(module, path, dtype)):
            for name, value in own_parameters(layer).items():
                layer[name] = merge.from_source(self.component, _join(path, inner), name, value).astype(dtype)
            mx.eval(list(own_parameters(layer).values()))
        return module

    def touched(self, paths: Collection[str]) -> bool:
        """Whether a LoRA changes any of these layers."""
        merge = self.changes.merge
        return merge is not None and any(
            merge.touches(self.component, path, name) for path in paths for name in ("weight", "bias")
        )

    def identity(self, paths: Collection[str]) -> str:
        """Another one whenever these layers' values may be others; for what is computed from them and kept."""
        changes, touched = self.changes, self.touched(paths)
        merged = changes.merge.identity(self.component, paths) if changes.merge and touched else []
        made = self.folded or any(path in self.stored for path in paths)
        source = changes.source(self.component).checkpoint.stamp if touched and made and changes.source else ""
        stored = [(path, self.stored[path]) for path in paths if path in self.stored]
        return repr((self.checkpoint.stamp, stored, changes.digest, merged, source))

    def gather(self, name: str, rows: Sequence[int], dtype: mx.Dtype) -> mx.array:
        """Rows of a table that is too large to load: [len(rows), columns]."""
        return self._halved(self.slices[name].gather(rows)).astype(dtype)

    def whole(self, path: str) -> mx.array:
        """A linear layer's weight, by itself."""
        return self._read(f"{path}.weight", self.linears[path])

    def shape(self, name: str) -> Shape:
        return self.slices[name].shape

    def importance(self, path: str) -> np.ndarray | None:
        """How much each input of the linear layer at `path` counts, if that can be told."""
        return importance(path, lambda name: self.slices[name].read() if name in self.slices else None)

    def _expect_packed(self, layer: nn.Module, path: str) -> None:
        if isinstance(layer, Linear) and layer.packing is None and path in self.stored:
            layer.pack(self.stored[path])

    def _fill_layer(self, layer: nn.Module, path: str, dtype: mx.Dtype) -> None:
        self._expect_packed(layer, path)
        plain = {name: self._read(_join(path, name), value.shape) for name, value in own_parameters(layer).items()}
        values, packing = plain, self._wanted(layer, path)
        merge, pack, source = self.changes.merge, self.changes.pack, self.changes.source
        touched = merge is not None and merge.touches(self.component, path)
        if merge and touched and path in self.stored:  # codes take no change
            assert source is not None  # `load` gives one
            full, packing = source(self.component), self.stored[path]
            plain = {"weight": full.whole(path)}
            if "bias" in values:  # a calibrated folder's makes up for the error of its own codes
                plain["bias"] = full._read(f"{path}.bias", values["bias"].shape)
            values = {name: merge.from_source(self.component, path, name, value) for name, value in plain.items()}
        elif merge:
            values = {name: merge(self.component, path, name, value) for name, value in plain.items()}
        if packing and pack and isinstance(layer, Linear):
            if layer.packing is None:
                layer.pack(packing)
            if merge and touched:
                merge.measure(self.component, path, plain["weight"], values["weight"], pack, packing)
            try:
                values = values | pack(values["weight"], packing, importance=self.importance(path))
            except QuantizationError as error:
                tensor = self.slices[f"{path}.weight"].tensor
                raise QuantizationError(f"{tensor.path}, '{tensor.name}': {error}") from error
        for name, value in values.items():
            if mx.issubdtype(value.dtype, mx.floating):
                if self.changes.halves is not None and name in plain:  # merged, it is float32: as if saved and loaded
                    value = value.astype(plain[name].dtype)
                value = self._halved(value).astype(dtype)
            layer[name] = value
        mx.eval([layer[name] for name in values])

    def _wanted(self, layer: nn.Module, path: str, recipe: PackingOf | None = None) -> Packing | None:
        """The recipe's choice for a layer that is dense on disk."""
        recipe = recipe or self.changes.recipe
        if recipe is None or not isinstance(layer, Linear) or layer.packing is not None:
            return None
        return recipe(self.component, path, layer.weight.shape, self.depth(path))

    def depth(self, path: str) -> int:
        """How many numbered siblings the layer has that `path` stands in."""
        number = NUMBER.search(path)
        return self._depths.get(path[: number.start(1)], 0) if number else 0

    @functools.cached_property
    def _depths(self) -> dict[str, int]:
        """What stands before a name's first number -> how many numbers there are."""
        out: dict[str, int] = {}
        for number in filter(None, map(NUMBER.search, self.slices)):
            prefix = number.string[: number.start(1)]
            out[prefix] = max(out.get(prefix, 0), int(number[1]) + 1)
        return out

    def _halved(self, value: mx.array) -> mx.array:
        """A matrix that stays dense, rounded to 16 bits if the recipe has that: the same as saved and loaded again."""
        halves = self.changes.halves is not None and self.changes.halves(self.component)
        return value.astype(mx.bfloat16) if halves and value.dtype == mx.float32 and value.ndim > 1 else value

    def _read(self, name: str, expected: Shape) -> mx.array:
        if name not in self.slices:
            raise CheckpointError(f"{self.checkpoint.where}: '{name}' is missing; download the model again.")
        return _as_ours(self.slices[name].read(), expected)


class Component:
    """A module that is loaded when its stage begins and released when it is over."""

    def __init__(
        self,
        weights: Weights,
        build: Callable[[], nn.Module],
        dtype: mx.Dtype,
        path: str = "",
        shapes: Callable[[], nn.Module] | None = None,
    ):
        """`shapes`: a module with the same parameters, where `build` is slow."""
        self.weights = weights
        self.dtype = dtype
        self.empty = build  # the module's shapes, without weights
        self.path = path  # where in the checkpoint's tree the module stands
        self._shapes = shapes or build
        # Of each recipe: a plan asks a dozen times, and to build thousands of modules takes a tenth of a second.
        self._planned: dict[PackingOf | None, list[Planned]] = {}
        self._linears: dict[PackingOf | None, list[tuple[str, Shape, Packing | None]]] = {}
        self._held: dict[PackingOf | None, tuple[int, int]] = {}
        self._module: nn.Module | None = None

    @property
    def loaded(self) -> bool:
        return self._module is not None

    def load(self) -> nn.Module:
        if self._module is None:
            self._module = self.weights.fill(self.empty(), self.path, self.dtype, self.weights.changes.progress)
        return self._module

    def loaded_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Every layer with its path in the checkpoint."""
        return ((_join(self.path, path), layer) for path, layer in layers(self.load()))

    def release(self) -> None:
        self._module = None
        mx.clear_cache()

    def refill(self, paths: Set[str]) -> None:
        """Reads layers again, by their paths in the checkpoint's tree, if the module is loaded."""
        if self._module is None:
            return
        fresh = dict(layers(self.empty()))  # dense: whether a layer is packed is decided anew
        for inner, layer in layers(self._module):
            path = _join(self.path, inner)
            if path in paths:
                self.weights._fill_layer(fresh[inner], path, self.dtype)
                _rebind(layer, fresh[inner])

    @property
    def nbytes(self) -> int:
        """What the module holds when loaded, from shapes alone."""
        return self.held_bytes(self.dtype.size)

    def held_bytes(self, size: int, recipe: PackingOf | None = None) -> int:
        """The same with floating-point numbers of that many bytes, or under another recipe."""
        if recipe not in self._held:
            self._held[recipe] = _counted(self.planned(recipe))
        floats, rest_bytes = self._held[recipe]
        return floats * size + rest_bytes

    @functools.cached_property
    def held_as(self) -> str:
        """How the linears' weights are held, for records: "float32", or "4-bit 96, 8-bit 4"."""
        dense = str(self.dtype).removeprefix("mlx.core.")
        kinds = Counter(
            f"{packing.bits}-bit" if packing else dense
            for _, layer, packing in self.planned()
            if isinstance(layer, Linear)
        )
        told = [f"{kind} {count}" if len(kinds) > 1 else kind for kind, count in kinds.most_common()]
        return ", ".join(told) or dense

    def planned(self, recipe: PackingOf | None = None) -> Sequence[Planned]:
        """Every layer, empty and to be left so, by its path in the checkpoint, and how it is packed on disk or will be
        when loaded.

        `recipe`: as if it had been opened with this one.
        """
        if recipe not in self._planned:
            stored, wanted = self.weights.stored, self.weights._wanted
            self._planned[recipe] = [
                (path, layer, stored.get(path) or wanted(layer, path, recipe)) for path, layer in self._empty_layers
            ]
        return self._planned[recipe]

    def linears(self, recipe: PackingOf | None = None) -> Sequence[tuple[str, Shape, Packing | None]]:
        """Of `planned` the linear layers: path, [rows, columns], packing."""
        if recipe not in self._linears:
            self._linears[recipe] = [
                (path, layer.weight.shape, packing)
                for path, layer, packing in self.planned(recipe)
                if isinstance(layer, Linear)
            ]
        return self._linears[recipe]

    @functools.cached_property
    def _empty_layers(self) -> list[tuple[str, nn.Module]]:
        return [(_join(self.path, path), layer) for path, layer in layers(self._shapes())]


def _counted(planned: Iterable[Planned]) -> tuple[int, int]:
    """How many floating-point numbers are held, and the bytes of all others."""
    floats = rest_bytes = 0
    for _, layer, packing in planned:
        if packing and isinstance(layer, Linear):
            layer = _packed(layer.weight.shape, "bias" in layer, packing)
        for value in own_parameters(layer).values():
            floating = mx.issubdtype(value.dtype, mx.floating)
            floats += value.size if floating else 0
            rest_bytes += 0 if floating else value.nbytes
    return floats, rest_bytes


@functools.cache
def _packed(shape: Shape, bias: bool, packing: Packing) -> Linear:
    """An empty layer; models have few that differ."""
    rows, columns = shape
    layer = Linear(columns, rows, bias)
    layer.pack(packing)
    return layer


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that has parameters of its own, in the checkpoint's order."""
    if own_parameters(module):
        yield "", module
    for path, layer in reversed(module.named_modules()):
        if path and own_parameters(layer):
            yield path, layer


def own_parameters(layer: nn.Module) -> dict[str, mx.array]:
    return {name: value for name, value in layer.items() if isinstance(value, mx.array) and not name.startswith("_")}


def _count(layer: nn.Module) -> int:
    return sum(value.size for value in own_parameters(layer).values())


def _rebind(layer: nn.Module, fresh: nn.Module) -> None:
    for name in own_parameters(layer):
        del layer[name]
    for name, value in own_parameters(fresh).items():
        layer[name] = value
    if isinstance(layer, Linear) and isinstance(fresh, Linear):
        layer.packing = fresh.packing


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _packings(stored: Any, checkpoint: Checkpoint) -> dict[str, Packing]:
    try:
        return {path: Packing(**entry) for path, entry in stored.items()}
    except (AttributeError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint.where}: config.json's 'quantization' does not give every weight's packing by its path, so it "
            "is another tool's work. Take the full-precision model, and pack it with `mlx-imagegen quantize`."
        ) from error


def _fits(stored: Shape, expected: Shape) -> bool:
    """Whether a stored shape is `expected` in our layout, axes of length 1 aside."""
    if len(stored) == 5 and len(expected) == 5:
        stored = (stored[0], *stored[2:], stored[1])
    if len(stored) == 5 and len(expected) == 4:  # a causal 3-D convolution; one picture meets its last time slice only
        stored = (*stored[:2], *stored[3:])
    if len(stored) == 4:  # torch keeps convolutions as [out, in, h, w], MLX as [out, h, w, in]
        stored = (stored[0], *stored[2:], stored[1])
    return [size for size in stored if size != 1] == [size for size in expected if size != 1]


def _as_ours(value: mx.array, expected: Shape) -> mx.array:
    if value.ndim == 5 and len(expected) == 5:
        value = value.transpose(0, 2, 3, 4, 1)
    if value.ndim == 5 and len(expected) == 4:
        value = value[:, :, -1]
    if value.ndim == 4:
        value = value.transpose(0, 2, 3, 1)
    return value.reshape(expected)
