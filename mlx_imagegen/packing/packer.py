"""The steps of loading that pack and round weights as they stream in.

`Packer` packs linear layers: dense ones as a recipe says, and those of a quantized checkpoint that a LoRA changed as
they were packed before. `RoundTo16Bits` gives the matrices that stay dense the numbers that they would have in a saved
checkpoint. Must not know: recipes' rows, LoRAs, files.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..errors import QuantizationError
from ..layers.linear import Linear, Packing
from ..loading.tensors import NamedTensors, Shape
from ..loading.transforms import LayerTensors, PackingOf, Transform
from .importance import Norms, importance_in

# (component, path, weight before any change, weight with every LoRA, how weights are packed, packing)
OnChange = Callable[[str, str, mx.array, mx.array, "Pack", Packing], None]


class Pack(Protocol):
    """(weight, packing, how much each of its columns counts) -> weight, scales[, biases]"""

    def __call__(
        self, weight: mx.array, packing: Packing, *, importance: np.ndarray | None = None
    ) -> dict[str, mx.array]: ...


@dataclass(frozen=True)
class Packer(Transform):
    pack: Pack
    recipe: PackingOf | None = None  # for layers that are dense on disk
    digest: str = ""  # of the recipe
    norms: Norms = field(default_factory=dict)  # which of a family's layers read a norm's output
    on_change: OnChange | None = None  # called with weights that an earlier step changed

    def apply(self, tensors: LayerTensors) -> LayerTensors:
        packing = self._packing(tensors)
        if packing is None:
            return tensors
        component, path, weight = tensors.component, tensors.path, tensors.values["weight"]
        if self.on_change and weight is not tensors.plain["weight"]:
            self.on_change(component, path, tensors.plain["weight"], weight, self.pack, packing)
        try:
            parts = self.pack(weight, packing, importance=importance_in(tensors.named, path, self.norms))
        except QuantizationError as error:
            tensor = tensors.named.slices[f"{path}.weight"]
            raise QuantizationError(f"{tensor.path}, '{tensor.name}': {error}") from error
        return replace(tensors, values={**tensors.values, **parts}, packing=packing)

    def _packing(self, tensors: LayerTensors) -> Packing | None:
        named, path = tensors.named, tensors.path
        if tensors.packing is not None or not isinstance(tensors.layer, Linear):
            return None
        stored = named.stored.get(path)
        if stored and named.packed_by_format:  # changed, and a change would be lost between the codes that it had
            return replace(stored, bits=8)
        if stored or f"{path}.weight" not in named.slices:
            return stored
        return self.packing(named.component, path, named.shape(f"{path}.weight"), named.depth(path))

    def packing(self, component: str, path: str, shape: Shape, depth: int) -> Packing | None:
        return self.recipe(component, path, shape, depth) if self.recipe else None

    def identity(self, named: NamedTensors, paths: Collection[str]) -> str:
        return self.digest

    def check(self, named: NamedTensors) -> None:
        if named.stored and self.recipe and not named.packed_by_format:
            raise QuantizationError(
                f"{named.checkpoint.shown} is quantized already, and quantizing it again would add the errors of both."
                " Leave quant out, or begin with the full-precision model."
            )


@dataclass(frozen=True)
class RoundTo16Bits(Transform):
    components: Callable[[str], bool]  # whether a component's matrices are rounded

    def apply(self, tensors: LayerTensors) -> LayerTensors:
        values = {name: self._rounded(tensors, name, value) for name, value in tensors.values.items()}
        return tensors.with_values(values)

    def _rounded(self, tensors: LayerTensors, name: str, value: mx.array) -> mx.array:
        stored = f"{tensors.path}.{name}" if tensors.path else name
        if stored not in tensors.named.slices or not mx.issubdtype(value.dtype, mx.floating):
            return value
        if name in tensors.plain:  # merged, it is float32: as if saved and loaded
            value = value.astype(tensors.plain[name].dtype)
        is_matrix = value.dtype == mx.float32 and value.ndim > 1
        return value.astype(mx.bfloat16) if is_matrix and self.components(tensors.component) else value
