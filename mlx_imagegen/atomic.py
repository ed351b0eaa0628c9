"""A file that is complete, as it was before or as it is now, and never cut.

Must not know: what files hold.
"""

import contextlib
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`, known to no other process or thread, which takes its name at the
    end, and the mode of the file that it replaces. If it does not come to that, by Ctrl-C either, nothing of it is
    left."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
