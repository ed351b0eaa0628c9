"""LoRAs merged into full-precision weights, in float32, module by module as these stream in.

In: LoRA files matched with a family's modules. Out: `Merge`, a step of loading: it comes before packing. Each file's
changes are computed from the weight without any LoRA and added up, so that their order does not matter; a scale of 0
leaves every bit as it is.
Must not know: sampling, how weights are packed.
"""

import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import LoraError
from ..escaping import quoted
from ..families.base import Family
from ..hub.download import Notify, notify_stderr
from ..hub.manifest import Manifest, data_folder
from ..layers.linear import Packing, split_runs, unpacked
from ..loading.names import runs
from ..loading.tensors import NamedTensors
from ..loading.transforms import LayerTensors, Transform
from ..loading.weights import Weights
from ..packing.packer import Pack
from ..paths import expanded
from .file import open_lora
from .match import Change, Key, Lora, Match

# What `lora=` takes: a file, or (file, scale); a file may be in a repository: "owner/name:file.safetensors".
# A LoRA that is open is taken as it is.
Wanted = str | Path | tuple[str | Path, float] | Lora
SCALE_LIMIT = 100.0
SAMPLE_ROWS = 128  # of each weight, to see what packing leaves of a change; the result is good to about 2%


class Merge(Transform):
    """The selected LoRAs by parameter. A tensor that none of them changes stays as it is, the others become float32."""

    def __init__(self, source: Callable[[str], Weights] | None = None) -> None:
        """`source`: a component's full-precision weights, where the model that is open was quantized or folded: LoRAs
        merge into those."""
        self.source = source
        self.matches: Sequence[Match] = ()
        self.before: Sequence[Match] = ()  # what was merged into a quantized checkpoint when it was made
        self.applied: set[Key] = set()
        self.survived: dict[str, float] = {}  # component/path -> share of the change that packing left
        self._changes: dict[Key, list[Change]] = {}
        self._before: dict[Key, list[Change]] = {}

    def select(self, matches: Sequence[Match], before: Sequence[Match] = ()) -> set[Key]:
        """Replaces the selection; gives the parameters whose merged values change. `before`: what was merged into a
        quantized checkpoint when it was made."""
        changes, former = _by_parameter(matches), self._changes
        keys = changes.keys() | former.keys()
        differ = {key for key in keys if _fingerprints(changes.get(key, ())) != _fingerprints(former.get(key, ()))}
        self.matches, self._changes = matches, changes
        self.before, self._before = before, _by_parameter(before)
        self.applied -= differ
        for component, path, _ in differ:
            self.survived.pop(f"{component}/{path}", None)
        return differ

    def apply(self, tensors: LayerTensors) -> LayerTensors:
        component, path = tensors.component, tensors.path
        if tensors.absent or (tensors.packing and self.touches(component, path)):
            return self._read_from_source(tensors)
        values = tensors.values.items()
        return tensors.with_values({name: self(component, path, name, value) for name, value in values})

    def _read_from_source(self, tensors: LayerTensors) -> LayerTensors:
        """The layer as it was before it was packed or folded, with the LoRAs of then and now: codes take no change."""
        component, path = tensors.component, tensors.path
        assert self.source is not None  # a LoRA is refused where there is no source
        full = self.source(component)
        plain = {"weight": full.read_weight(path)}
        if "bias" in tensors.layer:  # a calibrated folder's makes up for the error of its own codes
            plain["bias"] = full.read(f"{path}.bias", tensors.layer["bias"].shape)
        values = {name: self.from_source(component, path, name, value) for name, value in plain.items()}
        return replace(tensors, values=values, plain=plain, packing=None)

    def changes(self, component: str, paths: Collection[str]) -> bool:
        return any(self.touches(component, path, name) for path in paths for name in ("weight", "bias"))

    def identity(self, named: NamedTensors, paths: Collection[str]) -> str:
        if not self.changes(named.component, paths):
            return ""
        from_source = self.source is not None and not all(map(named.in_full_precision, paths))
        stamp = self.source(named.component).checkpoint.stamp if self.source and from_source else ""
        return repr((self._merged_into(named.component, paths), stamp))

    def __call__(self, component: str, path: str, parameter: str, value: mx.array) -> mx.array:
        return self._merged((component, path, parameter), value, self._changes)

    def from_source(self, component: str, path: str, parameter: str, value: mx.array) -> mx.array:
        """As a call, for what comes from a quantized checkpoint's source: with the LoRAs that were merged then."""
        return self._merged((component, path, parameter), value, self._before, self._changes)

    def _merged(self, key: Key, value: mx.array, *tables: Mapping[Key, Sequence[Change]]) -> mx.array:
        changes = [change for table in tables for change in table.get(key, ())]
        if not changes:
            return value
        self.applied.add(key)
        value = value.astype(mx.float32)  # every change is computed from the plain value
        return _summed(value, [change.of(value) for change in changes])

    def rows(self, component: str, path: str, parameter: str, rows: mx.array, first: int, height: int) -> mx.array:
        """As a call, for a run of rows of a parameter that has `height` of them: for weights read in pieces."""
        key = (component, path, parameter)
        rows, found = rows.astype(mx.float32), []
        for change in self._changes.get(key, ()):
            if change.entry.by_columns and len(rows) != height:
                raise LoraError(
                    f"{change.lora.file.requested_as}: '{change.entry.name}' is a DoRA over columns, which needs all "
                    "of a weight at once, and weights pass in pieces here; give this LoRA to generate instead."
                )
            self.applied.add(key)
            parts = runs(change.target, first, len(rows), height)
            pieces = zip(split_runs(rows, [part.share for part in parts]), parts, strict=True)
            found.append(mx.concatenate([change.of(piece, part) for piece, part in pieces]))
        return _summed(rows, found)

    def measure(
        self, component: str, path: str, before: mx.array, after: mx.array, pack: Pack, packing: Packing
    ) -> None:
        """Notes which share of the change is left: the difference of the packed weight with and without it."""
        before, after = (weight[:SAMPLE_ROWS].astype(mx.float32) for weight in (before, after))
        change = after - before
        found = unpacked(pack(after, packing), packing) - unpacked(pack(before, packing), packing)
        size = float(np.array(mx.sum(change * change)))
        if size > 0:  # trainers leave some modules as they were
            self.survived[f"{component}/{path}"] = float(np.array(mx.sum(found * change))) / size

    def record(self) -> dict[str, Any]:
        """What generate() would be given again; a manifest's own LoRA comes with the model's name."""
        loras = [match.lora for match in self.matches if not match.lora.own]
        chosen = [[lora.file.canonical_name, lora.scale] for lora in loras]
        partial = {"lora_partial": True} if any(match.unmatched for match in self.matches) else {}
        return {"lora": chosen} | partial if chosen else {}

    def notes(self) -> list[str]:
        """For the report."""
        idle = sorted({f"{component}/{path}" for component, path, _ in self._changes.keys() - self.applied})
        unused = (
            [f"this picture did not use {len(idle)} of the modules that LoRAs change ({idle[0]} …)"] if idle else []
        )
        return self.match_lines() + self.loss_lines() + unused

    def match_lines(self) -> list[str]:
        """How many of each file's modules match."""
        return [f"LoRA {match.lora}: {len(match.matched)} of {match.total} modules match" for match in self.matches]

    def loss_lines(self) -> list[str]:
        """What quantization left of the changes, where it was measured."""
        if not self.survived:
            return []
        worst = min(self.survived, key=lambda name: self.survived[name])
        mean = sum(self.survived.values()) / len(self.survived)
        least = f"least in {worst}: {self.survived[worst]:.0%}"
        return [f"quantization left {mean:.0%} of the LoRAs' change, {least}"]

    def touches(self, component: str, path: str, parameter: str = "weight") -> bool:
        return (component, path, parameter) in self._changes

    def _merged_into(self, component: str, paths: Collection[str]) -> list[str]:
        """Every change of these layers."""
        return sorted(
            repr((key, *fingerprint))
            for changes in (self._before, self._changes)
            for key, merged in changes.items()
            if key[0] == component and key[1] in paths
            for fingerprint in _fingerprints(merged)
        )

    def note_reuse(self, component: str, paths: Collection[str]) -> None:
        self.applied |= {key for key in self._changes if key[0] == component and key[1] in paths}


def open_loras(wanted: Sequence[Wanted], notify: Notify = notify_stderr) -> list[Lora]:
    """The files of `lora=`, opened and checked by themselves."""
    if not isinstance(wanted, list | tuple) or (len(wanted) == 2 and isinstance(wanted[1], Real)):  # one (file, scale)
        raise LoraError(f"lora={wanted!r}: give a list, as in lora=['style.safetensors', ('other.safetensors', 0.7)].")
    return [item if isinstance(item, Lora) else _opened(item, notify) for item in wanted]


def _opened(item: Any, notify: Notify) -> Lora:
    source, scale = item if isinstance(item, tuple | list) and len(item) == 2 else (item, 1.0)  # JSON has no tuples
    if not isinstance(source, str | Path):
        raise LoraError(f"{quoted(item)} is no LoRA: give a file, or (file, scale).")
    if isinstance(scale, bool) or not isinstance(scale, Real) or not abs(float(scale)) <= SCALE_LIMIT:
        raise LoraError(f"{source}: the scale {scale!r} is no number up to {SCALE_LIMIT:g}; 1 is the full LoRA.")
    return Lora(open_lora(source, notify), float(scale))


def apply_loras(family: Family[Any], merge: Merge, matches: Sequence[Match], before: Sequence[Match] = ()) -> set[Key]:
    """Replaces what was merged by `matches`; loaded modules are read again where that changes them."""
    former = merge.matches, merge.before
    family.widen(_widened(matches))
    differ = merge.select(matches, before)
    try:
        for component in family.components.values():
            component.refill({path for name, path, _ in differ if name == component.weights.component})
    except BaseException:  # a half-changed module must not make a picture
        merge.select(*former)
        family.widen(_widened(former[0]))
        for component in family.components.values():
            component.release()
        raise
    return differ


def _widened(matches: Sequence[Match]) -> dict[str, int]:
    """The modules whose inputs the files widen, and to how many columns."""
    out: dict[str, int] = {}
    for match in matches:
        out |= {path: max(columns, out.get(path, 0)) for path, columns in match.widened.items()}
    return out


def own_loras(manifest: Manifest, notify: Notify = notify_stderr) -> list[Lora]:
    """The LoRA that makes a manifest's model out of its base's files."""
    own = manifest.extras.get("lora")
    if not own:
        return []
    if "repo" not in own:  # bundled, like the model itself
        return [Lora(open_lora(data_folder("weights") / own["file"]), own=True)]
    return [Lora(open_lora(f"{own['repo']}@{own['revision']}:{own['file']}", notify), own=True)]


def parse_lora(text: str) -> Wanted:
    """PATH[:SCALE] of the command line."""
    head, colon, tail = text.rpartition(":")
    if expanded(text).exists():  # a name may hold a colon
        return text
    try:
        return (head, float(tail)) if colon and head else text
    except ValueError:
        return text


def _by_parameter(matches: Sequence[Match]) -> dict[Key, list[Change]]:
    """In an order of their own, so that the last bit does not depend on the user's."""
    out: dict[Key, list[Change]] = {}
    for match in sorted(matches, key=lambda match: (match.lora.file.stamp, match.lora.scale)):
        if match.lora.scale != 0:
            for key, changes in match.changes.items():
                out.setdefault(key, []).extend(changes)
    return out


def _summed(value: mx.array, found: Sequence[mx.array]) -> mx.array:
    """The sum of changes is added at once: the same bits for a whole weight and for a run of its rows."""
    return value + functools.reduce(operator.add, found) if found else value


def _fingerprints(changes: Sequence[Change]) -> list[tuple[str, str, float]]:
    """Alike for changes that come to the same sum: the same entries of the same files at the same scales."""
    return sorted((each.lora.file.stamp, each.entry.name, each.lora.scale) for each in changes)
