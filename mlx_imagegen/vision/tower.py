"""What vision towers have in common: CLIP's and SigLIP's config fields, how tensors are named, whether they are there.

Must not know: any tower's modules.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import MissingFileError
from ..loading.config import COLOURS, Range
from ..loading.names import RowRange
from ..loading.tensors import NamedTensors
from ..text.clip import EncoderConfig


@dataclass(frozen=True, kw_only=True)
class TowerConfig(EncoderConfig):
    patch_size: Annotated[int, Range(1, 256)]
    num_channels: Annotated[int, COLOURS] = 3


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


def check_has_tower(tensors: NamedTensors, prefix: str) -> None:
    """Refuses a text encoder's file without the vision tower that reference pictures need; those in GGUF have it in
    another. `prefix`: how the names of a tower's tensors begin."""
    if not any(name.startswith(prefix) for name in tensors.slices):
        raise MissingFileError(
            f"{tensors.checkpoint.shown} has no vision tower, and reference pictures are read with it: take the text "
            "encoder's .safetensors file, which has one, put the mmproj file of a GGUF one next to it, or take a model "
            "that draws from text alone."
        )
