"""Qwen-Image-2.1's Fun control networks (VideoX-Fun's): copies of every second block, which look at a picture as well.

A copy's stream begins as the transformer's own tokens, with the picture's added at the target; a layer hands what each
copy makes of it to the transformer, after the block that it is a copy of. Before the target nothing is shown, and its
tokens never see the picture: there the stream is the same at every step, and its keys and values are kept.
What is shown: the latents of a picture to follow, where the given picture is kept, and its latents around the hole.
In: a network's file; the transformer's tokens and the picture. Out: `FunPass`, which adds to what the blocks give.
Must not know: requests, the autoencoder, which steps follow a picture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import ConfigError, RequestError
from ...layers.attention import KeyValues
from ...layers.linear import Linear
from ...layers.rope import Rope
from ...loading.checkpoint import open_checkpoint
from ...loading.single_file import count, shape
from ...loading.weights import WeightTransforms
from ..controls import ControlNetwork, ControlPicture, another_network
from .config import QwenImage21Config
from .keys import from_single_file, is_fun_network
from .sequence import Segments
from .transformer import Block

EMBEDDER = "control_img_in"
EVERY = 2  # of so many blocks of the transformer one is copied
INPAINT = "inpaint"  # the kind of a picture that is shown around its hole, and followed nowhere else


class FunBlock(Block):
    def __init__(self, config: QwenImage21Config, is_first: bool):
        super().__init__(config)
        dims = config.inner_dim
        if is_first:
            self.before_proj = Linear(dims, dims)
        self.after_proj = Linear(dims, dims)


class FunControlNet(nn.Module):
    def __init__(self, config: QwenImage21Config):
        """`config`: the transformer's."""
        super().__init__()
        self.control_img_in = Linear(shown_channels(config), config.inner_dim)
        self.control_blocks = [FunBlock(config, index == 0) for index in range(config.num_layers // EVERY)]

    def embed(self, condition: mx.array) -> mx.array:
        return self.control_img_in(condition)


class FunPass:
    """One pass of a network next to one of the transformer: after each of its blocks it is called with the output."""

    def __init__(
        self,
        x: mx.array,
        module: FunControlNet,
        shown: mx.array | None,
        strength: float,
        rope: Rope,
        modulation: mx.array,
        *,
        prefix: Sequence[KeyValues] | None = None,
        segments: Segments | None = None,
    ):
        """`x`: the tokens before the first block, [1, L, D]. `shown`: the picture's, through control_img_in; None
        before the target. `prefix`: keys and values of what stands before x. `segments`: what x consists of."""
        shown = mx.zeros_like(x[:, :1]) if shown is None else shown
        self._stream = x + module.control_blocks[0].before_proj(shown)
        self._module = module
        self._strength = strength
        self._rope = rope
        self._modulation = modulation
        self._prefix = prefix
        self._segments = segments
        self._calls = 0
        self.kept: list[KeyValues] = []  # x's own where nothing stands before it, one a block so far

    def __call__(self, x: mx.array) -> mx.array:
        index, rest = divmod(self._calls, EVERY)
        self._calls += 1
        if rest:
            return x
        block, prefix = self._module.control_blocks[index], self._prefix[index] if self._prefix else None
        (c,) = mx.depends([self._stream], [x])  # left to MLX, both blocks' activations would be there at once
        self._stream, pair = block(c, self._rope, self._modulation, prefix=prefix, segments=self._segments)
        if prefix is None:
            self.kept.append(pair)
        return x + self._strength * block.after_proj(self._stream)


class QwenImage21ControlNetwork(ControlNetwork):
    every_branch: ClassVar[bool] = True  # it runs on each branch's own text
    fills = True

    def __init__(self, name: str, where: Path, model: QwenImage21Config, transforms: WeightTransforms):
        """`where`: a file, or a folder with one. `model`: the transformer's config; the file has none of its own."""
        checkpoint = open_checkpoint(where)
        if not is_fun_network(checkpoint):
            raise another_network(where, "Qwen-Image-2.1 takes Fun control networks that are made for it")
        dims, channels = (*shape(checkpoint, f"{EMBEDDER}.weight"), 0, 0)[:2]  # of a damaged file it may have no axes
        blocks = count(checkpoint, r"control_blocks\.(\d+)\.")
        _check_sizes(where, model, dims, channels, blocks)
        heads = model.num_attention_heads
        super().__init__(name, where, lambda: FunControlNet(model), heads, transforms, from_single_file)
        self.prefix_values = 2 * blocks * model.inner_dim

    @property
    def module(self) -> FunControlNet:
        """Loaded."""
        module = self.component.load()
        assert isinstance(module, FunControlNet)
        return module

    def check(self, picture: ControlPicture, masked: bool, strength: float) -> None:
        if picture.kind != INPAINT:
            super().check(picture, masked, strength)
        elif not masked:
            raise RequestError(
                f"control: kind {INPAINT} fills a hole; give image with mask, mask_box, expand or place, or leave kind "
                "out."
            )
        if masked and strength != 1:
            raise RequestError(f"control: {self.name} fills the hole from noise; give strength 1, not {strength:g}.")


def shown_channels(config: QwenImage21Config) -> int:
    """Of a token: a picture to follow, 1 where the given picture is kept, and its latents around the hole."""
    return 2 * config.in_channels + 1


def _check_sizes(where: Path, model: QwenImage21Config, dims: int, channels: int, blocks: int) -> None:
    for what, found, expected in (
        (f"{EMBEDDER} gives tokens of the width", dims, model.inner_dim),
        (f"{EMBEDDER} reads so many channels:", channels, shown_channels(model)),
        ("blocks are", blocks, model.num_layers // EVERY),
    ):
        if found != expected:
            raise ConfigError(
                f"{where}: its {what} {found}, where this model needs {expected}: the control network is of another "
                "model, or not complete. Choose one that is made for it."
            )
