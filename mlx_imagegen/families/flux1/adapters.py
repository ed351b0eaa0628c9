"""FLUX.1's image adapters: which one a parameter opens, and all of a prompt's pictures through theirs.

Must not know: text, requests, the loop.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base import Prompt
from ..image_prompts import AdapterSource, ImageAdapter, ImagePrompt
from .config import FluxConfig
from .ip_adapter import FluxIpAdapter
from .prompts import PromptPictures
from .redux import FluxRedux


def open_adapter(source: AdapterSource, folder: Path, model: FluxConfig) -> ImageAdapter[PromptPictures]:
    """`model`: the transformer's config."""
    kind = FluxRedux if source.in_prompt else FluxIpAdapter
    return kind(source.name, folder, model)


def encode_pictures(
    images: Sequence[ImagePrompt], adapters: Mapping[AdapterSource, ImageAdapter[Any]]
) -> tuple[PromptPictures, ...]:
    """A prompt's pictures, each adapter's together."""
    groups: dict[AdapterSource, list[ImagePrompt]] = {}
    for image in images:
        groups.setdefault(image.adapter, []).append(image)
    return tuple(adapters[source].encode(group) for source, group in groups.items())


def has_text(prompt: Prompt) -> bool:
    """Whether a text encoder is read: pictures that stand in the prompt may be all of it."""
    return bool(prompt.text.strip()) or not any(image.adapter.in_prompt for image in prompt.images)
