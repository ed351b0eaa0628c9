"""Pictures in the place of words or next to them, and the networks that read them: image adapters.

In: pictures, each with its scale and its adapter. Out: the contract that a family's adapters meet. What an adapter
makes of pictures is computed once for a prompt: nothing of it is in memory in the loop.
Must not know: any family's layers, requests, where adapters are found.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from PIL import Image

from ..errors import ConfigError, MissingFileError
from ..image import fingerprint
from ..loading.checkpoint import open_checkpoint
from ..loading.component import Component
from ..loading.config import read_json
from ..loading.names import Rename, same_names
from ..loading.tensors import NamedTensors, name_tensors

Encoded_co = TypeVar("Encoded_co", covariant=True)


class AdapterSource(NamedTuple):
    """Which adapter: the parameter that gives it pictures, and what the user called it."""

    parameter: str
    name: str  # its manifest's, its repository's or its folder's

    @property
    def in_prompt(self) -> bool:
        """Whether pictures stand in the prompt, next to words or in their place; others are looked at besides."""
        return self.parameter == "redux"


@dataclass(frozen=True)
class ImagePrompt:
    picture: Image.Image
    scale: float
    adapter: AdapterSource

    @functools.cached_property
    def key(self) -> Hashable:
        """Equal for what is encoded alike: pictures count by their pixels."""
        return fingerprint(self.picture), self.scale, self.adapter


class ImageAdapter(ABC, Generic[Encoded_co]):
    """An open adapter; its components come and go with the stage in which pictures are encoded."""

    name: str
    components: Mapping[str, Component]
    tokens: Mapping[str, int]  # of one picture, by the component that they pass through
    prompt_tokens: int = 0  # that it adds to the prompt's, for the denoiser

    @abstractmethod
    def encode(self, images: Sequence[ImagePrompt]) -> Encoded_co:
        """All of a prompt's pictures that this adapter reads, evaluated."""


def encode_by_adapter(
    images: Sequence[ImagePrompt], adapters: Mapping[AdapterSource, ImageAdapter[Encoded_co]]
) -> tuple[Encoded_co, ...]:
    """A prompt's pictures, each adapter's together."""
    groups: dict[AdapterSource, list[ImagePrompt]] = {}
    for image in images:
        groups.setdefault(image.adapter, []).append(image)
    return tuple(adapters[source].encode(group) for source, group in groups.items())


def open_part(adapter: str, folder: Path, part: str, rename: Rename = same_names) -> tuple[Path, NamedTensors]:
    """The path of an adapter's part's config.json, and the tensors next to it; nothing is read but their header."""
    path = folder / part / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{path} is not there; give the folder of the image adapter's whole repository.")
    return path, name_tensors(f"{part}:{adapter}", open_checkpoint(path.parent), rename, read_json(path))


def check_width(path: Path, field: str, found: int, expected: int, other: str) -> None:
    """Raises for an adapter's part, with its config at `path`, that does not fit the `other`."""
    if found != expected:
        raise ConfigError(
            f"{path}: '{field}' is {found}, and {other} has {expected}: the image adapter is of another model, or its "
            "parts are of different ones. Choose one that is made for this model, all of it from one repository."
        )
