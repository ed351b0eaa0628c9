"""The model and the LoRAs that the picture of --from names: at the record's revision, and fetched only after a yes.

A picture may come from anyone: what its record names is not downloaded because the record says so.
Must not know: what a prompt says, how pictures are drawn.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RequestError, UnknownModelError
from ..paths import expanded
from .confirm import confirm
from .requests import read_requests


def read_record_and_requests(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The record of --from; how to open the model, after a yes to the record's own downloads; the requests."""
    from ..image import read_metadata

    opening, requests = read_requests(args)
    if not args.replay:
        return {}, opening, requests
    record = read_metadata(expanded(args.replay))
    recorded = {name: value for name, value in opening.items() if getattr(args, name) is None}
    if "model" in recorded:
        recorded["model"] = at_recorded_revision(recorded["model"], record)
    check_downloads(args.replay, recorded, args.yes)
    return record, opening | recorded, requests


def at_recorded_revision(model: str, record: Mapping[str, Any]) -> str:
    """A repository's name with the commit that the picture was made with; other names as they are."""
    from ..hub.download import REPOSITORY
    from ..hub.manifest import manifests
    from ..hub.recognition import find
    from ..hub.record import COMMIT

    revision = record.get("revision")
    if not isinstance(revision, str) or not COMMIT.fullmatch(revision):
        return model
    try:
        found = find(model)
    except UnknownModelError:
        return f"{model}@{revision}" if REPOSITORY.fullmatch(model) else model
    known = manifests()[found.manifest.name]
    return model if found.folder or known.revision == revision else f"{model}@{revision}"


def check_downloads(path: Path, recorded: Mapping[str, Any], sure: bool) -> None:
    """Asks before anything is fetched that the record alone names; `recorded`: what comes from it and no flag."""
    from ..hub.download import is_local
    from ..lora.file import is_local as is_local_lora

    models = [recorded["model"]] if "model" in recorded else []
    items = recorded.get("lora") or []
    files = [str(item[0] if isinstance(item, list | tuple) and item else item) for item in items]
    wanted = [
        *(f"the model {model}" for model in models if not is_local(model)),
        *(f"the LoRA {file}" for file in files if not is_local_lora(file)),
    ]
    if not wanted or sure or confirm(f"{path} asks for a download: {', '.join(wanted)}. Go on?"):
        return
    raise RequestError(
        f"{path} asks for a download, and nothing was fetched: {', '.join(wanted)}. Add --yes if you trust it, or name "
        "the model and LoRAs yourself (--model, --lora)."
    )


def revision_notes(path: Path, record: Mapping[str, Any], model: str, revision: str | None) -> list[str]:
    """Says where the model that is open is of another commit than the record's."""
    from ..request.record_paths import is_same_place

    recorded = record.get("revision")
    if recorded == revision or not recorded or not is_same_place(record.get("model"), model):
        return []
    here = f"revision {revision[:12]}" if revision else "a copy that names no revision"
    return [f"{path} was made with revision {str(recorded)[:12]} of {model}, this is {here}: the picture may differ"]
