"""`lora FILE`: what a LoRA is made of, for which model, and what of it would find no place."""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoraError

if TYPE_CHECKING:
    from ..lora.file import LoraFile
    from ..lora.match import Vocabulary

SHOWN = 12  # leftovers that are listed
BLOCK = re.compile(r"(?<=[._])\d+(?=[._])")  # the first number of a module's name is its block's


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .safetensors file, or owner/repository:file")
    parser.add_argument("--model", help="match it against this one (a name, a repository id or a folder that is here)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> None:
    from ..lora.file import open_lora

    file = open_lora(args.file)
    told = described(file) | fit(file, args.model)
    if args.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    width = max(map(len, told))
    for name, value in told.items():
        for index, line in enumerate(value if isinstance(value, list) else [value]):
            print(f"{name if index == 0 else '':<{width}}  {line}")


def described(file: "LoraFile") -> dict[str, Any]:
    """From the file alone."""
    entries = file.entries.values()
    sizes = Counter(tensor.dtype.lower() for tensor in file.checkpoint.values())
    return {
        "file": str(file.path),
        "size": f"{file.checkpoint.nbytes / 1e6:.1f} MB, {len(file.keys)} tensors ({_counted(sizes)})",
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
    return [kind.replace("{}", f"{{{_range(numbers)}}}", 1) if numbers else kind for kind, numbers in kinds.items()]


def fit(file: "LoraFile", named: str | None) -> dict[str, Any]:
    """What matches a model whose files are here: the one named, or the nearest of the LoRA's family."""
    from ..loading import Changes
    from ..lora.match import Lora, match_entries, vocabularies
    from ..pipeline import open_family

    found = _model(file, named)
    if found is None:
        return by_name(file)
    name, manifest, folder = found
    match = match_entries(Lora(file), vocabularies(open_family(manifest, folder, Changes())))
    left = [f"{key}: {why}" for key, why in match.left.items()] + match.misshapen
    more = [f"… and {len(left) - SHOWN} more"] if len(left) > SHOWN else []
    fitting = f"{len(match.matched)} of {match.total} modules of {name}"
    return {"matches": fitting, "left over": left[:SHOWN] + more or "nothing"}


def by_name(file: "LoraFile") -> dict[str, Any]:
    """Without the model's files: names alone, whatever a block's number."""
    from ..keys import find_module
    from ..lora.file import TITLES

    family = next((family for family, title in TITLES.items() if title == file.family), None)
    if family is None:
        return {"matches": "not checked: its names do not tell one model of this library"}
    tables = [(prefix, known.names) for known in smallest(family) for prefix in known.prefixes or ("",)]

    def fits(name: str) -> bool:
        name = BLOCK.sub("0", name, count=1)
        return any(
            name.startswith(prefix) and find_module(name.removeprefix(prefix), names) for prefix, names in tables
        )

    left = [f"{name}: no such module" for name in file.entries if not fits(name)]
    left += [f"{key}: its ending is of no known kind" for key in file.strangers]
    total = len(file.entries) + len(file.strangers)
    why = f"shapes are not checked: no {file.family} is on this machine, or name a folder with --model"
    more = [f"… and {len(left) - SHOWN} more"] if len(left) > SHOWN else []
    return {
        "matches": f"{total - len(left)} of {total} modules by name ({why})",
        "left over": left[:SHOWN] + more or "nothing",
    }


def smallest(family: str) -> "list[Vocabulary]":
    """What a family calls its modules, from a model with a block or two of each kind."""
    from ..loading import Changes
    from ..lora.match import Vocabulary, vocabularies
    from ..manifest import data_folder, manifests
    from ..pipeline import open_family

    for manifest in manifests().values():
        if manifest.family == family and manifest.folder:  # built in
            folder = data_folder("weights") / manifest.folder
            return vocabularies(open_family(manifest, folder, Changes()))
    if family == "flux":
        from ..flux.config import FluxConfig
        from ..flux.keys import LORA_PREFIXES, lora_names
        from ..flux.modulation import FluxModulators
        from ..flux.transformer import FluxTransformer
        from ..text.clip import CLIPConfig, ClipTextModel
        from ..text.t5 import T5Config, T5Encoder

        texts = {
            "text_encoder": ClipTextModel(CLIPConfig("quick_gelu", 1, 1, 1e-5, 1, 1, 1, 1, 0)),
            "text_encoder_2": T5Encoder(T5Config(1, 1, 1, 1, 1, "gated-gelu", 1e-6, 1, 1)),
        }
        flux = FluxConfig(2, True, 1, 1, 1, 1, 1, 1)
        prefixes = {name: [p for p, component in LORA_PREFIXES.items() if component == name] for name in texts}
        return [
            *(Vocabulary.of(_names_of(name, tree), lora_names, prefixes[name]) for name, tree in texts.items()),
            Vocabulary.of(_names_of("transformer", FluxTransformer(flux), FluxModulators(flux)), lora_names),
        ]
    from ..qwen_image.config import QwenImageConfig
    from ..qwen_image.modulation import QwenImageModulators
    from ..qwen_image.transformer import QwenImageTransformer

    qwen = QwenImageConfig(2, 1, 1, 1, 1, 1, 1)
    trees = QwenImageTransformer(qwen), QwenImageModulators(qwen)
    return [Vocabulary.of(_names_of("transformer", *trees), lambda component, modules: {})]


def _names_of(component: str, *trees: Any) -> Any:
    """Module trees as if they had been opened; nothing but their names is right."""
    from ..checkpoint import Checkpoint, Tensor
    from ..loading import Weights, layers, own_parameters

    names = [f"{path}.{name}" for tree in trees for path, layer in layers(tree) for name in own_parameters(layer)]
    return Weights.open(
        component, Checkpoint({name: Tensor(Path(), name, "F32", (1,), 0, 0) for name in names}, [], Path())
    )


def _model(file: "LoraFile", named: str | None) -> tuple[str, Any, Any] | None:
    """(name, manifest, folder)"""
    from ..download import local_folder
    from ..lora.file import TITLES
    from ..manifest import find, manifests

    if named is not None:
        found = find(named)
        folder = found.folder or local_folder(found.manifest)
        if folder is None:
            raise LoraError(f"{named} is not on this machine: a LoRA is matched against its files; download it first.")
        return named, found.manifest, folder
    families = [family for family, title in TITLES.items() if file.family and title in file.family]
    for manifest in manifests().values():
        folder = local_folder(manifest) if manifest.family in families and not manifest.folder else None
        if folder:
            return manifest.name, manifest, folder
    return None


def _counted(counter: Counter[Any]) -> str:
    """16, or "16 (300), 32 (4)"."""
    if len(counter) == 1:
        return _short(next(iter(counter)))
    return ", ".join(f"{_short(value)} ({count})" for value, count in counter.most_common(6))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "not given" if value is None else str(value)


def _range(numbers: list[int]) -> str:
    numbers = sorted(set(numbers))
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))
