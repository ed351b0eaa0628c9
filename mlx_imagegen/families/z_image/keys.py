"""Z-Image's layouts by name: ComfyUI's single file, whose attention is fused. The same table serves LoRAs in its names.

Modules carry diffusers' names, so its layout needs no table, and the two share no name that would mean another module.
"""

import re
from collections.abc import Iterable, Mapping

from ...loading.names import RowRange

PREFIX = "model.diffusion_model."  # in files that hold several models
# ComfyUI's module -> ours: the ends of the model, and what stands in a block's attention.
ENDS = {
    "x_embedder": "all_x_embedder.2-1",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
}
ATTENTION = {"qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",), "q_norm": ("norm_q",), "k_norm": ("norm_k",)}
UNUSED = "norm_final.weight"  # the last norm has no weight
IN_ATTENTION = re.compile(r"(.*\.attention)\.(\w+)$")


def from_comfyui(name: str) -> Iterable[RowRange]:
    """A name of either layout; one outside the table stays as it is."""
    name = name.removeprefix(PREFIX)
    if name == UNUSED:
        return
    module, _, kind = name.rpartition(".")
    for target in comfyui_module(module) or [RowRange(module)]:
        yield RowRange(f"{target.name}.{kind}" if module else kind, target.start, target.share, target.of)


def comfyui_module(module: str) -> list[RowRange]:
    """ComfyUI's name of a module -> ours, as runs of its rows; empty if it is not one."""
    if module in ENDS:
        return [RowRange(ENDS[module])]
    found = IN_ATTENTION.match(module)
    parts = ATTENTION.get(found[2], ()) if found else ()
    return [RowRange(f"{found[1]}.{part}", start, 1, len(parts)) for start, part in enumerate(parts)] if found else []


def lora_names(component: str, modules: Iterable[str]) -> Mapping[str, list[RowRange]]:
    """What LoRAs call modules in other words than ours."""
    if component != "transformer":
        return {}
    blocks = {found[1] for module in modules if (found := re.match(r"(.*\.attention)\.to_q$", module))}
    theirs = [*ENDS, *(f"{block}.{part}" for block in sorted(blocks) for part in ATTENTION)]
    return {name: comfyui_module(name) for name in theirs}
