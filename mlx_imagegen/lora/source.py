"""LoRAs for a folder that is quantized already: its touched weights are read again from what it was made from.

A LoRA that is added to codes is mostly rounded away: of a change of 1%, 3% is left at 4 bits and 23% at 6
(benchmarks/lora_merge.py). So the weights it touches come in full precision from the source that the converter
recorded, with the LoRAs that were merged then, and are packed as before; the others stay unchanged. Without the
source the merge is refused, with the command that makes a new folder.
In: a quantized folder. Out: `Source`. Must not know: arithmetic, how packing works.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import LoraError, MissingFileError
from ..families import family_spec, open_family
from ..families.base import Family
from ..hub.component_folders import unpacked_folder
from ..hub.download import Notify, local_folder
from ..hub.manifest import Manifest
from ..hub.mlx_folders import component_folders
from ..hub.record import record_of, remake
from ..hub.single_files import open_single_file, source_of
from ..layers.linear import Packing
from ..loading.transforms import WeightTransforms
from ..loading.weights import Weights
from ..packing.affine import pack
from ..packing.packer import OnChange, Packer
from ..packing.recipes import read_recipe, recipe_names
from .file import open_lora
from .match import Lora, Match

# Why a LoRA of the folder is asked for again.
NEEDED = "has to be merged again into the weights that another one changes"


class Source:
    """What a quantized folder was made from, opened when a LoRA first needs it. Called with a component's name, it
    gives the full-precision weights."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.record = record_of(folder)

    def applied_to(self, transforms: WeightTransforms, on_change: OnChange | None = None) -> WeightTransforms:
        """For loading: weights that LoRAs touch are packed again as they were."""
        return transforms.then(Packer(self._pack, norms=family_spec(self.manifest.family).norms, on_change=on_change))

    def __call__(self, component: str) -> Weights:
        return self._family.weights[component]

    def merged_before(self, matches: Sequence[Match], family: Family[Any], notify: Notify) -> list[Lora]:
        """The LoRAs that are in the folder's packed weights already, if any of `matches` touches one of those.

        Refused here, before anything is loaded, if the source is not on this machine.
        """
        held = family.weights
        changes = [key for match in matches if match.lora.scale != 0 for key in match.changes]
        packed = [
            path
            for component, path, parameter in changes
            if (parameter == "weight" and path in held[component].stored)
            or f"{path}.{parameter}" in held[component].folded
        ]
        if not packed:
            return []
        if self._place is None:
            raise LoraError(self._refusal(matches, packed))
        if self.record.get("calibrated_with"):
            notify(
                f"note: for the LoRA, {len(set(packed))} layers are packed again, without the calibration of "
                f"{self.folder}; a folder that is made with the LoRA has both: " + self._command(matches)
            )
        return [self._opened_before(each) for each in self.record.get("lora", [])]

    def _opened_before(self, record: dict[str, Any]) -> Lora:
        """A LoRA that is in the packed weights already; refused if it is another file now."""
        try:
            file = open_lora(record["file"])
        except MissingFileError as error:
            raise LoraError(
                f"{self.folder} was made with the LoRA {record['file']}, which {NEEDED}: {error}"
            ) from error
        if file.published is None and file.digest != record.get("sha256"):
            raise LoraError(
                f"{self.folder} was made with the LoRA {record['file']}, which {NEEDED}, and is another file now. "
                "Put the former one in its place, or quantize the full-precision model again with the LoRAs you want."
            )
        return Lora(file, record["scale"])

    @functools.cached_property
    def _family(self) -> Family[Any]:
        place = self._place
        if place is None:  # it went away since it was asked for
            raise LoraError(f"the files that {self.folder} was made from are not there any more: {self._named}.")
        return open_family(self.manifest, place, WeightTransforms())

    @property
    def _place(self) -> Path | None:
        """The source's folder, if it is on this machine and complete."""
        named, revision = self.record.get("source"), self.record.get("revision")
        if not named:
            return unpacked_folder(self.folder)
        place = Path(named)
        if place.is_file() or (place.is_dir() and component_folders(place)):
            folder = open_single_file(place)[1]
            return unpacked_folder(folder) or folder
        if Path(named).is_absolute():
            return Path(named) if Path(named).is_dir() else None
        return local_folder(replace(self.manifest, repo=named, revision=revision or "main"))

    @property
    def _named(self) -> str:
        return str(self.record.get("source") or "the full-precision model")

    def _pack(self, weight: mx.array, packing: Packing, *, importance: np.ndarray | None = None) -> dict[str, mx.array]:
        name = str(self.record.get("recipe"))
        known = name in recipe_names() or Path(name).is_file()  # a recipe of the user's own may be gone
        search = known and read_recipe(name, self.manifest.family).search
        return pack(weight, packing, search, importance)

    def _refusal(self, matches: Sequence[Match], packed: Sequence[str]) -> str:
        missing = f"{self._named}, which it was made from, is not on this machine"
        return (
            f"{source_of(self.folder)} is quantized, and merging into its codes or tables would lose most of a LoRA "
            f"({len(packed)} modules, {packed[0]} …). The weights would be read from the full-precision model instead, "
            f"but {missing if self.record else 'it does not say from what it was made'}. Make a new folder with the "
            f"LoRA: {self._command(matches)}"
        )

    def _command(self, matches: Sequence[Match]) -> str:
        partial = any(match.unmatched for match in matches)
        return remake(self.record, [match.lora.described() for match in matches], lora_partial=partial)
