"""A module of the model that comes and goes: loaded when its stage begins, released when it is over.

In: its weights and how it is built. Out: the module, filled; and, from shapes alone, its layers, how each is packed or
would be, and what it holds.
Must not know: which stage it is for, what it computes.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from types import MappingProxyType
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..layers.linear import Linear, Packing
from ..layers.sharing import Cuts, Sharing, cut_of
from ..layers.stacked import stack_layers
from ..precision import dtype_name, on_gpu
from .modules import join, layers, own_parameters
from .shares import held_packing, refusal
from .tensors import Shape
from .transforms import PackingOf
from .weights import Weights

# A layer's path in the checkpoint, the layer without weights, and how it is packed or will be.
Planned = tuple[str, nn.Module, Packing | None]
NO_CUTS: Cuts = MappingProxyType({})


class Component:
    def __init__(
        self,
        weights: Weights,
        build: Callable[[], nn.Module],
        dtype: mx.Dtype,
        path: str = "",
        shapes: Callable[[], nn.Module] | None = None,
        heads: int = 0,
        cuts: Cuts = NO_CUTS,
    ):
        """`shapes`: a module with the same parameters, where `build` is slow. `heads`: of its attention, for plans.
        `cuts`: how its layers can be shared out over several machines."""
        self.weights = weights
        self.dtype = dtype
        self.heads = heads
        self.cuts = cuts
        self.sharing: Sharing | None = None
        self._build = build
        self.path = path  # where in the checkpoint's tree the module stands
        self._shapes = shapes or build
        # By recipe: a plan asks a dozen times, and to build thousands of modules takes a tenth of a second.
        self._plans: dict[PackingOf | None, _Plan] = {}
        self._module: nn.Module | None = None

    def empty(self) -> nn.Module:
        """The module's shapes, without weights."""
        return self._shared(self._build())

    def sharing_refusal(self, sharing: Sharing) -> str | None:
        """Why its layers cannot be shared out so; None where they can."""
        planned = ((path, packing, cut_of(path, self.cuts)) for path, _, packing in self.planned())
        refused = (refusal(path, packing, cut, sharing) for path, packing, cut in planned if cut)
        return next(filter(None, refused), None)

    def share(self, sharing: Sharing | None) -> None:
        """Makes it hold this machine's part of its layers alone from now on; None: all of them."""
        self.release()
        self.sharing = sharing
        self._plans.clear()

    @property
    def held_share(self) -> float:
        """Of its heads and channels, how much this machine holds."""
        return self.sharing.part if self.sharing else 1.0

    def _shared(self, module: nn.Module) -> nn.Module:
        if self.sharing is not None:
            self.sharing.mark(self._located(module), self.cuts)
        return module

    @property
    def loaded(self) -> bool:
        return self._module is not None

    def load(self) -> nn.Module:
        if self._module is None:
            mx.clear_cache()  # freed buffers have other sizes than the weights to come
            module = self.weights.fill(self.empty(), self.path, self.dtype, self.weights.transforms.progress)
            self._stack(module)
            self._module = module  # not before: what is kept is not lazy
        return self._module

    def _stack(self, module: nn.Module) -> None:
        """One by one: for a moment the weights of each are there twice."""
        if not on_gpu():
            return
        for each in stack_layers(module):
            mx.eval(each.arrays)
        mx.eval([own_parameters(layer) for _, layer in layers(module)])  # views: what is kept is not lazy

    def loaded_layers(self) -> list[tuple[str, nn.Module]]:
        return self._located(self.load())

    def _located(self, module: nn.Module) -> list[tuple[str, nn.Module]]:
        """Every layer with its path in the checkpoint."""
        return [(join(self.path, path), layer) for path, layer in layers(module)]

    def release(self) -> None:
        self._module = None
        mx.clear_cache()

    def refill(self, paths: Set[str]) -> None:
        """Reads layers again, by their paths in the checkpoint's tree, if the module is loaded."""
        if self._module is None:
            return
        fresh = dict(layers(self.empty()))  # dense: whether a layer is packed is decided again
        parts: dict[str, nn.Module] = dict(self._module.named_modules())  # type: ignore[no-untyped-call]
        changed = [(inner, layer) for inner, layer in layers(self._module) if join(self.path, inner) in paths]
        for part, filled in itertools.groupby(changed, lambda each: each[0].rpartition(".")[0]):
            for inner, layer in filled:
                self.weights.fill_layer(fresh[inner], join(self.path, inner), self.dtype)
                _rebind(layer, fresh.pop(inner))
            if hasattr(parts.get(part), "stack"):  # now: until then, what was stacked before is there as well
                self._stack(parts[part])

    @property
    def nbytes(self) -> int:
        """What the module holds when loaded, from shapes alone."""
        return self.held_bytes(self.dtype.size)

    def held_bytes(self, size: int, recipe: PackingOf | None = None) -> int:
        """The same with floating-point numbers of that many bytes, or under another recipe."""
        plan = self._plan(recipe)
        return plan.floats * size + plan.rest_bytes

    @functools.cached_property
    def held_as(self) -> str:
        """How the linears' weights are held, for records: "float32", or "4-bit 96, 8-bit 4"."""
        dense = dtype_name(self.dtype)
        kinds = Counter(
            f"{packing.bits}-bit" if packing else dense
            for _, layer, packing in self.planned()
            if isinstance(layer, Linear)
        )
        counted = [f"{kind} {count}" if len(kinds) > 1 else kind for kind, count in kinds.most_common()]
        return ", ".join(counted) or dense

    def planned(self, recipe: PackingOf | None = None) -> Sequence[Planned]:
        """Every layer, empty and to be left so, by its path in the checkpoint, and how it is packed on disk or will be
        when loaded.

        `recipe`: as if it had been opened with this one.
        """
        return self._plan(recipe).layers

    def linears(self, recipe: PackingOf | None = None) -> Sequence[tuple[str, Shape, Packing | None]]:
        """Of `planned` the linear layers: path, [rows, columns] of what this machine holds, packing."""
        return self._plan(recipe).linears

    def _plan(self, recipe: PackingOf | None) -> "_Plan":
        if recipe not in self._plans:
            known = next(iter(self._plans.values()), None)
            empty = [each[:2] for each in known.layers] if known else self._located(self._shared(self._shapes()))
            stored, recipe_packing = self.weights.stored, self.weights.recipe_packing
            planned = [(path, layer, stored.get(path) or recipe_packing(layer, path, recipe)) for path, layer in empty]
            linears = [(path, each.held_shape, packing) for path, each, packing in planned if isinstance(each, Linear)]
            self._plans[recipe] = _Plan(planned, linears, *_counted(planned))
        return self._plans[recipe]


class _Plan(NamedTuple):
    layers: Sequence[Planned]
    linears: Sequence[tuple[str, Shape, Packing | None]]
    floats: int  # how many floating-point numbers are held
    rest_bytes: int  # of all others


def _counted(planned: Iterable[Planned]) -> tuple[int, int]:
    """How many floating-point numbers are held, and the bytes of all others."""
    floats = rest_bytes = 0
    for _, layer, packing in planned:
        if isinstance(layer, Linear) and (packing or layer.share):
            if packing and layer.share:
                scales = packing.packed_shapes(*layer.weight.shape)["scales"]
                packing = held_packing(packing, scales, layer.share)
            layer = _of_shape(layer.held_shape, "bias" in layer, packing)
        for value in own_parameters(layer).values():
            floating = mx.issubdtype(value.dtype, mx.floating)
            floats += value.size if floating else 0
            rest_bytes += 0 if floating else value.nbytes
    return floats, rest_bytes


@functools.cache
def _of_shape(shape: Shape, bias: bool, packing: Packing | None) -> Linear:
    """An empty layer; models have few that differ."""
    rows, columns = shape
    layer = Linear(columns, rows, bias)
    if packing:
        layer.pack(packing)
    return layer


def _rebind(layer: nn.Module, fresh: nn.Module) -> None:
    for name in own_parameters(layer):
        del layer[name]
    for name, value in own_parameters(fresh).items():
        layer[name] = value
    if isinstance(layer, Linear) and isinstance(fresh, Linear):
        layer.packing = fresh.packing
