"""Random weights that are drawn from a seed wherever they are needed, so that only their description is stored.

Next to FILE.safetensors lies FILE.drawn.json: a seed, and of every tensor its shape, its mean and its spread. A number
is mean + spread * (the sum of four 16-bit integers, centred and divided by its deviation): integers of a raw generator,
so that every machine and every version of NumPy draws the same bits.
Must not know: models. Needs NumPy and safetensors alone; the scripts here also use it with torch.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

SUFFIX = ".drawn.json"
PARTS, LEVELS = 4, 2**16  # integers to a number, and how many values each has
CENTRE = PARTS * (LEVELS - 1) / 2
DEVIATION = math.sqrt(PARTS * (LEVELS**2 - 1) / 12)


class Drawn(NamedTuple):
    """How one tensor is drawn. Tensors with the same key, shape, mean and spread are equal."""

    shape: tuple[int, ...]
    mean: float
    spread: float
    key: str


Rule = Callable[[str, tuple[int, ...]], tuple[float, float]]  # a tensor's name and shape -> its mean and its spread


def unit(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of mean 0 and deviation 1, nearly normal, within 3.5 of 0; float64."""
    raw = np.random.PCG64([seed, zlib.crc32(key.encode())]).random_raw(math.prod(shape))
    sums = raw.astype("<u8").view("<u2").reshape(-1, PARTS).sum(1, dtype=np.int64)
    return ((sums - CENTRE) / DEVIATION).reshape(shape)


def signed_sums(name: str, value: np.ndarray) -> np.ndarray:
    """A matrix's rows added up, each column with a sign drawn from the name, in float64: an error in any number shows
    in its row. Vectors stay."""
    if value.ndim < 2:
        return value.astype(np.float64)
    flat = value.reshape(len(value), -1).astype(np.float64)
    return np.asarray(flat @ np.where(unit(0, name, flat.shape[1:]) < 0, -1.0, 1.0))


def tensor(seed: int, drawn: Drawn) -> np.ndarray:
    return (drawn.mean + drawn.spread * unit(seed, drawn.key, drawn.shape)).astype(np.float32)


def description_path(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(".safetensors") + SUFFIX)


def redraw(file: Path, rule: Rule, seed: int) -> None:
    """Replaces every tensor of a float32 file by a drawn one, and writes the description next to it."""
    with safe_open(file, "np") as opened:
        names, metadata = list(opened.keys()), opened.metadata()
        slices = {name: opened.get_slice(name) for name in names}
        kinds = {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    drawn = {}
    for name, (dtype, shape) in kinds.items():
        assert dtype == "F32", f"{file}: {name} is {dtype}"
        mean, spread = (float(f"{number:.6g}") for number in rule(name, shape))
        drawn[name] = Drawn(shape, mean, spread, name)
    describe(file, seed, drawn, metadata)


def describe(file: Path, seed: int, drawn: Mapping[str, Drawn], metadata: dict[str, str] | None) -> None:
    """Writes the description, a line a tensor, and the file that it describes."""
    rows = []
    for name, (shape, mean, spread, key) in sorted(drawn.items()):
        row = [list(shape), mean, spread, *([key] if key != name else [])]
        rows.append(f"{json.dumps(name)}: {json.dumps(row, separators=(',', ':'))}")
    head = f'"seed": {seed}, "metadata": {json.dumps(metadata)}, "tensors"'
    description_path(file).write_text("{" + head + ": {\n" + ",\n".join(rows) + "\n}}\n")
    write(description_path(file), file)


def read(description: Path) -> tuple[int, dict[str, Drawn], dict[str, str] | None]:
    data: dict[str, Any] = json.loads(description.read_text())
    drawn = {
        name: Drawn(tuple(shape), mean, spread, key[0] if key else name)
        for name, (shape, mean, spread, *key) in data["tensors"].items()
    }
    return data["seed"], drawn, data["metadata"]


def write(description: Path, file: Path) -> None:
    """The file that a description describes."""
    seed, drawn, metadata = read(description)
    save_file({name: tensor(seed, each) for name, each in drawn.items()}, file, metadata)


def renamed(source: Path, file: Path, names: Mapping[str, str], metadata: dict[str, str] | None = None) -> None:
    """Another file with the same numbers: `names` are its tensors', and whose they are in the source."""
    seed, drawn, _ = read(description_path(source))
    describe(file, seed, {name: drawn[theirs] for name, theirs in names.items()}, metadata)
