"""How much each input of a linear layer counts, as far as the weights alone say it.

A layer that reads a norm's output is given inputs of the size of that norm's own weight: all channels left the division
with about the same size. An error in a column of such a layer then comes out gamma squared as large, and the search for
scales can spend its steps where they show. Nothing has to be drawn for it.
In: a layer's path and the tensors beside it. Out: [columns], or None where no norm's weight stands before the layer: a
product, an attention, or a norm whose scale comes from the timestep.
Must not know: bits, recipes, files.
"""

import math
import re
from collections.abc import Callable

import mlx.core as mx
import numpy as np

FLOOR = 0.01  # of the mean: a channel that the norm shuts out is still rounded to something near
# A linear layer's path -> the norm that it reads, in the checkpoints' names.
NORMS = tuple(
    (re.compile(linear), norm)
    for linear, norm in (
        (r"(.*\.)self_attn\.[qkv]_proj", r"\1input_layernorm"),  # the decoders of Qwen-Image and HiDream-O1
        (r"(.*\.)mlp\.(?:gate|up)_proj", r"\1post_attention_layernorm"),
        (r"(.*\.)?final_layer2\.linear", r"\1language_model.norm"),
        (r"(.*\.layer\.0\.)SelfAttention\.[qkv]", r"\1layer_norm"),  # T5
        (r"(.*\.layer\.1\.)DenseReluDense\.wi_\d", r"\1layer_norm"),
    )
)


def importance(path: str, tensor: Callable[[str], mx.array | None]) -> np.ndarray | None:
    """For the linear layer at `path`. `tensor`: one of its component's by name, or None if there is none."""
    for linear, norm in NORMS:
        found = linear.fullmatch(path)
        gamma = tensor(f"{found.expand(norm)}.weight") if found else None
        if gamma is not None:
            squares = np.array(gamma.astype(mx.float32)).reshape(-1) ** 2
            # fsum: the same number on every machine, however wide its vectors are
            return squares + np.float32(FLOOR * math.fsum(squares) / len(squares) + 1e-20)
    return None
