"""What families share whose prompts are read by a Qwen language model (or Mistral's).

In: opened files. Out: the part of a `Family` that owns the language model and its tokenizer.
Must not know: templates, transformers' layers.
"""

import functools
from collections.abc import Sequence

import mlx.core as mx

from ..loading.component import Component
from ..precision import compute_dtype
from ..text.qwen import LanguageModel, cuts
from ..text.tokenizer import Tokenizer, qwen_tokenizer
from .base import Branch
from .folder import FolderFiles
from .latents import LatentFamily


def language_model(files: FolderFiles) -> Component:
    config, depth = files.text_config, files.text_depth
    return Component(
        files.text,
        lambda: LanguageModel(config, depth),
        compute_dtype(),
        files.text_path,
        heads=config.num_attention_heads,
        cuts=cuts(config),
    )


class LanguageFamily(LatentFamily[Branch]):
    files: FolderFiles

    @property
    def language_model(self) -> LanguageModel:
        model = self.components["text_encoder"].load()
        assert isinstance(model, LanguageModel)
        return model

    def embedded(self, ids: Sequence[int]) -> mx.array:
        """[1, T, D]"""
        return self.files.text.gather(self.files.text_table, ids, compute_dtype())[None]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Its 150,000 words take half a second to read."""
        return self.open_tokenizer()

    def open_tokenizer(self) -> Tokenizer:
        return qwen_tokenizer(self.files.tokenizer)
