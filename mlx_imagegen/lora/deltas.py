"""What one module's LoRA entry adds to the module's weight, in float32: low rank, DoRA, LoKr, LoHa, full differences.

In: the entry's tensors (still in the file) and the module's full-precision weight. Out: the difference to add, in the
rows of one of our modules: a file may have a fused linear layer that holds several of ours.
Must not know: names of modules, families, which LoRAs are chosen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..errors import LoraError
from ..loading.checkpoint import Tensor
from ..loading.names import RowRange, cut

Shape = tuple[int, ...]
# What a change of a weight is made of; exactly one of these, so that no tensor of a file is left out silently.
FORMS = {
    frozenset({"down", "up"}): "LoRA",
    frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}): "LoHa",
    frozenset({"lokr_w1", "lokr_w2"}): "LoKr",
    frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}): "LoKr",
    frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}): "LoKr",
    frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}): "LoKr",
    frozenset({"diff"}): "difference",
    frozenset({"replacement"}): "replacement",
    frozenset(): "difference",  # of a bias alone
}
# What else each may have: DoRA's length of rows for what is made of factors; a bias is changed by its own tensor.
ALLOWED_EXTRAS = {
    "LoRA": {"alpha", "magnitude", "dora_scale", "diff_b", "up_bias"},
    "LoHa": {"alpha", "dora_scale", "diff_b"},
    "LoKr": {"alpha", "dora_scale", "diff_b"},
    "difference": {"diff_b"},
    "replacement": set(),
}
EXCLUSIVE = ({"magnitude", "dora_scale"}, {"diff_b", "up_bias"})  # PEFT's and LyCORIS' DoRA; two changes of a bias
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Entry:
    """One module's part of a LoRA file."""

    name: str  # the module as the file names it, prefix included
    parts: Mapping[str, Tensor]
    # (module, rank or None) -> scale, from an adapter's configuration; None where the file has none
    configured: Callable[[int | None], float] | None = None

    @property
    def form(self) -> str | None:
        """How the weight's change is computed; None if tensors are missing, or do not go together."""
        parts = set(self.parts)
        form = FORMS.get(frozenset(parts - ALLOWED_EXTRAS["LoRA"]))
        extras = parts & ALLOWED_EXTRAS["LoRA"]
        allowed = form is not None and extras <= ALLOWED_EXTRAS[form]
        return form if allowed and not any(extras >= both for both in EXCLUSIVE) else None

    @property
    def dora(self) -> bool:
        return bool({"magnitude", "dora_scale"} & set(self.parts))

    @property
    def kind(self) -> str | None:
        """For users."""
        if self.form is None or not self.dora:
            return self.form
        return "DoRA" if self.form == "LoRA" else f"{self.form} with DoRA"

    @property
    def rank(self) -> int | None:
        """None for what has no rank: full matrices."""
        for part, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
            if part in self.parts:
                return self.parts[part].shape[axis]
        return None

    @property
    def alpha(self) -> float | None:
        tensor = self.parts.get("alpha")
        return None if tensor is None else float(np.array(_array(tensor)).reshape(-1)[0])

    @property
    def scale(self) -> float:
        """alpha / rank. An alpha in the file wins over a configuration; neither means 1."""
        rank, alpha = self.rank, self.alpha
        if alpha is not None:
            return alpha / rank if rank else 1.0  # LyCORIS writes any number next to a LoKr of full matrices
        return 1.0 if self.configured is None or self.form in ("difference", "replacement") else self.configured(rank)

    @property
    def shape(self) -> Shape | None:
        """The weight's shape that this entry is made for; None if it changes a bias only, or does not fit itself."""
        shapes = {name: tensor.shape for name, tensor in self.parts.items()}
        if self.form == "LoRA":
            return _product(shapes["up"], shapes["down"])
        if self.form == "LoHa":
            first = _product(shapes["hada_w1_a"], shapes["hada_w1_b"])
            return first if first == _product(shapes["hada_w2_a"], shapes["hada_w2_b"]) else None
        if self.form == "LoKr":
            left, right = (
                shapes.get(w) or _product(shapes[f"{w}_a"], shapes[f"{w}_b"]) for w in ("lokr_w1", "lokr_w2")
            )
            return tuple(a * b for a, b in zip(left, right, strict=True)) if left and right else None
        return shapes.get("replacement") or shapes.get("diff")

    @property
    def bias_shape(self) -> Shape | None:
        tensor = self.parts.get("diff_b") or self.parts.get("up_bias")
        return None if tensor is None else tensor.shape

    def magnitude_fits(self, shape: Shape, modules: int) -> bool:
        """Whether DoRA's magnitude is one number a row, or one a column (of a module that is one of ours)."""
        tensor = self.parts.get("magnitude") or self.parts.get("dora_scale")
        if tensor is None or len(shape) != 2:
            return True
        if self.by_columns:
            return tensor.shape[1] == shape[1] and modules == 1
        return tensor.shape in ((shape[0],), (shape[0], 1))

    @property
    def by_columns(self) -> bool:
        """Whether it is a DoRA with a number a column, as older LyCORIS makes."""
        tensor = self.parts.get("dora_scale")
        return tensor is not None and len(tensor.shape) == 2 and tensor.shape[0] == 1

    def weight_change(self, weight: mx.array, target: RowRange, scale: float) -> mx.array:
        """`weight`: our module's, float32; `target`: which rows of the file's module those are; `scale`: the user's. A
        replacement is one at any scale."""
        if self.form == "replacement":
            return self._rows("replacement", target) - weight
        return self._dora(weight, target, scale) if self.dora else self._plain(target, scale * self.scale)

    def bias_change(self, target: RowRange, scale: float) -> mx.array:
        if "diff_b" in self.parts:
            return scale * self._rows("diff_b", target)
        return (scale * self.scale) * self._rows("up_bias", target)

    def _plain(self, target: RowRange, scale: float) -> mx.array:
        if self.form == "LoRA":
            return (scale * self._rows("up", target)) @ self._read("down")
        if self.form == "LoHa":
            w1, w2 = (self._rows(f"hada_{w}_a", target) @ self._read(f"hada_{w}_b") for w in ("w1", "w2"))
            return scale * (w1 * w2)
        if self.form == "LoKr":
            left, right = (self._factor(w) for w in ("lokr_w1", "lokr_w2"))
            return _rows(scale * mx.kron(left, right), target)
        return scale * self._rows("diff", target)

    def _dora(self, weight: mx.array, target: RowRange, scale: float) -> mx.array:
        """The magnitude replaces the length of every row (or column) of the changed weight.

        PEFT scales the added part inside the norm; LyCORIS goes from the weight to the finished DoRA by `scale`.
        """
        peft = "magnitude" in self.parts
        changed = weight + self._plain(target, self.scale * (scale if peft else 1.0))
        magnitude = self._read("magnitude" if peft else "dora_scale")
        magnitude = magnitude if self.by_columns else _rows(magnitude.reshape(-1, 1), target)
        length = mx.sqrt(mx.sum(changed * changed, axis=0 if self.by_columns else 1, keepdims=True))
        finished = changed * (magnitude / mx.maximum(length, 1e-30))  # a row of zeros stays one
        return finished - weight if peft else scale * (finished - weight)

    def _factor(self, name: str) -> mx.array:
        return self._read(name) if name in self.parts else self._read(f"{name}_a") @ self._read(f"{name}_b")

    def _read(self, part: str) -> mx.array:
        return _array(self.parts[part])

    def _rows(self, part: str, target: RowRange) -> mx.array:
        return cut(self.parts[part], target).read().astype(mx.float32)


def check_finite(tensor: Tensor) -> None:
    """Refuses NaN and infinity, on the host: a tensor of a LoRA is a few MB."""
    raw = tensor.bytes()
    if tensor.dtype == "BF16":
        finite = int((raw & 0x7FFF).max(initial=0)) < 0x7F80  # all exponent bits set: infinity or NaN
    elif tensor.dtype == "F8_E4M3":
        finite = int((raw & 0x7F).max(initial=0)) < 0x7F  # it has no infinity, and one NaN of either sign
    else:
        edges = (float(raw.min(initial=0)), float(raw.max(initial=0)))
        finite = all(abs(edge) <= FLOAT32_MAX for edge in edges)  # NaN compares as false
    if not finite:
        raise LoraError(
            f"{tensor.path}: '{tensor.name}' holds NaN or infinity; merged, it would turn every picture black. The "
            "training diverged or the file was converted wrongly: use an earlier save, or download it again."
        )


def _array(tensor: Tensor) -> mx.array:
    return tensor.read().astype(mx.float32)


def _rows(value: mx.array, target: RowRange) -> mx.array:
    """As `names.cut`, on an array."""
    unit = value.shape[0] // target.of
    value = value[target.start * unit : (target.start + target.share) * unit]
    return mx.concatenate(list(mx.split(value, 2))[::-1]) if target.swap_halves else value


def _product(a: Shape, b: Shape) -> Shape | None:
    """The shape of a @ b."""
    return (a[0], b[1]) if len(a) == len(b) == 2 and a[1] == b[0] else None
