"""A module tree as layers: the modules that have parameters of their own, by path.

Must not know: checkpoints, what the layers compute.
"""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that has parameters of its own, in the checkpoint's order."""
    if own_parameters(module):
        yield "", module
    named: list[tuple[str, nn.Module]] = []
    _gather(module, "", named)
    for path, layer in named:
        if own_parameters(layer):
            yield path, layer


def _gather(tree: dict[str, Any] | list[Any], prefix: str, named: list[tuple[str, nn.Module]]) -> None:
    """What `named_modules` gives, in a quarter of its time: models have thousands of modules, and a plan asks often."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list)):
            path = f"{prefix}{name}"
            _gather(value, f"{path}.", named)
            if isinstance(value, nn.Module):
                named.append((path, value))


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def own_parameters(layer: nn.Module) -> dict[str, mx.array]:
    return {name: value for name, value in layer.items() if isinstance(value, mx.array) and not name.startswith("_")}
