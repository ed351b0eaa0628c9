"""Tensor names of Qwen-Image's components on disk -> our modules' names."""

from collections.abc import Iterable

from ...loading.names import RowRange

HEAD = "lm_head."


def from_text_encoder(name: str) -> Iterable[RowRange]:
    """Qwen2.5-VL, as published (`model.`, `visual.`, `lm_head.`) or as newer transformers has it in memory
    (`model.language_model.`, `model.visual.`)."""
    yield RowRange(name.removeprefix("model.").removeprefix("language_model."))
