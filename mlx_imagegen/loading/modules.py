"""A module tree as layers: the modules that have parameters of their own, by path.

Must not know: checkpoints, what the layers compute.
"""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that has parameters of its own, in the checkpoint's order."""
    if own_parameters(module):
        yield "", module
    named: list[tuple[str, nn.Module]] = module.named_modules()  # type: ignore[no-untyped-call]
    for path, layer in reversed(named):
        if path and own_parameters(layer):
            yield path, layer


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def own_parameters(layer: nn.Module) -> dict[str, mx.array]:
    return {name: value for name, value in layer.items() if isinstance(value, mx.array) and not name.startswith("_")}
