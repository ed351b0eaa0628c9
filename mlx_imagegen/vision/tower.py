"""What CLIP's and SigLIP's vision towers have in common: their configs' fields, and how their tensors are named.

Must not know: either tower.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from ..layers.encoder import ACTIVATIONS
from ..loading.config import COLOURS, HEADS, LAYERS, POSITIVE, Config, Range
from ..loading.names import RowRange


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Config):
    hidden_act: str
    hidden_size: int
    intermediate_size: int
    layer_norm_eps: Annotated[float, POSITIVE]
    num_attention_heads: Annotated[int, HEADS]
    num_hidden_layers: Annotated[int, LAYERS]
    patch_size: Annotated[int, Range(1, 256)]
    num_channels: Annotated[int, COLOURS] = 3

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.hidden_act not in ACTIVATIONS:
            yield "hidden_act", f"one of {', '.join(ACTIVATIONS)}"
        if self.hidden_size % self.num_attention_heads:
            yield "hidden_size", f"a multiple of num_attention_heads ({self.num_attention_heads})"


@dataclass(frozen=True, kw_only=True)
class SquareTowerConfig(TowerConfig):
    """Of a tower that takes pictures of one size."""

    image_size: Annotated[int, Range(1, 4096)]

    def misfits(self) -> Iterator[tuple[str, str]]:
        yield from super().misfits()
        if self.patch_size > self.image_size:
            yield "patch_size", f"at most image_size ({self.image_size})"

    @property
    def patches(self) -> int:
        """Of a picture."""
        return (self.image_size // self.patch_size) ** 2


def tower_fields(data: dict[str, Any], kind: type[TowerConfig], **more: Any) -> dict[str, Any]:
    """The tower's fields of a whole model's config.json, in which it is a part, with `more` in place of what the part
    says; what else older files say there is of transformers' own. The config of a tower alone is given back."""
    part = data.get("vision_config")
    if not isinstance(part, dict):
        return data
    fields = part | more
    return {name: fields[name] for name in (*kind.__dataclass_fields__, "model_type") if name in fields}


def without_prefix(name: str) -> Iterable[RowRange]:
    """As published (`vision_model.` before the tower's names), or as newer transformers saves it (without)."""
    yield RowRange(name.removeprefix("vision_model."))
