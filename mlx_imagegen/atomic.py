"""A file that is there whole, as it was or as it is now, and never half.

Must not know: what files hold.
"""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, of which no other process or thread knows, and which takes its name at the
    end. If it does not come to that, by Ctrl-C either, nothing of it is left."""
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
