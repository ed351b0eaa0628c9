"""LoRAs merged into full-precision weights, in float32, module by module as these stream in.

In: LoRA files with scales, and a family that is open. Out: `Merge`, which `loading.py` hands every tensor on its way to
quantization and into the module. Each file's changes are computed from the weight as it is without any LoRA and added
up, so that their order does not matter; a scale of 0 leaves every bit as it is.
A file that does not fit is refused, all that is wrong with it at once: nothing in it is ever dropped in silence.
Must not know: sampling, how weights are packed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .download import Tell, tell_stderr
from .errors import LoraError
from .family import Family
from .keys import Target, find_module, lora_names, runs
from .layers.linear import Packing, unpacked
from .loading import Pack, Weights
from .lora_deltas import Entry
from .lora_file import LoraFile, open_lora
from .manifest import Manifest

Source = str | Path
# What `lora=` takes: a file, or (file, scale); a file may stand in a repository: "owner/name:file.safetensors".
Wanted = Source | tuple[Source, float]
OtherNames = Callable[[str, Iterable[str]], Mapping[str, Sequence[Target]]]  # Family.lora_names
Key = tuple[str, str, str]  # component, module path, parameter
SCALE_LIMIT = 100.0
SAMPLE_ROWS = 128  # of each weight, to see what packing leaves of a change; the result is good to about 2%


@dataclass(frozen=True)
class Lora:
    """A file and how strongly it is wanted."""

    file: LoraFile
    scale: float = 1.0
    own: bool = False  # the manifest's, not the user's

    def described(self) -> dict[str, Any]:
        """Enough to open it again from anywhere."""
        place = self.file.spoken if self.file.remote else str(self.file.path.resolve())
        return {"file": place, "revision": self.file.revision, "scale": self.scale}

    def __str__(self) -> str:
        return f"{self.file.spoken} at {self.scale:g}"


@dataclass(frozen=True)
class Vocabulary:
    """One component as LoRA files may speak of it."""

    component: str
    shapes: Mapping[str, tuple[int, ...]]  # of our parameters, unpacked
    names: Mapping[str, tuple[Target, ...]]  # every name of a module
    prefixes: tuple[str, ...]  # that say a key is for this component; () for the transformer, which needs none

    @classmethod
    def of(cls, weights: Weights, others: OtherNames, prefixes: Sequence[str] = ()) -> "Vocabulary":
        shapes = {name: _unpacked(weights, name) for name in weights.slices if name not in weights.tables}
        modules = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        return cls(weights.component, shapes, lora_names(modules, others(weights.component, modules)), tuple(prefixes))


@dataclass(frozen=True)
class Change:
    """One entry of one file on one of our parameters."""

    lora: Lora
    entry: Entry
    target: Target
    parameter: str

    def of(self, value: mx.array, target: Target | None = None) -> mx.array:
        """`target`: the run of the file's rows that `value` is, where that is a part of ours."""
        if self.parameter == "bias":
            return self.entry.bias_change(target or self.target, self.lora.scale)
        return self.entry.weight_change(value, target or self.target, self.lora.scale)


@dataclass
class Match:
    """What became of a file."""

    lora: Lora
    matched: list[str] = field(default_factory=list)  # entries, by the file's names
    left: dict[str, str] = field(default_factory=dict)  # key or entry -> why it has no place
    misshapen: list[str] = field(default_factory=list)
    changes: dict[Key, list[Change]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.matched) + len(self.left) + len(self.misshapen)


class Merge:
    """The chosen LoRAs by parameter; called with every tensor that is read."""

    def __init__(self) -> None:
        self.matches: list[Match] = []
        self.applied: set[Key] = set()
        self.survived: dict[str, float] = {}  # component/path -> share of the change that packing left
        self._changes: dict[Key, list[Change]] = {}
        self._before: dict[Key, list[Change]] = {}

    def choose(self, matches: Sequence[Match], before: Sequence[Match] = ()) -> set[Key]:
        """Takes the place of what was chosen; gives the parameters whose merged values become others.

        `before`: what was merged into a quantized checkpoint when it was made, for weights that come from its source.
        """
        changes, self._before = _by_parameter(matches), _by_parameter(before)
        keys = changes.keys() | self._changes.keys()
        differ = {key for key in keys if not _alike(changes.get(key), self._changes.get(key))}
        self.matches, self._changes = list(matches), changes
        self.applied -= differ
        for component, path, _ in differ:
            self.survived.pop(f"{component}/{path}", None)
        return differ

    def __call__(self, component: str, path: str, parameter: str, value: mx.array) -> mx.array:
        changes = self._changes.get((component, path, parameter))
        if not changes:
            return value
        self.applied.add((component, path, parameter))
        return _added(value, changes)

    def from_source(self, component: str, path: str, value: mx.array) -> mx.array:
        key = (component, path, "weight")
        self.applied.add(key)
        return _added(value, [*self._before.get(key, ()), *self._changes.get(key, ())])

    def rows(self, component: str, path: str, parameter: str, rows: mx.array, first: int, height: int) -> mx.array:
        """As a call, for a run of rows of a parameter that has `height` of them; for who reads weights in pieces."""
        key = (component, path, parameter)
        rows = rows.astype(mx.float32)
        out = rows
        for change in self._changes.get(key, ()):
            if change.entry.by_columns and len(rows) != height:
                raise LoraError(
                    f"{change.lora.file.spoken}: '{change.entry.name}' is a DoRA over columns, which needs the whole "
                    "weight at once, and weights pass in pieces here; give this LoRA to generate instead."
                )
            self.applied.add(key)
            parts = runs(change.target, first, len(rows), height)
            stops = np.cumsum([part.share for part in parts])[:-1].tolist()
            pieces = mx.split(rows, stops) if stops else [rows]
            out = out + mx.concatenate([change.of(piece, part) for piece, part in zip(pieces, parts, strict=True)])
        return out

    def measure(
        self, component: str, path: str, before: mx.array, after: mx.array, pack: Pack, packing: Packing
    ) -> None:
        """The part of the change that is found again in what packing makes of the weight without and with it."""
        before, after = (weight[:SAMPLE_ROWS].astype(mx.float32) for weight in (before, after))
        change = after - before
        found = unpacked(pack(after, packing), packing) - unpacked(pack(before, packing), packing)
        share = mx.sum(found * change) / mx.maximum(mx.sum(change * change), 1e-30)
        self.survived[f"{component}/{path}"] = float(np.array(share))

    def record(self) -> dict[str, Any]:
        """What generate() would be given again; a manifest's own LoRA comes with the model's name."""
        chosen = [[match.lora.file.spoken, match.lora.scale] for match in self.matches if not match.lora.own]
        partial = {"lora_partial": True} if any(match.left for match in self.matches) else {}
        return {"lora": chosen} | partial if chosen else {}

    def notes(self) -> list[str]:
        """For the report: how much of each file found its place."""
        notes = [f"LoRA {match.lora}: {len(match.matched)} of {match.total} modules match" for match in self.matches]
        if idle := sorted({f"{component}/{path}" for component, path, _ in self._changes.keys() - self.applied}):
            notes.append(f"this picture did not use {len(idle)} of the modules that LoRAs change ({idle[0]} …)")
        if self.survived:
            worst = min(self.survived, key=lambda name: self.survived[name])
            mean = sum(self.survived.values()) / len(self.survived)
            least = f"least in {worst}: {self.survived[worst]:.0%}"
            notes.append(f"quantization left {mean:.0%} of the LoRAs' change, {least}")
        return notes

    def touches(self, component: str, path: str, parameter: str = "weight") -> bool:
        return (component, path, parameter) in self._changes


def open_loras(wanted: Sequence[Wanted], tell: Tell = tell_stderr) -> list[Lora]:
    """The files of `lora=`, opened and checked by themselves."""
    loras = []
    for item in wanted:
        source, scale = item if isinstance(item, tuple | list) else (item, 1.0)  # JSON has no tuples
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= SCALE_LIMIT:
            raise LoraError(f"{source}: the scale {scale!r} is no number up to {SCALE_LIMIT:g}; 1 is the full LoRA.")
        loras.append(Lora(open_lora(source, tell=tell), float(scale)))
    return loras


def refit(family: Family[Any], merge: Merge, matches: Sequence[Match], before: Sequence[Match] = ()) -> set[Key]:
    """Puts `matches` in the place of what was merged; loaded modules are read again where that changes them."""
    former = merge.matches
    differ = merge.choose(matches, before)
    try:
        for component in family.components.values():
            component.refill({path for name, path, _ in differ if name == component.weights.component})
    except BaseException:  # a half-changed module must not make a picture
        merge.choose(former, before)
        for component in family.components.values():
            component.release()
        raise
    return differ


def own_loras(manifest: Manifest, tell: Tell = tell_stderr) -> list[Lora]:
    """The LoRA that makes a manifest's model out of its base's files."""
    own = manifest.extras.get("lora")
    return [Lora(open_lora(f"{own['repo']}:{own['file']}", own["revision"], tell), own=True)] if own else []


def parse_lora(text: str) -> Wanted:
    """PATH[:SCALE] of the command line."""
    head, colon, tail = text.rpartition(":")
    try:
        return (head, float(tail)) if colon and head else text
    except ValueError:
        return text


def vocabularies(family: Family[Any]) -> list[Vocabulary]:
    """Of every component that LoRAs can change, the one of the denoising loop last: its modules need no prefix."""
    main = family.components[family.stages["denoise"][0]].weights.component
    weights = {component.weights.component: component.weights for component in family.components.values()}
    out = []
    for name, of in weights.items():
        prefixes = [prefix for prefix, component in family.lora_prefixes.items() if component == name]
        if name == main or prefixes:
            out.append(Vocabulary.of(of, family.lora_names, prefixes))
    return sorted(out, key=lambda vocabulary: vocabulary.component == main)


def match_loras(loras: Iterable[Lora], known: Sequence[Vocabulary], title: str, partial: bool = False) -> list[Match]:
    """Every file's entries on the family's modules; `partial`: entries without a place are left out, not refused."""
    matches = [match_entries(lora, known) for lora in loras]
    for match in matches:
        _refuse_misfit(match, title, partial)
    return matches


def match_entries(lora: Lora, known: Sequence[Vocabulary]) -> Match:
    """Where each of a file's entries belongs; refuses nothing."""
    match = Match(lora, left=dict.fromkeys(lora.file.strangers, "its ending is of no known kind"))
    seen: dict[tuple[str, tuple[Target, ...]], str] = {}
    for name, entry in lora.file.entries.items():
        found = _find(name, known)
        if found is None:
            match.left[name] = "no such module"
            continue
        vocabulary, targets = found
        first = seen.setdefault((vocabulary.component, targets), name)
        if entry.kind is None:
            match.left[name] = f"it has only {', '.join(sorted(entry.parts))}"
        elif first != name:
            match.left[name] = f"'{first}' already speaks of this module"
        else:
            _place(match, entry, vocabulary, targets)
    return match


def _find(name: str, known: Sequence[Vocabulary]) -> tuple[Vocabulary, tuple[Target, ...]] | None:
    for vocabulary in known:
        if vocabulary.prefixes:
            prefix = next((prefix for prefix in vocabulary.prefixes if name.startswith(prefix)), None)
            module = None if prefix is None else find_module(name.removeprefix(prefix), vocabulary.names)
        else:
            module = find_module(name, vocabulary.names)
        if module is not None:
            return vocabulary, vocabulary.names[module]
    return None


def _place(match: Match, entry: Entry, vocabulary: Vocabulary, targets: tuple[Target, ...]) -> None:
    """Notes the entry's changes under our parameters, if its shapes fit them."""
    for parameter, found in (("weight", entry.shape), ("bias", entry.bias_shape)):
        if found is None and (parameter == "bias" or entry.kind == "difference"):
            continue  # the file says nothing of it
        expected = _whole_shape(vocabulary, targets, parameter)
        if expected is None:
            match.left[entry.name] = f"the module has no {parameter}"
        elif found is None or found != expected or not entry.magnitude_fits(expected, len(targets)):
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in entry.parts.items() if tensor.shape)
            match.misshapen.append(f"'{entry.name}': expected {list(expected)}, found {shapes}")
        else:
            for target in targets:
                key = (vocabulary.component, target.name, parameter)
                match.changes.setdefault(key, []).append(Change(match.lora, entry, target, parameter))
            continue
        return
    match.matched.append(entry.name)


def _whole_shape(vocabulary: Vocabulary, targets: Sequence[Target], parameter: str) -> tuple[int, ...] | None:
    """The shape of the file's module: our modules' rows, one below another."""
    shapes = [vocabulary.shapes.get(f"{target.name}.{parameter}") for target in targets]
    if any(shape is None for shape in shapes):
        return None
    first = shapes[0]
    assert first is not None
    return (sum(shape[0] for shape in shapes if shape), *first[1:])


def _refuse_misfit(match: Match, title: str, partial: bool) -> None:
    """Raises with everything that is wrong, unless only leftovers are and `partial` allows them."""
    file = match.lora.file
    other = file.family if file.family and title not in file.family else None
    looks = f" It looks like a LoRA for {other}." if other else ""
    if not match.matched and not match.misshapen:
        keys = ", ".join(f"'{key}'" for key in file.keys[:3])
        count = len(file.entries)
        raise LoraError(f"{file.spoken}: none of its {count} modules is one of {title}'s; its keys: {keys} ….{looks}")
    if match.misshapen:
        more = f" … and {len(match.misshapen) - 3} more" if len(match.misshapen) > 3 else ""
        raise LoraError(
            f"{file.spoken} has shapes that do not fit this model: {'; '.join(match.misshapen[:3])}{more}.{looks} "
            "A LoRA fits only the model it was trained on."
        )
    if other and not match.left:
        raise LoraError(
            f"{file.spoken} says that it is for {other}: {title} has modules of the same names, but not the same use."
        )
    if match.left and (other or not partial):
        left = "; ".join(f"'{name}' ({why})" for name, why in list(match.left.items())[:4])
        more = f"; and {len(match.left) - 4} more" if len(match.left) > 4 else ""
        mend = "" if other else " Allow it with --lora-partial (lora_partial=True) to merge the rest."
        raise LoraError(
            f"{file.spoken}: {len(match.matched)} of {match.total} modules match {title}, the others have no place: "
            f"{left}{more}.{looks}{mend}"
        )


def _by_parameter(matches: Sequence[Match]) -> dict[Key, list[Change]]:
    out: dict[Key, list[Change]] = {}
    for match in matches:
        if match.lora.scale != 0:
            for key, changes in match.changes.items():
                out.setdefault(key, []).extend(changes)
    return out


def _added(value: mx.array, changes: Sequence[Change]) -> mx.array:
    """Every change is computed from the plain value; the sum of changes is added at once."""
    value = value.astype(mx.float32)
    total = changes[0].of(value)
    for change in changes[1:]:
        total = total + change.of(value)
    return value + total


def _alike(a: Sequence[Change] | None, b: Sequence[Change] | None) -> bool:
    """Whether two lists of changes come to the same sum: the same entries of the same files at the same scales."""

    def keys(changes: Sequence[Change] | None) -> list[Any]:
        return sorted((each.lora.file.checkpoint.stamp, each.entry.name, each.lora.scale) for each in changes or ())

    return keys(a) == keys(b)


def _unpacked(weights: Weights, name: str) -> tuple[int, ...]:
    """A parameter's shape as it was before it was packed."""
    path, _, parameter = name.rpartition(".")
    linear = weights.linears.get(path)
    return linear if linear and parameter == "weight" else weights.slices[name].shape
