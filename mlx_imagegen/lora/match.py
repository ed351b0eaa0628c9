"""A LoRA file's entries on a family's modules: where each belongs, and what is refused.

In: opened LoRA files and a family that is open. Out: a `Match` for each, with the changes of our parameters by name.
A file that does not fit is refused, all that is wrong with it at once: nothing in it is dropped silently.
Must not know: arithmetic, when changes are merged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..errors import LoraError
from ..escaping import listed
from ..families.base import Family
from ..loading.names import RowRange
from ..loading.weights import Weights
from .deltas import Entry
from .file import LoraFile
from .names import find_module, known_names

OtherNames = Callable[[str, Iterable[str]], Mapping[str, Sequence[RowRange]]]  # Family.lora_names
Key = tuple[str, str, str]  # component, module path, parameter


@dataclass(frozen=True)
class Lora:
    file: LoraFile
    scale: float = 1.0
    own: bool = False  # the manifest's, not the user's

    def described(self) -> dict[str, Any]:
        """For records: enough to open it again from every folder."""
        file = self.file
        own = {} if file.published else {"sha256": file.digest}
        return {"file": file.canonical_name, **own, "scale": self.scale}

    def __str__(self) -> str:
        return f"{self.file.requested_as} at {self.scale:g}"


@dataclass(frozen=True)
class ModuleNames:
    """One component's modules by every name that LoRA files use for them."""

    component: str
    shapes: Mapping[str, tuple[int, ...]]  # of our parameters, unpacked
    names: Mapping[str, tuple[RowRange, ...]]  # every name of a module
    prefixes: tuple[str, ...]  # of keys for this component; () for the transformer, which needs none
    # By module: other widths of its input that entries may be made for, in columns.
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        weights: Weights,
        others: OtherNames,
        prefixes: Sequence[str] = (),
        widths: Mapping[str, tuple[int, ...]] | None = None,
    ) -> "ModuleNames":
        shapes = {name: _unpacked(weights, name) for name in weights.slices if name not in weights.tables}
        shapes |= weights.folded
        modules = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        names = known_names(modules, others(weights.component, modules))
        return cls(weights.component, shapes, names, tuple(prefixes), widths or {})


@dataclass(frozen=True)
class Change:
    """One entry of one file on one of our parameters."""

    lora: Lora
    entry: Entry
    target: RowRange
    parameter: str
    columns: int | None = None  # of the file's module, where its input may be narrower than ours

    def of(self, value: mx.array, target: RowRange | None = None) -> mx.array:
        """`target`: the run of the file's rows that `value` is, where that is a part of ours."""
        self.lora.file.check_unchanged()
        if self.parameter == "bias":
            return self.entry.bias_change(target or self.target, self.lora.scale)
        columns = self.columns or value.shape[-1]
        change = self.entry.weight_change(value[..., :columns], target or self.target, self.lora.scale)
        wider = value.shape[-1] - columns  # inputs that the file knows nothing of
        return mx.pad(change, [(0, 0), (0, wider)]) if wider else change


@dataclass
class Match:
    """Where the parts of one file belong."""

    lora: Lora
    matched: list[str] = field(default_factory=list)  # entries, by the file's names
    unmatched: dict[str, str] = field(default_factory=dict)  # key or entry -> why it has no place
    misshapen: list[str] = field(default_factory=list)
    changes: dict[Key, list[Change]] = field(default_factory=dict)
    widened: dict[str, int] = field(default_factory=dict)  # modules whose input must become as wide, in columns

    @property
    def total(self) -> int:
        return len(self.matched) + len(self.unmatched) + len(self.misshapen)


def module_names(family: Family[Any]) -> list[ModuleNames]:
    """Of every component that LoRAs can change, the one of the denoising loop last: its modules need no prefix."""
    main = family.transformer.weights.component
    out = []
    for name, weights in family.weights.items():
        prefixes = [prefix for prefix, component in family.spec.lora_prefixes.items() if component == name]
        if name == main or prefixes:
            widths = family.lora_widths if name == main else {}
            out.append(ModuleNames.of(weights, family.lora_names, prefixes, widths))
    return sorted(out, key=lambda names: names.component == main)


def match_loras(loras: Iterable[Lora], known: Sequence[ModuleNames], title: str, partial: bool = False) -> list[Match]:
    """Every file's entries on the family's modules; `partial`: entries without a place are left out, not refused."""
    matches = [match_entries(lora, known) for lora in loras]
    for match in matches:
        _refuse_misfit(match, title, partial)
    return matches


def match_entries(lora: Lora, known: Sequence[ModuleNames]) -> Match:
    """Where each of a file's entries belongs; refuses nothing."""
    match = Match(lora, unmatched=dict.fromkeys(lora.file.unknown_keys, "its ending is of no known kind"))
    seen: dict[tuple[str, tuple[RowRange, ...]], str] = {}
    for name, entry in lora.file.entries.items():
        found = _find(name, known)
        if found is None:
            match.unmatched[name] = "no such module"
            continue
        names, targets = found
        first = seen.setdefault((names.component, targets), name)
        if entry.form is None:
            match.unmatched[name] = f"it has {', '.join(sorted(entry.parts))}, which make no change together"
        elif first != name:
            match.unmatched[name] = f"'{first}' already speaks of this module"
        else:
            _place(match, entry, names, targets)
    return match


def _find(name: str, known: Sequence[ModuleNames]) -> tuple[ModuleNames, tuple[RowRange, ...]] | None:
    for names in known:
        if names.prefixes:
            prefix = next((prefix for prefix in names.prefixes if name.startswith(prefix)), None)
            module = None if prefix is None else find_module(name.removeprefix(prefix), names.names)
        else:
            module = find_module(name, names.names)
        if module is not None:
            return names, names.names[module]
    return None


def _place(match: Match, entry: Entry, names: ModuleNames, targets: tuple[RowRange, ...]) -> None:
    """Notes the entry's changes under our parameters, if all its shapes fit them."""
    placed: dict[Key, Change] = {}
    for parameter, found in (("weight", entry.shape), ("bias", entry.bias_shape)):
        if found is None and (parameter == "bias" or entry.form == "difference"):
            continue  # the file says nothing of it
        expected = _fused_shape(names, targets, parameter)
        if expected is None:
            match.unmatched[entry.name] = f"the module has no {parameter}"
            return
        columns = _other_width(names, targets, expected, found)
        fits = found == expected or columns is not None
        if found is None or not fits or not entry.magnitude_fits(found, len(targets)):
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in entry.parts.items() if tensor.shape)
            match.misshapen.append(f"'{entry.name}': expected {list(expected)}, found {shapes}")
            return
        for target in targets:
            placed[names.component, target.name, parameter] = Change(match.lora, entry, target, parameter, columns)
        if columns and columns > expected[-1] and match.lora.scale != 0:
            match.widened[targets[0].name] = columns
    for key, change in placed.items():
        match.changes.setdefault(key, []).append(change)
    match.matched.append(entry.name)


def _other_width(
    names: ModuleNames, targets: Sequence[RowRange], expected: tuple[int, ...], found: tuple[int, ...] | None
) -> int | None:
    """The width of the entry's input, where it is another than the module's and yet known."""
    widths = names.widths.get(targets[0].name, ())
    if found is None or len(targets) > 1 or found[:-1] != expected[:-1] or found[-1] not in widths:
        return None
    return found[-1]


def _fused_shape(known: ModuleNames, targets: Sequence[RowRange], parameter: str) -> tuple[int, ...] | None:
    """The shape of the file's module: our modules' rows, one below another."""
    names = [f"{target.name}.{parameter}" for target in targets]
    if not known.shapes.keys() >= set(names):
        return None
    shapes = [known.shapes[name] for name in names]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _refuse_misfit(match: Match, title: str, partial: bool) -> None:
    """Raises with everything that is wrong, unless entries only lack a place and `partial` allows that."""
    file = match.lora.file
    other = file.family if file.families and title not in file.families else None
    looks = f" It looks like a LoRA for {other}." if other else ""
    unmatched = listed([f"'{name}' ({why})" for name, why in match.unmatched.items()], most=5, joint="; ")
    if not match.total:
        raise LoraError(
            f"{file.requested_as} holds no tensors; download it again, or take another save of the training."
        )
    if not match.matched and not match.misshapen:
        raise LoraError(
            f"{file.requested_as}: none of its {match.total} modules has a place in {title}: {unmatched}.{looks}"
        )
    if match.misshapen:
        raise LoraError(
            f"{file.requested_as} has shapes that do not fit this model: {listed(match.misshapen, joint='; ')}."
            f"{looks} A LoRA fits only the model it was trained on."
        )
    if other and not match.unmatched:
        raise LoraError(
            f"{file.requested_as} says that it is for {other}: {title} has modules of the same names, but not the "
            "same use."
        )
    if match.unmatched and (other or not partial):
        remedy = "" if other else " Allow it with --lora-partial (lora_partial=True) to merge the rest."
        raise LoraError(
            f"{file.requested_as}: {len(match.matched)} of {match.total} modules match {title}, the others have no "
            f"place: {unmatched}.{looks}{remedy}"
        )


def _unpacked(weights: Weights, name: str) -> tuple[int, ...]:
    """A parameter's shape as it was before it was packed."""
    path, _, parameter = name.rpartition(".")
    linear = weights.linears.get(path)
    return linear if linear and parameter == "weight" else weights.slices[name].shape
