"""FLUX.3 klein and its base as a family.

States after eight layers of Qwen3-VL -> rectified flow on cells of 2 x 2 latents, with reference pictures' own next to
them -> FLUX.2's VAE. klein is distilled: it is given the time that a step ends at, and takes no second branch.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...errors import QuantizationError
from ...folding import Fold
from ...hub.manifest import Manifest
from ...layers.rope import Rope, rope_table
from ...loading.component import Component
from ...loading.modules import layers
from ...loading.names import RowRange
from ...loading.weights import WeightTransforms
from ...precision import compute_dtype
from ...sampling import Schedule, flow_match_schedule
from ...text.qwen import LanguageModel, mrope, padded_mask
from ...text.tokenizer import Tokenizer, qwen_tokenizer
from ..base import LastValueCache, Prompt, ReferenceTokens, Settings
from ..cells import CellFamily, EncodedReferences
from ..schedule_tables import find_tables
from .denoiser import Condition, Flux3Denoiser, Tokens
from .files import TABLE, Flux3Files, open_files
from .keys import lora_names
from .modulation import Flux3Modulators, steps, tabulate
from .positions import picture_positions, reference_positions, text_positions
from .prompts import read_prompt
from .transformer import Flux3Transformer, Modulation

PAD_POSITION = 1  # where the language model is told that padding stands, as it was in training


@dataclass(frozen=True)
class Flux3Branch:
    txt: mx.array  # [1, T, F]
    references: EncodedReferences


class Flux3(CellFamily[Flux3Branch]):
    name = "flux3"

    def __init__(self, files: Flux3Files):
        super().__init__(files.vae, files.vae_config, files.editing)
        self.files = files
        dtype = compute_dtype()
        self.components |= {
            "text_encoder": Component(
                files.text,
                lambda: LanguageModel(files.text_config, max(files.text_layers)),
                dtype,
                heads=files.text_config.num_attention_heads,
            ),
            "transformer": Component(
                files.transformer, lambda: Flux3Transformer(files.config), dtype, heads=files.config.num_attention_heads
            ),
        }
        self._tables = LastValueCache[tuple[tuple[Modulation, ...], str]]()  # the same for every prompt

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "Flux3":
        return cls(open_files(folder, manifest, transforms))

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[Flux3Branch, list[str]]:
        references = self.encoded_references(prompt)
        length, config = settings.extras["max_sequence_length"], self.files.text_config
        read = read_prompt(self._tokenizer, prompt.text, length)
        places = np.arange(len(read.ids))
        places[read.length :] = PAD_POSITION
        model = self.components["text_encoder"].load()
        states = model.states(
            self.files.text.gather(TABLE, read.ids, compute_dtype())[None],
            mrope(np.tile(places, (3, 1)), config),
            self.files.text_layers,
            mask=padded_mask(read.length, len(read.ids)),
        )
        txt = mx.concatenate(states, axis=-1)  # [1, T, F]
        mx.eval(txt)
        notes = [f"the prompt is longer than {length} tokens; cut off: '{read.cut}'"] if read.cut else []
        return Flux3Branch(txt, references), notes

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        """Its 150,000 words take half a second to read."""
        return qwen_tokenizer(self.files.tokenizer)

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        return ReferenceTokens(image=self.reference_count(prompt))

    def schedule(self, settings: Settings) -> Schedule:
        return flow_match_schedule(self.files.scheduler, settings.steps, math.prod(self.grid(settings)))

    def denoiser(self, branches: Sequence[Flux3Branch], schedule: Schedule, settings: Settings) -> Flux3Denoiser:
        table, source = self._tables.get(schedule, lambda: self.tables(schedule))
        picture = self._rope(picture_positions(self.grid(settings)))
        shown, references = branches[0].references, None  # all branches show the same pictures
        if shown.tokens is not None:
            references = Tokens(shown.tokens.astype(compute_dtype()), self._rope(reference_positions(shown.grids)))
        conditions = []
        for branch in branches:
            txt = Tokens(branch.txt, self._rope(text_positions(branch.txt.shape[1])))
            ropes = [txt.rope, picture, *([references.rope] if references else [])]
            conditions.append(Condition(txt, mx.concatenate(ropes)))
        return Flux3Denoiser(
            self.transformer, conditions, settings.cfg, picture, references, table, self.files.config.flow_map, source
        )

    def _rope(self, positions: np.ndarray) -> Rope:
        return rope_table(positions, self.files.config.axes_dims_rope, self.files.config.rope_theta)

    def tables(self, schedule: Schedule) -> tuple[tuple[Modulation, ...], str]:
        """A modulation a step, and where they came from."""
        config, weights, dtype = self.files.config, self.files.transformer, compute_dtype()
        arrays, source = find_tables(
            weights,
            frozenset(path for path, _ in layers(Flux3Modulators(config))),
            (config, tuple(schedule.timesteps), str(dtype)),
            schedule.timesteps,
            lambda fill: tabulate(config, fill, schedule.timesteps, dtype),
        )
        return steps(arrays), source

    def fold(self, settings: Settings) -> Fold:
        raise QuantizationError(
            "--fold: all blocks of FLUX.3 share their modulation, 4% of the weights, which is read once before the "
            "loop and does not stay in memory; there is little to gain. Leave --fold out."
        )

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        return lora_names(component, modules)

    def forget(self) -> None:
        super().forget()
        self._tables.forget()
