"""Whether a text encoder's file has the vision tower that reference pictures need; those in GGUF have it in another.

In: a component's tensors. Out: nothing, or an error that says what to take. Must not know: any tower's modules.
"""

from ..errors import MissingFileError
from ..loading.tensors import NamedTensors


def check_has_tower(tensors: NamedTensors, prefix: str) -> None:
    """`prefix`: how the names of a tower's tensors begin."""
    if not any(name.startswith(prefix) for name in tensors.slices):
        raise MissingFileError(
            f"{tensors.checkpoint.shown} has no vision tower, and reference pictures are read with it: take the text "
            "encoder's .safetensors file, which has one, put the mmproj file of a GGUF one next to it, or take a model "
            "that draws from text alone."
        )
