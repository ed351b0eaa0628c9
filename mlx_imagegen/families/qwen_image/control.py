"""Qwen-Image's control networks (InstantX'): some of the transformer's blocks again, which look at a picture as well.

The union sees by itself whether that shows edges, depths or a pose. Inpainting is shown a picture with a black hole,
and in a further channel where there is none.
In: a network's files; at every step the picture's latents, the control picture and the prompt. Out: what is added after
the transformer's blocks.
Must not know: requests, the autoencoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ...errors import ConfigError, RequestError
from ...layers.linear import Linear
from ...layers.rope import Rope
from ...loading.weights import WeightTransforms
from ..controls import ControlNetwork, ControlPicture, check_widths, read_network_config, spread
from ..schedule_tables import ScheduleTables
from .config import QwenImageConfig, QwenImageControlConfig
from .modulation import QwenImageModulators, steps, tabulate
from .transformer import Modulation, QwenImageBlocks


class QwenImageControlNet(QwenImageBlocks):
    def __init__(self, config: QwenImageControlConfig):
        super().__init__(config)
        dims = config.inner_dim
        self.controlnet_blocks = [Linear(dims, dims) for _ in range(config.num_layers)]
        self.controlnet_x_embedder = Linear(config.in_channels + config.extra_condition_channels, dims)

    def embed(self, condition: mx.array) -> mx.array:
        """The picture's tokens, [B, L, C] -> [B, L, D], the same at every step."""
        return self.controlnet_x_embedder(condition)

    def __call__(
        self, x: mx.array, embedded: mx.array, txt: mx.array, rope: Rope, modulation: Modulation
    ) -> list[mx.array]:
        """An output for each block, [B, L, D]."""
        img, txt = self.img_in(x) + embedded, self.txt_in(self.txt_norm(txt))
        outputs = []
        for index, block in enumerate(self.transformer_blocks):
            img_mod, txt_mod = modulation.of_image(index, (img.shape[1], 0)), modulation.of_text(index, txt.shape[1])
            img, txt = block(img, txt, rope, img_mod, txt_mod)
            outputs.append(self.controlnet_blocks[index](img))
        return outputs


class QwenImageControlNetwork(ControlNetwork):
    modulation: ScheduleTables[Modulation]

    def __init__(self, name: str, folder: Path, model: QwenImageConfig, transforms: WeightTransforms):
        """`model`: the transformer's config, whose widths the network's must be."""
        data, path = read_network_config(folder, "Qwen-Image")
        config = QwenImageControlConfig.read(data, path)
        check_widths(config, model, ("in_channels", "joint_attention_dim", "inner_dim"), path)
        if config.extra_condition_channels not in (0, config.patch_size**2):
            raise ConfigError(
                f"{path}: 'extra_condition_channels' is {config.extra_condition_channels}; this port has networks "
                f"with none, or with the {config.patch_size**2} of a mask."
            )
        modulators = QwenImageModulators(config)
        super().__init__(
            name, folder, lambda: QwenImageControlNet(config), config.num_attention_heads, transforms,
            config=data, others=[modulators],
        )  # fmt: skip
        self.fills = config.extra_condition_channels > 0
        self.modulation = ScheduleTables(self.component.weights, config, modulators, tabulate, steps)

    def check(self, picture: ControlPicture, masked: bool, strength: float) -> None:
        super().check(picture, masked, strength)
        if self.fills and not masked:
            raise RequestError(f"control: {self.name} fills a hole; give image with mask, mask_box, expand or place.")
        if self.fills and strength != 1:
            raise RequestError(f"control: {self.name} fills the hole from noise; give strength 1, not {strength:g}.")


@dataclass(frozen=True)
class ControlPass:
    """A network, for one prompt."""

    network: QwenImageControlNetwork
    txt: mx.array  # [1, T, D]
    rope: Rope
    modulation: Sequence[Modulation]  # one a step
    depth: int  # the transformer's blocks

    def residuals(
        self, x: mx.array, index: int, embedded: mx.array, kind: str | None, strength: float
    ) -> list[mx.array]:
        outputs = self.network.component.load()(x, embedded, self.txt, self.rope, self.modulation[index])
        return spread([output * strength for output in outputs], self.depth)
