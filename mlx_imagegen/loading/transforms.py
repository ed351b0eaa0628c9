"""What is done to weights between the file and the module: an ordered list of steps behind one small interface.

In: one layer's tensors as they were read. Out: the same, changed. LoRAs (lora/merge.py) and packing (packing/packer.py)
each supply steps; they run in the order merge, pack, round.
Must not know: which steps there are.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from ..layers.linear import Packing
from .modules import own_parameters
from .tensors import NamedTensors, Shape

# (component, module path, [rows, columns], layers in its stack) -> how to pack that weight, or None to leave it dense.
PackingOf = Callable[[str, str, Shape, int], Packing | None]
# (component, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LayerTensors:
    """One layer on its way from the file into its module."""

    named: NamedTensors  # where it is read from
    path: str
    layer: nn.Module  # empty: its parameters' shapes
    values: Mapping[str, mx.array]  # by parameter; some may be absent where a folded file has tables in their place
    plain: Mapping[str, mx.array]  # the values in full precision before any change
    packing: Packing | None  # how values["weight"] is packed

    @property
    def component(self) -> str:
        return self.named.component

    @property
    def absent(self) -> Collection[str]:
        """The layer's parameters that have no value yet."""
        return own_parameters(self.layer).keys() - self.values.keys()

    def with_values(self, values: Mapping[str, mx.array]) -> "LayerTensors":
        return replace(self, values=values)


class Transform:
    """One step. The defaults change nothing."""

    def apply(self, tensors: LayerTensors) -> LayerTensors:
        """The layer's tensors, changed. Rows of a table come as a layer without parameters."""
        return tensors

    def packing(self, component: str, path: str, shape: Shape, depth: int) -> Packing | None:
        """How a linear layer that is dense on disk will be packed, for plans."""
        return None

    def identity(self, named: NamedTensors, paths: Collection[str]) -> str:
        """Another text whenever the step may give these layers other values: for what is computed from them and kept.
        Empty where it changes nothing."""
        return ""

    def changes(self, component: str, paths: Collection[str]) -> bool:
        """Whether the layers' numbers become others, packing and rounding aside."""
        return False

    def note_reuse(self, component: str, paths: Collection[str]) -> None:
        """A picture uses what was computed from these layers before, without their being read again."""

    def check(self, named: NamedTensors) -> None:
        """Raises for a checkpoint that the step cannot work on."""


@dataclass(frozen=True)
class WeightTransforms:
    """The steps in their order, and the callback for progress. The defaults change nothing."""

    steps: tuple[Transform, ...] = ()
    progress: Progress | None = None

    def then(self, *steps: Transform) -> "WeightTransforms":
        return replace(self, steps=(*self.steps, *steps))

    def apply(self, tensors: LayerTensors) -> LayerTensors:
        for step in self.steps:
            tensors = step.apply(tensors)
        return tensors

    def packing(self, component: str, path: str, shape: Shape, depth: int) -> Packing | None:
        choices = (step.packing(component, path, shape, depth) for step in self.steps)
        return next(filter(None, choices), None)
