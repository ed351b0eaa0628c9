"""`info FILE`: how a picture was made, from the record inside the PNG; or what a model's folder or file is."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..escaping import printable
from ..paths import expanded
from .flags import as_path


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=as_path, help="a PNG made by mlx-imagegen, a model's folder, or a .safetensors or .gguf file"
    )
    parser.add_argument("--comfy", metavar="DIR", help="ComfyUI's folder, where what goes with a file is found")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def run(args: argparse.Namespace) -> None:
    record = _record(expanded(args.file))
    if args.json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
        return
    lines = list(_lines(record))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(printable(f"{name:<{width}}  {value}"))


def _record(path: Path) -> dict[str, Any]:
    from ..hub.comfy import is_model_file

    if is_model_file(path):
        from ..hub.file_info import file_info

        return file_info(path)
    if path.is_dir():
        from ..hub.file_info import folder_info

        return folder_info(path)
    from ..image import read_metadata

    return read_metadata(path)


def _lines(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested records as dotted names; numbers short enough to read; sentences a line each."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            if all(str(each).endswith(".") for each in value):
                yield from ((prefix + name, str(each)) for each in value)
            else:
                yield prefix + name, ", ".join(map(_short, value))
        elif value is not None:
            yield prefix + name, _short(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
