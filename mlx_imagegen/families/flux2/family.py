"""FLUX.2 klein and dev as a family.

States after three layers of a language model -> rectified flow on cells of 2 x 2 latents, next to which reference
pictures' own stand -> VAE. klein's guidance is the scale between two branches, dev's a number that the transformer is
given.
"""

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ...layers.attention import KeyValues
from ...layers.patches import Grid
from ...layers.rope import Rope
from ...precision import compute_dtype
from ...sampling import Schedule, empirical_mu, flow_match_schedule
from ...text.qwen import mrope, padded_mask
from ...text.tokenizer import Tokenizer, tekken_tokenizer
from ..base import Condition, EncodedReferences, Prompt, ReferenceTokens, Settings, TextBranch
from ..cells import CellFamily
from ..schedule_tables import ScheduleTables
from .denoiser import Flux2Denoiser
from .files import Flux2Files, open_files
from .keys import lora_names
from .modulation import Flux2Modulators, steps, tabulate
from .positions import picture_positions, reference_positions, text_positions
from .prompts import read_dev, read_klein
from .transformer import Flux2Transformer, Modulation, cuts


class Flux2(CellFamily):
    name = "flux2"
    files: Flux2Files
    modulation: ScheduleTables[Modulation]
    open_files = staticmethod(open_files)
    lora_names = staticmethod(lora_names)
    prefix_has_text = False

    def __init__(self, files: Flux2Files):
        config = files.config
        super().__init__(files, files.editing, lambda: Flux2Transformer(config), cuts(config))
        self.files = files
        self.modulation = ScheduleTables(files.transformer, config, Flux2Modulators(config), tabulate, steps)
        if files.keeps_references:  # their keys and values are computed when a denoiser is made
            self.stages = CellFamily.stages | {"prepare": ("transformer",)}

    def encode(self, prompt: Prompt, settings: Settings) -> tuple[TextBranch, list[str]]:
        references = self.encoded_references(prompt)
        length, mistral = settings.extras["max_sequence_length"], self._mistral
        read = (read_dev if mistral else read_klein)(self.tokenizer, prompt.text, length)
        states = (self._states_after_pads if mistral else self._states_before_pads)(read.ids, read.pad, length)
        return self.encoded(states, references, read.cut, length)

    def _states_before_pads(self, ids: list[int], pad: int, length: int) -> list[mx.array]:
        """Padding follows the prompt, and attends to it: its states differ from place to place."""
        x = self.embedded([*ids, *[pad] * (length - len(ids))])
        rope = mrope(np.tile(np.arange(length), (3, 1)), self.files.text_config)
        return self.language_model.states(x, rope, self.files.text_layers, mask=padded_mask(len(ids), length))

    def _states_after_pads(self, ids: list[int], pad: int, length: int) -> list[mx.array]:
        """Padding stands before the prompt; with nothing before it to attend to, each of its rows is the same."""
        model, chosen, count = self.language_model, self.files.text_layers, length - len(ids)
        rope = mrope(np.tile(np.arange(count, length), (3, 1)), self.files.text_config)
        states = model.states(self.embedded(ids), rope, chosen)
        pads = model.unattended_states(self.embedded([pad]), chosen)
        return [
            mx.concatenate([mx.repeat(alone, count, axis=1), state], axis=1)
            for alone, state in zip(pads, states, strict=True)
        ]

    @property
    def _mistral(self) -> bool:
        return self.files.text_config.model_type == "mistral"

    def open_tokenizer(self) -> Tokenizer:
        return tekken_tokenizer(self.files.tokenizer) if self._mistral else super().open_tokenizer()

    def reference_tokens(self, prompt: Prompt, settings: Settings) -> ReferenceTokens:
        count = self.reference_count(prompt)
        return ReferenceTokens(prefix=count) if self.files.keeps_references else ReferenceTokens(image=count)

    @property
    def prefix_values(self) -> int:
        if not self.files.keeps_references:
            return 0
        config = self.files.config
        return 2 * (config.num_layers + config.num_single_layers) * config.inner_dim

    def schedule(self, settings: Settings) -> Schedule:
        tokens = math.prod(self.grid(settings))
        mu = empirical_mu(tokens, settings.steps)
        return flow_match_schedule(self.files.scheduler, settings.steps, tokens, mu)

    def denoiser(self, branches: Sequence[TextBranch], schedule: Schedule, settings: Settings) -> Flux2Denoiser:
        references = branches[0].references  # all branches show the same pictures
        guidance = settings.guidance if self.files.config.guidance_embeds else 0.0
        table, source = self.modulation.of(schedule.timesteps, guidance)
        keeps = self.files.keeps_references and references.tokens is not None
        grids = () if keeps else references.grids
        conditions = [
            Condition(branch.txt, self._rope(branch.txt.shape[1], self.grid(settings), grids)) for branch in branches
        ]
        shown = (None, self._keys_values(references)) if keeps else (references.tokens, ())
        return Flux2Denoiser(self.transformer, conditions, settings.cfg, table, *shown, tables_source=source)

    def _keys_values(self, references: EncodedReferences) -> list[KeyValues]:
        """Of reference pictures that are modulated as at time 0, and attend to one another alone."""
        assert references.tokens is not None
        files, dtype = self.files, compute_dtype()
        (modulation,) = steps(tabulate(files.config, files.transformer.fill, [0.0], dtype))
        rope = self.rope_of(reference_positions(references.grids))
        model = self.transformer.load()
        assert isinstance(model, Flux2Transformer)
        return model.keys_values(references.tokens.astype(dtype), rope, modulation)

    def _rope(self, text: int, grid: Grid, references: Sequence[Grid]) -> Rope:
        placed = (text_positions(text), picture_positions(grid), reference_positions(references))
        return self.rope_of(np.concatenate(placed))
