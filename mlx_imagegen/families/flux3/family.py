"""FLUX.3 klein and its base as a family.

States after eight layers of Qwen3-VL -> rectified flow on cells of 2 x 2 latents, with reference pictures' own next to
them -> FLUX.2's VAE. klein is distilled: it is given the time that a step ends at, and takes no second branch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from ...hub.manifest import Manifest
from ...loading.modules import layers
from ...loading.names import RowRange
from ...loading.weights import WeightTransforms
from ...precision import compute_dtype
from ...sampling import Schedule, flow_match_schedule
from ...text.qwen import mrope, padded_mask
from ..base import Prompt, ReferenceTokens, Settings
from ..cells import CellBranch, CellFamily
from ..schedule_tables import find_tables
from .denoiser import Condition, Flux3Denoiser, Tokens
from .files import Flux3Files, open_files
from .keys import lora_names
from .modulation import Flux3Modulators, steps, tabulate
from .positions import picture_positions, reference_positions, text_positions
from .prompts import read_prompt
from .transformer import Flux3Transformer, Modulation, cuts

PAD_POSITION = 1  # where the language model is told that padding stands, as it was in training


class Flux3(CellFamily[Modulation]):
    name = "flux3"

    def __init__(self, files: Flux3Files):
        super().__init__(files, files.editing, lambda: Flux3Transformer(files.config), cuts(files.config))
        self.files = files

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, transforms: WeightTransforms) -> "Flux3":
        return cls(open_files(folder, manifest, transforms))

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[CellBranch, list[str]]:
        references = self.encoded_references(prompt)
        length, config = settings.extras["max_sequence_length"], self.files.text_config
        read = read_prompt(self.tokenizer, prompt.text, length)
        places = np.arange(len(read.ids))
        places[read.length :] = PAD_POSITION
        rope, mask = mrope(np.tile(places, (3, 1)), config), padded_mask(read.length, len(read.ids))
        states = self.language_model.states(self.embedded(read.ids), rope, self.files.text_layers, mask=mask)
        return self.encoded(states, references, read.cut, length)

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        return ReferenceTokens(image=self.reference_count(prompt))

    def schedule(self, settings: Settings) -> Schedule:
        return flow_match_schedule(self.files.scheduler, settings.steps, math.prod(self.grid(settings)))

    def denoiser(self, branches: Sequence[CellBranch], schedule: Schedule, settings: Settings) -> Flux3Denoiser:
        table, source = self._tables.get(schedule, lambda: self.tables(schedule))
        picture = self.rope_of(picture_positions(self.grid(settings)))
        shown, references = branches[0].references, None  # all branches show the same pictures
        if shown.tokens is not None:
            references = Tokens(shown.tokens.astype(compute_dtype()), self.rope_of(reference_positions(shown.grids)))
        conditions = []
        for branch in branches:
            txt = Tokens(branch.txt, self.rope_of(text_positions(branch.txt.shape[1])))
            ropes = [txt.rope, picture, *([references.rope] if references else [])]
            conditions.append(Condition(txt, mx.concatenate(ropes)))
        changing = self.files.config.flow_map
        return Flux3Denoiser(
            self.transformer, conditions, settings.cfg, table, picture, references, changing, tables_source=source
        )

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

    def lora_names(self, component: str, modules: Iterable[str]) -> Mapping[str, Sequence[RowRange]]:
        return lora_names(component, modules)
