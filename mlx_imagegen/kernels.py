"""Which way a packed layer is multiplied: by MLX's quantized kernel, or unpacked first; measured once, then remembered.

In: a loaded module and how many tokens each of its linear layers will see. Out: every packed layer's `kernel`, and a
line for the report. The two ways differ in the last bits, so that a choice that changed from run to run would change a
seed's picture: what was measured is written down, by device, system, MLX version, use of matrix units, dtype, packing
and shape, and not measured again.
Must not know: families, files of checkpoints.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx

from .cache import cache_folder, keep_entries, recall_entries
from .layers.linear import DENSE, PACKED, Linear, Packing, default_kernel, packed_matmul
from .machine import machine
from .precision import dtype_name, on_gpu

# The other way than the default has to be so much faster: less is noise.
MARGIN = 1.05
# A few rows are read once either way, and unpacking them would only add the writing.
FEW_TOKENS = 8
ROUNDS = 3
ROUND_SECONDS = 0.05
QUEUED = 8  # products at a time, as in a real step; each may hold its unpacked weight, 75 MB in FLUX.1
# A trial's arithmetic, so that measuring stays quick. Rows of the weight are cut to it: that shortens the unpacking and
# the product equally, where cutting tokens would make the unpacking weigh more than it does.
TRIAL_FLOPS = {"gpu": 4e11, "cpu": 1e8}
FEWEST_ROWS = 64

Choice = dict[str, Any]


def choose(layers: Iterable[tuple[Linear, int]], dtype: mx.Dtype, cache: Path | None = None) -> str | None:
    """Sets `kernel` on every packed layer; says what was chosen, None if nothing is packed."""
    path = cache or cache_file()
    here = machine()
    known, new = _known(path), False
    chosen: Counter[str] = Counter()
    for layer, tokens in layers:
        if layer.packing is None:
            continue
        rows = layer.weight.shape[0]
        columns = layer.weight.shape[1] * 32 // layer.packing.bits
        key = _key(here, tokens, rows, columns, layer.packing, dtype)
        if key not in known:
            known[key], new = _measured(tokens, rows, columns, layer.packing, dtype), True
        layer.kernel = known[key]["kernel"]
        chosen[layer.kernel] += 1
    kept = keep_entries(path, known | _known(path)) if new else True  # another process's choices stay
    if not chosen:
        return None
    words = ", ".join(f"{name} for {count} layer{'s' * (count > 1)}" for name, count in chosen.most_common())
    when = "measured now" if new else "as measured before"
    return f"{words} ({when}{'' if kept else f'; {path} cannot be written, so another run may choose otherwise'})"


def cache_file() -> Path:
    return cache_folder() / "kernels.json"


def _measured(tokens: int, rows: int, columns: int, packing: Packing, dtype: mx.Dtype) -> Choice:
    if tokens <= FEW_TOKENS:
        return {"kernel": PACKED}
    limit = int(TRIAL_FLOPS["gpu" if on_gpu() else "cpu"] / (2.0 * tokens * columns))
    seconds = measure(tokens, min(rows, max(FEWEST_ROWS, limit)), columns, packing, dtype)
    usual = default_kernel()
    other = DENSE if usual == PACKED else PACKED
    kernel = other if seconds[other] * MARGIN < seconds[usual] else usual
    return {"kernel": kernel, **{f"{name}_seconds": value for name, value in seconds.items()}}


def measure(tokens: int, rows: int, columns: int, packing: Packing, dtype: mx.Dtype) -> dict[str, float]:
    """Seconds a product each way takes, in turns, the best of some rounds; some are queued, as in a real step."""
    x = mx.random.normal((tokens, columns), key=mx.random.key(0)).astype(dtype)
    drawn = mx.random.normal((rows, columns), key=mx.random.key(1)).astype(dtype)
    parts = mx.quantize(drawn, packing.group_size, packing.bits, mode=packing.mode)
    weight, scales, biases = (*parts, None)[:3]
    mx.eval(x, parts)

    def run(kernel: str) -> Callable[[], mx.array]:
        return lambda: packed_matmul(x, weight, scales, biases, packing, kernel)

    best = {PACKED: float("inf"), DENSE: float("inf")}
    for name in best:
        _timed(run(name), 1)  # compiles the kernel
    for _ in range(ROUNDS):
        for name, seconds in best.items():
            once = _timed(run(name), 1)
            count = max(1, min(QUEUED, int(ROUND_SECONDS / once)))
            best[name] = min(seconds, _timed(run(name), count))
    return best


def _timed(product: Callable[[], mx.array], count: int) -> float:
    started = time.perf_counter()
    mx.eval([product() for _ in range(count)])
    return (time.perf_counter() - started) / count


def _key(here: dict[str, str], tokens: int, rows: int, columns: int, packing: Packing, dtype: mx.Dtype) -> str:
    """Tokens by powers of two: nearby counts share a choice."""
    pack = f"{packing.bits}/{packing.group_size}/{packing.mode}"
    kind = dtype_name(dtype)
    where = "|".join(here[name] for name in ("device", "system", "matrix units", "mlx"))
    return f"{where}|{kind}|{pack}|{1 << (tokens - 1).bit_length()}x{rows}x{columns}"


def _known(path: Path) -> dict[str, Choice]:
    """What was measured; what another version wrote otherwise is measured again."""
    kept = recall_entries(path).items()
    return {key: each for key, each in kept if isinstance(each, dict) and each.get("kernel") in (PACKED, DENSE)}
