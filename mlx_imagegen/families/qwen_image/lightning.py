"""What a Lightning LoRA's file name says: its tensors fit every Qwen-Image.

In: the manifest of the model that is open, and a file's name. Out: notes for the user. Must not know: tensors.
"""

import re
from collections.abc import Iterator

from ...hub.manifest import Manifest, manifests

NAME = re.compile(r"(?P<base>Qwen-Image(-Edit)?(-\d{4})?)-Lightning-(?P<steps>\d+)steps", re.IGNORECASE)
SHIFT = 3  # of every Lightning's schedule


def lightning_notes(manifest: Manifest, name: str) -> Iterator[str]:
    """For a Lightning LoRA that was given by hand: what it was made on, and how it runs."""
    match = NAME.match(name)
    if match is None:
        return
    base, steps = match["base"], int(match["steps"])
    title = (manifest.repo or manifest.title).rpartition("/")[2]
    if base.lower() != title.lower():
        yield (
            f"{name} is by its name for {base}, and this model is opened as {title}; their tensors have the "
            "same names and shapes, so that only you can tell whether the two belong together"
        )
    if manifest.guidance != "never":
        ready = _ready_made(base, steps)
        yield (
            f"{name} is by its name made for steps {steps}, guidance 1 and shift {SHIFT}, and gives poor pictures with "
            f"{manifest.name}'s own; set these" + (f", or use the model {ready}, which has them" if ready else "")
        )


def _ready_made(base: str, steps: int) -> str | None:
    """The manifest that merges such a LoRA by itself."""
    for manifest in manifests().values():
        match = NAME.match(manifest.extras.get("lora", {}).get("file", ""))
        if match and (match["base"].lower(), int(match["steps"])) == (base.lower(), steps):
            return manifest.name
    return None
