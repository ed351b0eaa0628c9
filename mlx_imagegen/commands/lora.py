"""`lora FILE`: what a LoRA is made of, for which model, and what of it would find no place."""

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import json_text
from ..errors import LoraError
from ..escaping import ranged
from .plan import headers

if TYPE_CHECKING:
    from ..hub.manifest import Manifest
    from ..lora.file import LoraFile
    from ..lora.match import Match
SHOWN = 12  # leftovers that are listed
BLOCK = re.compile(r"(?<=[._])(?<!encoder_)\d+(?=[._])")  # the first number of a module's name is its block's


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .safetensors file, or owner/repository:file")
    parser.add_argument("--model", help="match it against this one (a name, a repository id or a folder)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> None:
    from ..lora.file import open_lora

    file = open_lora(args.file)
    found = best_match(file, args.model)
    description = described(file) | fit(found)
    if args.json:
        print(json_text(description), end="")
    else:
        width = max(map(len, description))
        for name, value in description.items():
            for index, line in enumerate(value if isinstance(value, list) else [value]):
                print(f"{name if index == 0 else '':<{width}}  {line}")
    if args.model and found and not found[1].matched:
        raise LoraError(f"{args.file} is for another model: none of its modules has a place in {args.model}.")


def described(file: "LoraFile") -> dict[str, Any]:
    """From the file alone."""
    entries = file.entries.values()
    sizes = Counter(tensor.dtype.lower() for tensor in file.checkpoint.values())
    return {
        "file": file.published or str(file.path),
        "size": f"{file.checkpoint.nbytes / 1e6:.1f} MB, {len(file.checkpoint)} tensors ({_counted(sizes)})",
        "format": file.format,
        "kind": _counted(Counter(entry.kind or "incomplete" for entry in entries)),
        "base": file.family or "unknown",
        "rank": _counted(Counter(entry.rank for entry in entries if entry.rank)) or "none",
        "alpha": _counted(Counter(entry.alpha for entry in entries)),
        "scale": _counted(Counter(entry.scale for entry in entries)),
        "targets": targets([entry.name for entry in entries]),
    }


def targets(names: Sequence[str]) -> list[str]:
    """Names of the same kind in one line, block numbers as a range."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        number = BLOCK.search(name)
        kind = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        kinds.setdefault(kind, []).extend([int(number[0])] if number else [])
    return [kind.replace("{}", f"{{{ranged(numbers)}}}", 1) if numbers else kind for kind, numbers in kinds.items()]


def best_match(file: "LoraFile", named: str | None) -> "tuple[str, Match] | None":
    """With the model that is named, or the one of the LoRA's family that it fits best."""
    from ..families import open_family
    from ..loading.weights import WeightTransforms
    from ..lora.match import Lora, match_entries, module_names

    def matched(manifest: "Manifest", folder: Path) -> "Match":
        return match_entries(Lora(file), module_names(open_family(manifest, folder, WeightTransforms())))

    if named:
        with headers(named) as (manifest, folder, _):
            return named, matched(manifest, folder)
    matches = []
    for manifest, place in _candidates(file):
        with place as folder:
            matches.append((manifest.name, matched(manifest, folder)))
    return max(matches, key=lambda each: len(each[1].matched), default=None)


def fit(found: "tuple[str, Match] | None") -> dict[str, Any]:
    if found is None:
        return {"matches": "not checked: its names do not tell one model of this library"}
    name, match = found
    left = [f"{key}: {why}" for key, why in match.unmatched.items()] + match.misshapen
    more = [f"… and {len(left) - SHOWN} more"] if len(left) > SHOWN else []
    fitting = f"{len(match.matched)} of {match.total} modules of {name}"
    return {"matches": fitting, "left over": left[:SHOWN] + more or "nothing"}


def _candidates(file: "LoraFile") -> "Iterator[tuple[Manifest, AbstractContextManager[Path]]]":
    """Models of the LoRA's family: those that are here, and one of each published size, which need not be."""
    from ..families import family_specs
    from ..hub.download import local_folder
    from ..hub.manifest import manifests
    from ..hub.tensor_shapes import has_tensor_shapes, shape_only_folder

    for family in (spec.name for spec in family_specs() if spec.title in file.families):
        ours = [manifest for manifest in manifests().values() if manifest.family == family]
        sizes: dict[str | None, Manifest] = {}
        for manifest in ours:
            if folder := local_folder(manifest):
                yield manifest, nullcontext(folder)
            if has_tensor_shapes(manifest) and "needs" not in manifest.extras:
                sizes.setdefault(manifest.tensor_shapes, manifest)
        for manifest in sizes.values():
            yield manifest, shape_only_folder(manifest)


def _counted(counter: Counter[Any]) -> str:
    """16, or "16 (300), 32 (4)"."""
    if len(counter) == 1:
        return _short(next(iter(counter)))
    return ", ".join(f"{_short(value)} ({count})" for value, count in counter.most_common(6))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "not given" if value is None else str(value)
