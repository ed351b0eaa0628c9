"""PEFT's configuration of an adapter: how strong a LoRA is, where its file alone does not say.

In: a file's metadata (diffusers), or the adapter_config.json next to it. Out: `AdapterConfig`s, checked.
Must not know: tensors.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import parse_object, read_json
from ..errors import LoraError
from ..escaping import quoted, shown

PEFT_CONFIG = "adapter_config.json"
ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers' key in a file's own metadata
# PEFT's ways to begin that take the LoRA's first values out of the base, or pack it: the file alone does not say how.
OTHER_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga")
PATTERN_LENGTH, PATTERN_REPEATS = 500, 3  # of a regular expression in a configuration
LARGEST_RANK, LARGEST_ALPHA = 2**16, 1e9


@dataclass(frozen=True)
class AdapterConfig:
    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "AdapterConfig":
        ranks = {_pattern(name): _positive(value) for name, value in dict(data.get("rank_pattern") or {}).items()}
        alphas = {_pattern(name): _finite(value) for name, value in dict(data.get("alpha_pattern") or {}).items()}
        alpha = _finite(data.get("lora_alpha", data.get("alpha", data["r"])))
        rslora = data.get("use_rslora") or False
        if not isinstance(rslora, bool):  # "false" would count as true
            raise ValueError(f"use_rslora is {quoted(rslora)}")
        return cls(_positive(data["r"]), alpha, ranks, alphas, rslora)

    def scale(self, module: str, rank: int | None) -> float:
        rank = rank or _of_pattern(self.rank_pattern, module, self.r)
        alpha: float = _of_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_configs(path: Path, metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """Configurations by the prefix of the modules they are for ("" for all)."""
    config_path = path.with_name(PEFT_CONFIG)
    tables: dict[str, dict[str, Any]] = {}
    try:
        again = "take the file from the LoRA's repository"
        flat = parse_object(metadata.get(ADAPTER_METADATA, "{}"), f"{path}: '{ADAPTER_METADATA}'", LoraError, again)
        if not flat and config_path.is_file():
            flat = read_json(config_path, LoraError)
        for key, value in flat.items():
            prefix, _, name = key.rpartition(".")
            tables.setdefault(prefix, {})[name] = value
        configs = {prefix: AdapterConfig.read(table) for prefix, table in tables.items() if "r" in table}
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError, re.error) as error:
        raise LoraError(
            f"{path}: the adapter's configuration cannot be read ({shown(str(error), 200)}), so its strength is "
            f"unknown. It is in the file's metadata '{ADAPTER_METADATA}' or in {config_path.name}; take both from the "
            "LoRA's repository."
        ) from error
    initializers = [table["init_lora_weights"] for table in tables.values() if "init_lora_weights" in table]
    if other := next(filter(OTHER_BASE.match, map(str, initializers)), None):
        raise LoraError(
            f"{path} was started with '{other}', which changes the base weights, and those are not in the file; "
            "merged into others it would damage them. Save it again as a plain LoRA: PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion does that."
        )
    return configs


def configured_scale(configs: Mapping[str, AdapterConfig], module: str) -> Callable[[int | None], float] | None:
    """The configuration for a module: of the longest prefix that it begins with."""
    fitting = [prefix for prefix in configs if not prefix or module.startswith(f"{prefix}.")]
    if not fitting:
        return None
    prefix = max(fitting, key=len)
    bare = module.removeprefix(f"{prefix}.").removeprefix("base_model.model.")
    return functools.partial(configs[prefix].scale, bare)


def _pattern(text: str) -> str:
    """A regular expression that is done soon with every name: no group repeats, and few characters do."""
    plain = re.sub(r"\\.|\[\]?[^]]*\]|\(\?[:=!]", "", text)
    if (
        len(text) > PATTERN_LENGTH
        or re.search(r"\)[*+{]", plain)
        or len(re.findall(r"[*+{?]", plain)) > PATTERN_REPEATS
    ):
        raise ValueError(f"the pattern {quoted(text)} is too long or repeats too much")
    re.compile(text)
    return text


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= int(value) <= LARGEST_RANK:
        raise ValueError(f"a rank of {quoted(value)}")
    return int(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_ALPHA:
        raise ValueError(f"an alpha of {quoted(value)}")
    return float(value)


def _of_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """PEFT's rule: a pattern is the end of a module's name, at a dot."""
    ends = [module, *(module[dot.end() :] for dot in re.finditer(r"\.", module))]
    return next(
        (value for pattern, value in patterns.items() if any(re.fullmatch(pattern, end) for end in ends)), otherwise
    )
