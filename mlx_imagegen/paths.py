"""Paths as users write them, and the files of a folder that are meant.

Must not know: what files hold.
"""

from pathlib import Path

from .errors import RequestError
from .escaping import quoted


def expanded(path: str | Path) -> Path:
    """With the home folder in the place of ~; a name of whose home nothing is known stays as it is."""
    try:
        path = Path(path)
    except TypeError as error:
        raise RequestError(f"{quoted(path)} is no path; give text or a pathlib.Path.") from error
    if "\0" in str(path):
        raise RequestError(f"{quoted(str(path))} is no file's name: it holds a zero character.")
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def visible(folder: Path, pattern: str) -> list[Path]:
    """Sorted, without names that begin with a dot: macOS leaves `._model.safetensors` on others' disks."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def is_file_name(name: object) -> bool:
    """Whether this can be the name of a file in a folder, and of no file outside it."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not {"/", "\\", "\0"} & set(name)
        and (len(name.encode(errors="surrogatepass")) <= 255)
    )
