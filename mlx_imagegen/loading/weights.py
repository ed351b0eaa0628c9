"""read -> rename -> merge LoRA -> quantize -> bind: the one way by which tensors get into modules.

`Weights` is one component's checkpoint seen under our modules' names. `check` compares every name and shape with the
modules before a byte is read, and raises once with all that is wrong. `fill` then binds layer by layer, so that the
most that is ever held twice is one layer.
Must not know: families' names, sampling, prompts, how long a module stays.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import CheckpointError, ConfigError, MismatchError, QuantizationError
from ..layers.embed import Table
from ..layers.linear import Linear, Packing
from ..packing.importance import importance
from .checkpoint import Checkpoint
from .names import Rename, Slice, same_names, slices

if TYPE_CHECKING:
    from ..lora.merge import Merge

Module = TypeVar("Module", bound=nn.Module)
Shape = tuple[int, ...]
# (component, module path, [rows, columns], layers beside it) -> how to pack that weight, or None to leave it dense.
PackingOf = Callable[[str, str, Shape, int], Packing | None]
# The first number in a layer's path: which of a stack of layers it is.
NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
# (component, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]


class Pack(Protocol):
    """(weight, packing, how much each of its columns counts) -> weight, scales[, biases]"""

    def __call__(
        self, weight: mx.array, packing: Packing, *, importance: np.ndarray | None = None
    ) -> dict[str, mx.array]: ...


@dataclass(frozen=True)
class WeightTransforms:
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
    changes: WeightTransforms
    config: Mapping[str, object]
    linears: dict[str, Shape] = field(default_factory=dict)  # every linear layer's weight, packed or not; by `check`
    needed: set[str] = field(default_factory=set)  # every tensor that a module reads; by `check`
    tables: set[str] = field(default_factory=set)  # weights that are only ever gathered by row; by `check`
    folded: dict[str, Shape] = field(default_factory=dict)  # what tables stand for in a folded checkpoint; by `check`

    @classmethod
    def open(
        cls,
        component: str,
        checkpoint: Checkpoint,
        rename: Rename = same_names,
        config: Mapping[str, object] | None = None,
        changes: WeightTransforms | None = None,
    ) -> "Weights":
        packings = _packings((config or {}).get("quantization") or {}, checkpoint)
        if packings and changes and changes.recipe:
            raise QuantizationError(
                f"{checkpoint.where} is quantized already, and quantizing it again would add the errors of both. Leave"
                " quant out, or begin with the full-precision model."
            )
        return cls(
            component, checkpoint, slices(checkpoint, rename), packings, changes or WeightTransforms(), config or {}
        )

    def check(self, trees: Iterable[nn.Module], unused: Sequence[str] = (), folded: nn.Module | None = None) -> None:
        """Every parameter of `trees` must be here in its shape, and nothing else but names starting with `unused`.

        `folded`: what was left out of the files, since other tensors hold its results; LoRAs still speak of it.
        """
        expected: dict[str, mx.array] = {}
        for path, layer in layers(folded) if folded else ():
            self.folded.update({join(path, name): value.shape for name, value in own_parameters(layer).items()})
        for tree in trees:
            for path, layer in layers(tree):
                if isinstance(tree, Table):
                    self.tables.update(join(path, name) for name in own_parameters(layer))
                if isinstance(layer, Linear):
                    self.linears[path] = layer.weight.shape
                self._expect_packed(layer, path)
                expected |= {join(path, name): value for name, value in own_parameters(layer).items()}
        self.needed.update(expected)
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
            self.fill_layer(layer, join(path, inner), dtype)
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
                layer[name] = merge.from_source(self.component, join(path, inner), name, value).astype(dtype)
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

    def fill_layer(self, layer: nn.Module, path: str, dtype: mx.Dtype) -> None:
        self._expect_packed(layer, path)
        plain = {name: self._read(join(path, name), value.shape) for name, value in own_parameters(layer).items()}
        values, packing = plain, self.wanted(layer, path)
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

    def wanted(self, layer: nn.Module, path: str, recipe: PackingOf | None = None) -> Packing | None:
        """The recipe's choice for a layer that is dense on disk."""
        recipe = recipe or self.changes.recipe
        if recipe is None or not isinstance(layer, Linear) or layer.packing is not None:
            return None
        stored = self.slices[f"{path}.weight"].shape  # of a 1x1 convolution, which the converter does not pack either
        return recipe(self.component, path, stored, self.depth(path))

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


def join(path: str, name: str) -> str:
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
