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
from typing import Any

import mlx.core as mx

from ...errors import ConfigError, RequestError
from ...layers.linear import Linear
from ...layers.rope import Rope
from ...loading.checkpoint import open_checkpoint
from ...loading.component import Component
from ...loading.tensors import name_tensors
from ...loading.weights import WeightTransforms, check_tensors
from ...precision import compute_dtype
from ...sampling import Schedule
from ..base import LastValueCache
from ..controls import (
    ControlNetwork,
    ControlPicture,
    EncodedControl,
    check_widths,
    component_name,
    read_network_config,
    spread,
)
from .config import QwenImageConfig, QwenImageControlConfig
from .modulation import QwenImageModulators, tabulate
from .transformer import Modulation, QwenImageBlocks


class QwenImageControlNet(QwenImageBlocks):
    def __init__(self, config: QwenImageControlConfig):
        super().__init__(config)
        dims = config.inner_dim
        self.controlnet_blocks = [Linear(dims, dims) for _ in range(config.num_layers)]
        self.controlnet_x_embedder = Linear(config.in_channels + config.extra_condition_channels, dims)

    def __call__(
        self, x: mx.array, embedded: mx.array, txt: mx.array, rope: Rope, modulation: Modulation
    ) -> list[mx.array]:
        """An output for each block, [B, L, D]. `embedded`: the picture, through controlnet_x_embedder."""
        img, txt = self.img_in(x) + embedded, self.txt_in(self.txt_norm(txt))
        outputs = []
        for index, block in enumerate(self.transformer_blocks):
            img_mod, txt_mod = modulation.of_image(index, (img.shape[1], 0)), modulation.of_text(index, txt.shape[1])
            img, txt = block(img, txt, rope, img_mod, txt_mod)
            outputs.append(self.controlnet_blocks[index](img))
        return outputs


class QwenImageControlNetwork(ControlNetwork):
    def __init__(self, name: str, folder: Path, model: QwenImageConfig, transforms: WeightTransforms):
        """`model`: the transformer's config, whose widths the network's must be."""
        data, path = read_network_config(folder, "Qwen-Image")
        self.name = name
        self.config = QwenImageControlConfig.read(data, path)
        check_widths(self.config, model, ("in_channels", "joint_attention_dim", "inner_dim"), path)
        if self.config.extra_condition_channels not in (0, self.config.patch_size**2):
            raise ConfigError(
                f"{path}: 'extra_condition_channels' is {self.config.extra_condition_channels}; this port has networks "
                f"with none, or with the {self.config.patch_size**2} of a mask."
            )
        named = name_tensors(component_name(name), open_checkpoint(folder), config=data)
        trees = [QwenImageControlNet(self.config), QwenImageModulators(self.config)]
        weights = check_tensors(named, trees, transforms=transforms)
        self.component = Component(
            weights, lambda: QwenImageControlNet(self.config), compute_dtype(), heads=self.config.num_attention_heads
        )
        self._tables = LastValueCache[tuple[Modulation, ...]]()

    @property
    def fills(self) -> bool:
        """Whether it is shown a hole."""
        return self.config.extra_condition_channels > 0

    def tables(self, schedule: Schedule) -> tuple[Modulation, ...]:
        """A modulation a step, the same for every prompt."""
        timesteps, fill = schedule.timesteps, self.component.weights.fill
        return self._tables.get(
            tuple(timesteps), lambda: tabulate(self.config, fill, timesteps, compute_dtype()).steps()
        )

    def forget(self) -> None:
        self._tables.forget()

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

    def embed(self, control: EncodedControl) -> mx.array:
        """Once a picture: what all steps read of it."""
        module: Any = self.network.component.load()
        embedded: mx.array = module.controlnet_x_embedder(control.condition.astype(compute_dtype()))
        mx.eval(embedded)
        return embedded

    def residuals(
        self, x: mx.array, index: int, embedded: mx.array, kind: str | None, strength: float
    ) -> list[mx.array]:
        outputs = self.network.component.load()(x, embedded, self.txt, self.rope, self.modulation[index])
        return spread([output * strength for output in outputs], self.depth)
