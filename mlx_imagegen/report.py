"""The report of a run: seconds per stage and step, peak memory, versions, and what was chosen and why.

In: the code that runs a stage times it here. Out: a plain dict for JSON, metadata and tables.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .footprint import process_peak_bytes
from .machine import machine


@dataclass
class Report:
    """Seconds are wall-clock time; `step_seconds` has one entry per step, which includes its mx.eval."""

    load_seconds: float = 0.0
    upsample_seconds: float = 0.0  # of writing the prompt's caption
    encode_seconds: float = 0.0
    prepare_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    decode_seconds: float = 0.0
    other_seconds: float = 0.0  # the schedule, the noise, the solver, freeing weights, the record
    mlx_peak_bytes: dict[str, int] = field(default_factory=dict)  # by stage
    process_peak_bytes: int = 0
    process_peaks: dict[str, int] = field(default_factory=dict)  # the same at the end of each stage
    choices: dict[str, str] = field(default_factory=dict)  # what was chosen, and why
    notes: list[str] = field(default_factory=list)  # what the user should know
    ranks: list[dict[str, Any]] = field(default_factory=list)  # each rank's seconds, if several drew it together

    @property
    def total_seconds(self) -> float:
        before = self.load_seconds + self.upsample_seconds + self.encode_seconds + self.prepare_seconds
        return before + sum(self.step_seconds) + self.decode_seconds + self.other_seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to `<name>_seconds` and records the peak of MLX's memory."""
        mx.reset_peak_memory()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.mlx_peak_bytes[name] = max(mx.get_peak_memory(), self.mlx_peak_bytes.get(name, 0))
            self.process_peak_bytes = self.process_peaks[name] = process_peak_bytes()
            if name != "step":  # the loop times its own steps
                key = f"{name}_seconds"
                setattr(self, key, getattr(self, key) + time.perf_counter() - started)

    def note(self, *notes: str) -> None:
        """Keeps notes in order, each once."""
        self.notes += [note for note in notes if note not in self.notes]

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": {
                "load": self.load_seconds,
                **({"upsample": self.upsample_seconds} if self.upsample_seconds else {}),
                "encode": self.encode_seconds,
                "prepare": self.prepare_seconds,
                "steps": self.step_seconds,
                "decode": self.decode_seconds,
                "other": self.other_seconds,
                "total": self.total_seconds,
            },
            "peak_bytes": {
                "mlx": self.mlx_peak_bytes,
                "process": self.process_peak_bytes,
                "process_after": self.process_peaks,
            },
            "choices": self.choices,
            "notes": self.notes,
            **({"ranks": self.ranks} if self.ranks else {}),
            "machine": machine(),
        }
