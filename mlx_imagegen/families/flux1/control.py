"""FLUX.1's control networks: some of the transformer's blocks again, which look at a control picture as well.

InstantX' and Shakker's read the picture's latents; the unions among them are told what kind of picture it is. XLabs'
look at its pixels through a few convolutions.
In: a network's files; at every step the picture's latents, the control picture and the prompt. Out: `Residuals` for the
transformer's blocks.
Must not know: which blocks they are added to in the transformer, requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ...errors import ConfigError
from ...layers.activation import silu
from ...layers.linear import Linear
from ...layers.patches import patchified
from ...layers.rope import Rope
from ...loading.weights import WeightTransforms
from ..controls import ControlNetwork, check_widths, read_network_config, spread
from .config import FluxConfig, FluxControlConfig
from .modulation import FluxModulators, PromptTables
from .transformer import FluxBlocks, Modulation, Residuals

CLASS = "FluxControlNetModel"
# What a union's pictures are, in the order of its embedding.
KINDS = ("canny", "tile", "depth", "blur", "pose", "gray", "lq")
HINT_CHANNELS, HINT_HALVINGS = 16, 3  # of XLabs' convolutions; fixed in diffusers' code


class FluxControlNet(FluxBlocks):
    def __init__(self, config: FluxControlConfig):
        super().__init__(config)
        dims = config.inner_dim
        self.controlnet_x_embedder = Linear(config.in_channels, dims)
        self.controlnet_blocks = [Linear(dims, dims) for _ in range(config.num_layers)]
        self.controlnet_single_blocks = [Linear(dims, dims) for _ in range(config.num_single_layers)]
        if config.num_mode:
            self.controlnet_mode_embedder = nn.Embedding(config.num_mode, dims)
        if config.conditioning_embedding_channels:
            self.input_hint_block = Hint(config.conditioning_embedding_channels)
        self._patch_size = config.patch_size

    def embed(self, condition: mx.array) -> mx.array:
        """Latents [B, L, C], or for XLabs' pixels [B, H, W, 3] -> [B, L, D], the same at every step."""
        if "input_hint_block" in self:
            features = self.input_hint_block(condition).transpose(0, 3, 1, 2)
            condition = patchified(features, self._patch_size)
        embedded: mx.array = self.controlnet_x_embedder(condition)
        return embedded

    def __call__(
        self, x: mx.array, embedded: mx.array, txt: mx.array, rope: Rope, modulation: Modulation, mode: int | None
    ) -> tuple[list[mx.array], list[mx.array]]:
        """An output for each double and each single block, [B, L, D]. `rope`: with a place for the mode's token."""
        img = self.x_embedder(x) + embedded
        txt = self.context_embedder(txt)
        if mode is not None:
            token = self.controlnet_mode_embedder(mx.array([[mode]])).astype(txt.dtype)
            txt = mx.concatenate([token, txt], axis=1)
        doubles, singles = [], []
        for index, double in enumerate(self.transformer_blocks):
            img, txt = double(img, txt, rope, modulation.img[index], modulation.txt[index])
            doubles.append(self.controlnet_blocks[index](img))
        x = mx.concatenate([txt, img], axis=1)
        for index, single in enumerate(self.single_transformer_blocks):
            x = single(x, rope, modulation.single[index])
            singles.append(self.controlnet_single_blocks[index](x[:, txt.shape[1] :]))
        return doubles, singles


class Hint(nn.Module):
    """XLabs' convolutions, pixels -> features an eighth as large."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, HINT_CHANNELS, 3, padding=1)
        self.blocks = [
            nn.Conv2d(HINT_CHANNELS, HINT_CHANNELS, 3, stride, padding=1)
            for _ in range(HINT_HALVINGS)
            for stride in (1, 2)
        ]
        self.conv_out = nn.Conv2d(HINT_CHANNELS, channels, 3, padding=1)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = silu(self.conv_in(pixels))
        for block in self.blocks:
            x = silu(block(x))
        out: mx.array = self.conv_out(x)
        return out


class FluxControlNetwork(ControlNetwork):
    modulation: PromptTables

    def __init__(self, name: str, folder: Path, model: FluxConfig, transforms: WeightTransforms):
        """`model`: the transformer's config, whose widths the network's must be."""
        data, path = read_network_config(folder, "FLUX.1")
        _check_class(data.get("_class_name"), path)
        config = FluxControlConfig.read(data, path)
        check_widths(config, model, ("in_channels", "joint_attention_dim", "pooled_projection_dim", "inner_dim"), path)
        super().__init__(
            name, folder, lambda: FluxControlNet(config), config.num_attention_heads, transforms,
            config=data, others=[FluxModulators(config)],
        )  # fmt: skip
        self.modulation = PromptTables(config, self.component.weights)
        self.kinds = KINDS[: config.num_mode] if config.num_mode else ()
        self.reads_pixels = bool(config.conditioning_embedding_channels)


@dataclass(frozen=True)
class ControlPass:
    """A network, for one prompt."""

    network: FluxControlNetwork
    txt: mx.array  # [1, T, D]
    rope: Rope
    modulation: Sequence[Modulation]  # one a step
    depths: tuple[int, int]  # the transformer's double and single blocks

    def residuals(self, x: mx.array, index: int, embedded: mx.array, kind: str | None, strength: float) -> Residuals:
        mode = self.network.kinds.index(kind) if kind is not None and self.network.kinds else None
        samples = self.network.component.load()(x, embedded, self.txt, self.rope, self.modulation[index], mode)
        double, single = ([sample * strength for sample in each] for each in samples)
        repeat = self.network.reads_pixels  # XLabs' outputs come by turns
        return Residuals(spread(double, self.depths[0], repeat), spread(single, self.depths[1]))


def _check_class(name: object, path: Path) -> None:
    if name != CLASS:
        raise ConfigError(f"{path}: this is {name or 'no named class'}, not a control network of FLUX.1 ({CLASS}).")
