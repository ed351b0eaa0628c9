"""The prompt upsampler: a short request -> the long caption that its model was trained on.

It is a Qwen3.5 in a folder of its own: as published, or as mlx-vlm has saved it, packed or not.
In: a folder, and how its weights are packed. Out: `Upsampler`, which holds nothing in memory but while it writes.
Must not know: the models that draw from its captions, downloads.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from ..errors import CheckpointError, InsufficientMemoryError, RequestError
from ..families.folder import check_widths
from ..hub.manifest import Manifest, manifests
from ..image import Picture
from ..layers.embed import Table
from ..limits import is_out_of_memory, run_limits
from ..loading.checkpoint import open_checkpoint
from ..loading.component import Component
from ..loading.config import read_json, read_table
from ..loading.tensors import NamedTensors, name_tensors
from ..loading.transforms import PackingOf, WeightTransforms
from ..loading.weights import check_tensors
from ..machine import GB, memory_limit
from ..packing.recipes import read_recipe, recipe_names
from ..precision import compute_dtype
from ..text.generation import OnToken, greedy, repetition_penalty
from ..text.qwen import STOPS, mrope, text_positions
from ..text.qwen3_5 import (
    UNREAD,
    VISUAL,
    FromMlx,
    HybridConfig,
    HybridModel,
    Kept,
    from_published,
    read_hybrid_config,
    working_bytes,
)
from ..text.tokenizer import Tokenizer, qwen3_5_tokenizer
from ..vision.patches import PatchConfig, merged_grid, to_patches
from ..vision.qwen3 import Features, VisionConfig, encode_patches, open_tower, placed, read_vision_config, vision_tower
from .boxes import locked_rows, reconciled
from .prompts import PICTURE_TOKEN, mode_of, question, read_system_prompts
from .references import MULTIPLE, most_pixels, prepared_references

COMPONENT = "prompt_upsampler"  # as recipes' rows may call it
TABLE = "embed_tokens.weight"
MOST_TOKENS = 3584  # of a caption
TEXT_TOKENS = 1500  # of a system prompt and a request, about


def default_upsampler() -> Manifest:
    return next(iter(manifests("prompt upsampler").values()))


def most_question_tokens(references: int) -> int:
    """Of a question with so many references, about, for plans: each of the most pixels that it may have."""
    return TEXT_TOKENS + references * most_pixels(references) // MULTIPLE**2


@dataclass(frozen=True)
class Question:
    ids: list[int]
    grids: list[tuple[int, int]]  # of each picture's merged patches


class Upsampler:
    def __init__(self, folder: Path, transforms: WeightTransforms):
        """Reads configs and headers, and checks every tensor's name and shape; no weights are read."""
        path = folder / "config.json"
        data = read_json(path)
        self.config: HybridConfig = read_hybrid_config(data, path)
        self.folder = folder
        self._vision = read_table(data, "vision_config", path)
        named = name_tensors(COMPONENT, open_checkpoint(folder), from_published, data)
        self.is_converted = saved_by_mlx(named)
        steps = (FromMlx(), *transforms.steps) if self.is_converted else transforms.steps
        self.weights = check_tensors(
            named,
            [HybridModel(self.config), Table(TABLE, self.config.vocab_size, self.config.hidden_size)],
            (VISUAL, *UNREAD),
            transforms=WeightTransforms(steps, transforms.progress),
        )
        self.model = Component(self.weights, lambda: HybridModel(self.config), compute_dtype())
        self._stays = False

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Its weights stay in memory from one caption to the next, and go at the end."""
        self._stays = True
        try:
            yield
        finally:
            self._stays = False
            self.model.release()

    def write(
        self,
        request: str,
        references: Sequence[Picture] | None = (),
        boxes: object = None,
        limit: int | None = None,
        on_token: OnToken | None = None,
        tell: Callable[[str], None] = lambda note: None,
    ) -> str:
        """The caption, and, where boxes are given, their table after it. `references`: as the user gave them. `tell`:
        called with a note if the caption has no end."""
        limit = MOST_TOKENS if limit is None else limit
        locked = None if boxes is None else locked_rows(boxes)
        pictures = [] if references is None else prepared_references(references)
        asked = self.question(request, pictures, locked)
        self.check_fits(len(asked.ids), limit)
        try:
            with run_limits(working_bytes(self.config, len(asked.ids), limit, compute_dtype().size)):
                features = self.features(pictures) if pictures else None
                ids = self._written(asked, features, limit, on_token)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InsufficientMemoryError(self._ran_out(len(asked.ids), limit)) from error
        finally:
            if not self._stays:
                self.model.release()
        if len(ids) == limit:
            tell(f"the caption was cut off at {limit} tokens; the upsampler had not come to an end")
        caption = self.tokenizer.decode(ids).strip()
        if not caption:
            raise CheckpointError(
                f"{self.folder}: the upsampler wrote an empty caption; ask in other words, or give the prompt as it is."
            )
        return reconciled(caption, locked) if locked else caption

    def question(self, request: str, pictures: Sequence[Image.Image], locked: object) -> Question:
        """`pictures`: prepared."""
        if not request.strip():
            raise RequestError("the prompt is empty; say what the picture should show.")
        patches = self.tower[1] if pictures else None
        grids = [merged_grid(picture.size, patches) for picture in pictures] if patches else []
        system = self.prompts[mode_of(len(pictures), bool(locked))]
        text = question(system, request, [rows * columns for rows, columns in grids], locked)  # type: ignore[arg-type]
        ids = self.tokenizer.encode(text).ids
        if ids.count(self.picture_id) != sum(rows * columns for rows, columns in grids):
            raise RequestError(f"the prompt has {PICTURE_TOKEN} in it, which stands for pictures; leave it out.")
        return Question(ids, grids)

    def check_fits(self, length: int, limit: int) -> None:
        need, most = self.peak_bytes(length, limit), memory_limit()
        if need > most.most_bytes:
            raise InsufficientMemoryError(
                f"the prompt upsampler needs {need / GB:.1f} GB, and {most}: it would not finish. "
                f"{self._remedy(length, limit, most.most_bytes)} or write the long prompt yourself."
            )

    def _ran_out(self, length: int, limit: int) -> str:
        need, most = self.peak_bytes(length, limit), memory_limit()
        return (
            f"memory ran out: the prompt upsampler takes about {need / GB:.1f} GB, and {most}, of which other programs "
            f"hold a part. Close those that hold much. {self._remedy(length, limit, min(need - 1, most.most_bytes))} "
            "or write the long prompt yourself."
        )

    def _remedy(self, length: int, limit: int, most_bytes: int) -> str:
        packed = () if self.weights.stored else sorted(recipe_names(), reverse=True)
        for name in packed:
            if self.peak_bytes(length, limit, read_recipe(name, default_upsampler().family).packing) <= most_bytes:
                return f"With quant {name} it would fit (--quant {name} on the command line): give that,"
        return "No quant of it fits: use another machine,"

    def peak_bytes(
        self, length: int, limit: int, recipe: PackingOf | None = None, dtype: mx.Dtype | None = None
    ) -> int:
        """With `length` tokens of a question and `limit` of an answer; `dtype`: this machine's, if not given."""
        size = (dtype or compute_dtype()).size
        return self.model.held_bytes(size, recipe) + working_bytes(self.config, length, limit, size)

    def read(self, asked: Question, features: Features | None) -> tuple[mx.array, list[Kept], int]:
        """The logits after a question, what is kept of it, and the last position used."""
        positions = text_positions(asked.ids, self.picture_id, asked.grids)
        places = [place for place, token in enumerate(asked.ids) if token == self.picture_id]
        x, _ = placed(self._embedded(asked.ids), features, places)
        return *self.model.load()(x, mrope(positions, self.config)), int(positions.max())

    def _written(self, asked: Question, features: Features | None, limit: int, on_token: OnToken | None) -> list[int]:
        logits, kept, position = self.read(asked, features)

        def following(token: int) -> mx.array:
            nonlocal kept, position
            position += 1
            rope = mrope(np.full((3, 1), position), self.config)
            after: mx.array
            after, kept = self.model.load()(self._embedded([token]), rope, kept)
            return after

        penalty = repetition_penalty(self.folder)
        return greedy(logits, following, self.stops, limit, on_token, penalty, asked.ids)

    def _embedded(self, ids: Sequence[int]) -> mx.array:
        return self.weights.gather(TABLE, ids, compute_dtype())[None]

    def features(self, pictures: Sequence[Image.Image]) -> Features:
        component, patches = self.tower
        self.model.release()  # a caption before may have left it: both together were not planned
        try:
            cut = [to_patches(picture, patches) for picture in pictures]
            return encode_patches(component.load(), cut, component.dtype)
        finally:
            component.release()

    @property
    def picture_id(self) -> int:
        return self.tokenizer.id_of(PICTURE_TOKEN)

    @functools.cached_property
    def prompts(self) -> Mapping[str, str]:
        return read_system_prompts(self.folder)

    @functools.cached_property
    def stops(self) -> list[int]:
        return [self.tokenizer.id_of(stop) for stop in STOPS]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return qwen3_5_tokenizer(self.folder)

    @functools.cached_property
    def tower(self) -> tuple[Component, PatchConfig]:
        """What reads pictures, and how they are cut for it; opened when it is first asked for."""
        path = self.folder / "config.json"
        vision, patches = read_vision_config({"deepstack_visual_indexes": []} | self._vision, path, self.folder)
        widths = (vision.out_hidden_size, self.config.hidden_size, "width of text_config")
        check_widths(path, [("out_hidden_size", *widths)])
        build = channels_last_tower if self.is_converted else vision_tower
        return open_tower(vision, self.weights, build), patches


def saved_by_mlx(named: NamedTensors) -> bool:
    """By the layout of the short convolutions: torch's have their one channel in the middle."""
    shapes = (named.shape(name) for name in named.slices if name.endswith("conv1d.weight"))
    return any(shape[-1] == 1 and len(shape) == 3 for shape in shapes)


def channels_last_tower(config: VisionConfig) -> nn.Module:
    """With its convolution over patches in the shape in which a checkpoint of mlx-vlm's is read; `FromMlx` turns it."""
    tower = vision_tower(config)
    convolution = tower.patch_embed.proj
    convolution.weight = mx.zeros([convolution.weight.shape[axis] for axis in (0, 2, 3, 4, 1)])
    return tower
