"""The names in LoRA files: which module a key is for, and which part of the module's change it is.

Trainers write a module's name with dots or flattened to underscores, in the checkpoint's words or another layout's,
with a prefix of their own. A flattened name cannot be parsed back, so every name a module may go by stands in one table
(`known_names`); no two modules of a family share one.
Must not know: which layouts exist (families' keys.py), arithmetic.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from ..loading.names import RowRange

# What trainers write before a module's name; taken off one after another until the name is known.
PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "lora_unet_",
    "lora_transformer_", "lycoris_", "_",
)  # fmt: skip
# How a tensor's name ends -> which part of the module's change it is. A longer ending stands before its own tail.
PARTS = (
    (".lora_linear_layer.down.weight", "down"), (".lora_linear_layer.up.weight", "up"),
    (".lora_down.weight", "down"), (".lora_up.weight", "up"), (".lora.down.weight", "down"), (".lora.up.weight", "up"),
    (".lora_A.weight", "down"), (".lora_B.weight", "up"), (".lora_A", "down"), (".lora_B", "up"),
    (".lora_B.bias", "up_bias"), (".down.weight", "down"), (".up.weight", "up"), (".alpha", "alpha"),
    (".lora_magnitude_vector.weight", "magnitude"), (".lora_magnitude_vector", "magnitude"),
    (".dora_scale", "dora_scale"), (".diff_b", "diff_b"), (".diff", "diff"), (".b_norm", "diff_b"), (".w_norm", "diff"),
    *((f".{part}", part) for part in (
        "lokr_w1_a", "lokr_w1_b", "lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_w2",
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    )),
)  # fmt: skip
# PEFT keeps several adapters apart by a name in the middle: lora_A.default.weight.
ADAPTER = re.compile(r"\.default(_\d+)?(?=\.|$)|(?<=\.lora_[AB])\.(?!weight$|bias$)[^.]+(?=\.(weight|bias)$)")


def known_names(modules: Iterable[str], others: Mapping[str, Sequence[RowRange]]) -> dict[str, tuple[RowRange, ...]]:
    """Every name a LoRA may call a module by -> what it leads to. `others`: names of other layouts than ours."""
    known = set(modules)
    led: dict[str, tuple[RowRange, ...]] = {module: (RowRange(module),) for module in sorted(known)}
    for name, targets in others.items():
        if known.issuperset(target.name for target in targets):
            led[name] = tuple(targets)
    return led | {name.replace(".", "_"): targets for name, targets in led.items()}


# Norms of queries and keys come whole in FLUX.1's control LoRAs, in the original's names or diffusers'.
WHOLE_NORM = re.compile(r"(?P<module>.*\.(query|key)_norm)\.scale|(?P<other>.*\.norm_(added_)?[qk])\.weight")


def split_key(key: str) -> tuple[str, str] | None:
    """A LoRA tensor's name -> (prefix and module, part); None if the ending is not known."""
    key = ADAPTER.sub("", key)
    if norm := WHOLE_NORM.fullmatch(key):
        return norm["module"] or norm["other"], "replacement"
    for ending, part in PARTS:
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return None


def find_module(name: str, names: Mapping[str, tuple[RowRange, ...]]) -> str | None:
    """The name's known form, without whatever prefixes stand before it."""
    while name not in names:
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return name
