"""FLUX.3 klein and its base as a family.

States after eight layers of Qwen3-VL -> rectified flow on cells of 2 x 2 latents, with reference pictures' own next to
them -> FLUX.2's VAE. klein is distilled: it is given the time that a step ends at, and takes no second branch.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ...precision import compute_dtype
from ...sampling import Schedule
from ...text.qwen import mrope, padded_mask
from ..base import Prompt, ReferenceTokens, Settings, TextBranch
from ..cells import CellFamily
from ..schedule_tables import ScheduleTables
from .denoiser import Condition, Flux3Denoiser, Tokens
from .files import Flux3Files, open_files
from .keys import lora_names
from .modulation import Flux3Modulators, steps, tabulate
from .positions import picture_positions, reference_positions, text_positions
from .prompts import read_prompt
from .transformer import Flux3Transformer, Modulation, cuts

PAD_POSITION = 1  # where the language model is told that padding stands, as it was in training


class Flux3(CellFamily):
    name = "flux3"
    files: Flux3Files
    modulation: ScheduleTables[Modulation]
    open_files = staticmethod(open_files)
    lora_names = staticmethod(lora_names)

    def __init__(self, files: Flux3Files):
        config = files.config
        super().__init__(files, files.editing, lambda: Flux3Transformer(config), cuts(config))
        self.files = files
        self.modulation = ScheduleTables(files.transformer, config, Flux3Modulators(config), tabulate, steps)

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[TextBranch, list[str]]:
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

    def denoiser(self, branches: Sequence[TextBranch], schedule: Schedule, settings: Settings) -> Flux3Denoiser:
        table, source = self.modulation.of(schedule.timesteps)
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
