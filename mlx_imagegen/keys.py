"""The rename engine: what a checkpoint calls its tensors -> what our modules call them.

A family gives a `Rename`: for a source tensor's name, the tensors it supplies, each a run of its rows. The engine turns
it round, so that loading can ask for one of our tensors and read just those rows.
Must not know: which layouts exist (families' keys.py), LoRA arithmetic.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .checkpoint import Tensor


@dataclass(frozen=True)
class Target:
    """One of our tensors as a part of a source tensor: `share` of the rows from `start`, both in units of `of`-ths."""

    name: str
    start: int = 0
    share: int = 1
    of: int = 1
    swap_halves: bool = False


@dataclass(frozen=True)
class Slice:
    """Rows of a stored tensor that make one of ours."""

    tensor: Tensor
    row: int = 0
    rows: int | None = None
    swap_halves: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        rows = self.rows if self.rows is not None else (self.tensor.shape[0] if self.tensor.shape else None)
        return self.tensor.shape if rows is None else (rows, *self.tensor.shape[1:])


Rename = Callable[[str], Iterable[Target]]


def same_names(name: str) -> Iterable[Target]:
    """The layout our modules are named after."""
    return (Target(name),)


def slices(tensors: Mapping[str, Tensor], rename: Rename) -> dict[str, Slice]:
    """Our names -> where their rows lie. A name that `rename` gives no target for is dropped on purpose."""
    out: dict[str, Slice] = {}
    for name, tensor in tensors.items():
        for target in rename(name):
            if target.of == 1:
                out[target.name] = Slice(tensor, swap_halves=target.swap_halves)
            else:
                unit = tensor.shape[0] // target.of
                out[target.name] = Slice(tensor, target.start * unit, target.share * unit, target.swap_halves)
    return out
