"""Progress on stderr: one bar at a time, only on a terminal; lines for people otherwise."""

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..result import StepEvent


class Progress:
    """A context: whatever happens inside, no bar is left open."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.bars = not quiet and sys.stderr.isatty()
        self._bar: Any = None
        self._of: object = None  # what the open bar counts
        self._noted: set[str] = set()
        if quiet:
            _silence_downloads()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def loading(self, component: str, done: int, total: int) -> None:
        self._show(f"load {component}", done, total, unit="B", unit_scale=True)
        if done >= total:
            self.clear()

    def converting(self, component: str, done: int, total: int) -> None:
        """In weights, whatever they take on the disk."""
        self._show("quantize", done, total, unit=" weights", unit_scale=True)

    def writing(self, count: int) -> None:
        """Of a caption, whose length nobody knows, tokens so far."""
        self._show("caption", count, None, unit=" tokens")

    def step(self, event: "StepEvent") -> None:
        of = f"picture {event.picture + 1}/{event.pictures}" if event.pictures > 1 else "steps"
        self._show(of, event.step, event.steps, unit="step")

    def steps(self, done: int, total: int) -> None:
        """Of all pictures, where several are drawn at once."""
        self._show("all pictures", done, total, unit="step")

    def say(self, line: str) -> None:
        if not self.quiet:
            self.clear()
            print(line, file=sys.stderr, flush=True)

    def note(self, *notes: str) -> None:
        """Says each once, of however many pictures it is true."""
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                self.say(f"note: {note}")

    def clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = self._of = None

    def _show(self, of: str, done: int, total: int | None, **style: Any) -> None:
        if not self.bars:
            return
        if of != self._of:
            from tqdm import tqdm

            self.clear()
            self._bar, self._of = tqdm(desc=of, total=total, leave=False, file=sys.stderr, **style), of
        self._bar.update(done - self._bar.n)


def _silence_downloads() -> None:
    """The hub's client draws its own bars."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
