"""Folding: tables for one schedule in the place of the layers that see nothing but the timestep.

`Fold` says what a family's checkpoint becomes; the converter writes it. `Folded` stands in the made component's
config.json, and says which requests the tables can serve. A table has a column for each timestep: the run of a layer's
rows that is read gives the same run of the table's, so that a folded layer streams like any other.
Must not know: families, files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, RequestError
from .hub.record import record_of, remake

# (module path, parameter) -> a tensor in full precision, every LoRA merged, in float64
Read = Callable[[str, str], np.ndarray]


@dataclass(frozen=True)
class Folded:
    """A schedule, as a made checkpoint's config.json has it: {"mlx_imagegen": {"folded": …}}."""

    steps: int
    timesteps: tuple[float, ...]  # 0..1000, falling; a column of every table each
    size: tuple[int, int] | None  # (width, height) that the schedule is for; None: it is the same for all

    @classmethod
    def read(cls, config: Mapping[str, Any], where: Path) -> "Folded | None":
        block = config.get("mlx_imagegen")
        if block is None:
            return None
        try:
            entry = block["folded"]
            size = tuple(map(int, entry["size"])) if entry["size"] else None
            return cls(int(entry["steps"]), tuple(map(float, entry["timesteps"])), size)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: 'mlx_imagegen' is damaged ({error!r}); make the folder again.") from error

    @property
    def schedule(self) -> dict[str, Any]:
        """For records."""
        return {"steps": self.steps, "size": self.size}

    def entry(self) -> dict[str, Any]:
        return {"steps": self.steps, "size": self.size, "timesteps": list(self.timesteps)}

    def columns(self, timesteps: Sequence[float]) -> list[int] | None:
        """Where the tables have these timesteps; None if one is not there. A float32 cannot tell nearer ones apart."""
        near = [int(np.argmin(np.abs(np.array(self.timesteps) - t))) for t in timesteps]
        equal = np.allclose([self.timesteps[i] for i in near], timesteps, rtol=1e-7, atol=0)
        return near if equal else None

    def check(
        self, timesteps: Sequence[float], folder: Path, steps: int, size: tuple[int, int], shift: float | None = None
    ) -> None:
        """Refuses a schedule that the tables do not hold. `shift`: asked for in place of the model's own."""
        if self.columns(timesteps) is not None:
            return
        if shift is not None:
            raise RequestError(
                f"{folder} holds the modulation of {self} in the place of its weights, and shift={shift:g} needs "
                "another. Leave shift out, or take a folder that is not folded."
            )
        command = remake(record_of(folder), fold=steps, fold_size=size if self.size else None)
        raise RequestError(
            f"{folder} holds the modulation of {self} in the place of its weights, and {steps} steps at "
            f"{_by(size)} need another. Ask for those, or make a folder for this schedule: {command}"
        )

    def __str__(self) -> str:
        at = f"{_by(self.size)} or another size of as many pixels" if self.size else "any size"
        return f"{self.steps} steps at {at}"


@dataclass(frozen=True)
class Fold:
    component: str
    folded: Folded
    linears: frozenset[str]  # paths of the layers that become tables
    gone: frozenset[str]  # paths of the layers that nothing needs any more
    count: int  # columns of a table: the timesteps, and what a family needs on top of them
    inputs: Callable[[Read], np.ndarray]  # what all those linears are given: [columns, D] in float64


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
