"""Stores equal files of tests/data once: the others are deleted, and shared.json says where each one is.

    python tests/references/share.py

tests/draw.py puts them back in its copy. Folders that tests read in place, not in that copy, are left alone. To be run
after a draw was stored.
"""

import json
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
READ_IN_PLACE = ("comfy", "hidream_o1/recorded", "lora", "names", "random", "schedules")
LEAST_BYTES = 1000


def main() -> None:
    listing = DATA / "shared.json"
    shared: dict[str, str] = json.loads(listing.read_text()) if listing.exists() else {}
    first: dict[bytes, str] = {}
    for path in sorted(DATA.rglob("*"), key=lambda path: (len(path.parts), path)):
        name = path.relative_to(DATA).as_posix()
        if not path.is_file() or path.stat().st_size < LEAST_BYTES or name.startswith(READ_IN_PLACE):
            continue
        source = first.setdefault(path.read_bytes(), name)
        if source != name:
            shared[name] = source
            path.unlink()
    # A file that was drawn again differs now, and is no longer shared.
    shared = {name: source for name, source in shared.items() if not (DATA / name).exists()}
    listing.write_text(json.dumps(dict(sorted(shared.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
