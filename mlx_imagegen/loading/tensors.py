"""One checkpoint under our modules' names: where each tensor lies, and how the weights on disk are packed.

In: a component's checkpoint, its family's `Rename`, its config.json. Out: `NamedTensors`, whose tensors are read one at
a time in our layout. No module is compared with it yet: a family may read its sizes off the shapes first.
Must not know: modules, LoRAs, recipes.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import mlx.core as mx

from ..errors import CheckpointError
from ..layers.linear import Packing, unpacked
from .checkpoint import Checkpoint
from .names import Rename, same_names, slices
from .packings import stored_packings
from .tensor import Tensor

Shape = tuple[int, ...]
# The first number in a layer's path: which of a stack of layers it is.
NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True)
class NamedTensors:
    """A component's tensors by our names."""

    component: str
    checkpoint: Checkpoint
    slices: Mapping[str, Tensor]
    stored: Mapping[str, Packing]  # by path: the weights that are packed on disk, as config.json's `quantization` says
    config: Mapping[str, object]

    def shape(self, name: str) -> Shape:
        return self.slices[name].shape

    def in_full_precision(self, path: str) -> bool:
        """Whether the file has the layer's weight itself: not its codes, and not a table in its place."""
        return f"{path}.weight" in self.slices and path not in self.stored

    @property
    def packed_by_format(self) -> bool:
        """Whether all that is packed is so because the file's own format is (GGUF's): there is no full-precision model
        to begin with, and what is not packed can be."""
        return all(self.slices[f"{path}.weight"].packing is not None for path in self.stored)

    def read(self, name: str, shape: Shape) -> mx.array:
        """One tensor in our layout, in the stored dtype."""
        if name not in self.slices:
            raise CheckpointError(f"{self.checkpoint.shown}: '{name}' is missing; download the model again.")
        return _as_ours(self.slices[name].read(), shape)

    def depth(self, path: str) -> int:
        """How many numbered layers are in the stack that `path` is in."""
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

    def gather_rows(self, name: str, rows: Sequence[int]) -> mx.array:
        """Rows of a table that is too large to load, unpacked: [len(rows), columns]."""
        path = name.rpartition(".")[0]
        packing = self.stored.get(path) if name == f"{path}.weight" else None
        if packing is None:
            return self.slices[name].gather(rows)
        parts = {part: self.slices[f"{path}.{part}"].gather(rows) for part in packing.parts}
        floats = [part for part, value in parts.items() if mx.issubdtype(value.dtype, mx.floating)]
        return unpacked(parts | {part: parts[part].astype(mx.float32) for part in floats}, packing)


def name_tensors(
    component: str,
    checkpoint: Checkpoint,
    rename: Rename = same_names,
    config: Mapping[str, object] | None = None,
) -> NamedTensors:
    """The checkpoint under our names; nothing is read but its header."""
    named, config = slices(checkpoint, rename), config or {}
    stored = stored_packings(config.get("quantization") or {}, named, rename, checkpoint.shown)
    return NamedTensors(
        component, checkpoint, MappingProxyType(named), MappingProxyType(stored), MappingProxyType(dict(config))
    )


def fits(stored: Shape, expected: Shape) -> bool:
    """Whether a stored shape is `expected` in our layout, axes of length 1 aside."""
    if len(stored) == 5 and len(expected) == 5:
        stored = (stored[0], *stored[2:], stored[1])
    if len(stored) == 5 and len(expected) == 4:  # a causal 3-D convolution; one picture meets its last time slice only
        stored = (*stored[:2], *stored[3:])
    if len(stored) == 4:  # torch keeps convolutions as [out, in, h, w], MLX as [out, h, w, in]
        stored = (stored[0], *stored[2:], stored[1])
    return [size for size in stored if size != 1] == [size for size in expected if size != 1]


def _as_ours(value: mx.array, expected: Shape) -> mx.array:
    if value.ndim == len(expected) == 2 and value.shape[0] == expected[0] and value.shape[1] < expected[1]:
        # For more inputs than the file has: those count for nothing until a LoRA changes them.
        return mx.pad(value, [(0, 0), (0, expected[1] - value.shape[1])])
    if value.ndim == 5 and len(expected) == 5:
        value = value.transpose(0, 2, 3, 4, 1)
    if value.ndim == 5 and len(expected) == 4:
        value = value[:, :, -1]
    if value.ndim == 4:
        value = value.transpose(0, 2, 3, 1)
    return value.reshape(expected)
