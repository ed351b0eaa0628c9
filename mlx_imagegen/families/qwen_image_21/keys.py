"""Names of Qwen-Image-2.1's transformer in other layouts than diffusers', which our modules are named after."""

import re
from collections.abc import Iterable, Mapping

from ...loading.names import RowRange

FUSED, PARTS = "img_mlp.gate_up", ("img_mlp.gate_layer", "img_mlp.proj")
PREFIX = "model.diffusion_model."


def from_single_file(name: str) -> Iterable[RowRange]:
    """ComfyUI's file: the MLP's two inputs in one weight, the gate's rows first; perhaps a prefix before all names."""
    name = name.removeprefix(PREFIX)
    if FUSED not in name:
        return [RowRange(name)]
    return [RowRange(name.replace(FUSED, part), index, 1, len(PARTS)) for index, part in enumerate(PARTS)]


def lora_names(component: str, modules: Iterable[str]) -> Mapping[str, list[RowRange]]:
    """What LoRAs trained on the single file call modules in other words than ours."""
    if component != "transformer":
        return {}
    blocks = sorted({number for module in modules for number in re.findall(r"^transformer_blocks\.(\d+)\.", module)})
    return {
        name: [RowRange(target.name, target.start, target.share, target.of) for target in from_single_file(name)]
        for name in (f"transformer_blocks.{number}.{FUSED}" for number in blocks)
    }
