"""Where and with what something was measured: the machine, versions, the commit, the time.

Out: names and values for files, and a sentence for people.
"""

import datetime
import platform
import subprocess
from pathlib import Path

from ..machine import GB, machine, physical_bytes


def environment() -> dict[str, str | None]:
    return {
        **machine(),
        "memory": f"{physical_bytes() / GB:.1f} GB",
        "processor": platform.processor() or platform.machine(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def measured_on(where: dict[str, str | None]) -> str:
    return f"Measured on: {', '.join(f'{name} {value}' for name, value in where.items() if value)}."


def _commit() -> str | None:
    """Of the checkout this runs from; None where it is installed."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
